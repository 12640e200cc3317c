"""Which videos a run is evaluated on while it trains."""

import dataclasses

import pytest

from flaxvid.data.sources.splits import NoSplitError
from flaxvid.train.recipe import DataRecipe, Recipe
from flaxvid.train.splits import open_splits

NAMES = {"a": "red", "b": "green"}


@pytest.fixture(scope="module")
def folders(make_videos, tmp_path_factory):
    """Class folders as they are, and in folders of their splits."""
    root = tmp_path_factory.mktemp("splits")
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        make_videos(root / "all" / split, NAMES, count, 0)
        if split != "val":
            make_videos(root / "two" / split, NAMES, count, 0)
        if split != "test":
            make_videos(root / "no test" / split, NAMES, count, 0)
    make_videos(root / "held out", NAMES, 5, 0)
    return root


def counts(root, **changes):
    every = changes.pop("eval_every", 1)
    recipe = Recipe(data=DataRecipe("folder", str(root), **changes), eval_every=every)
    return tuple(source and len(source) for source in open_splits(recipe)[:3])


def test_the_validation_split_is_taken_where_there_is_one(folders, capsys):
    assert counts(folders / "all") == (6, 4, 2)
    assert "train  validation        test" in capsys.readouterr().out
    assert counts(folders / "all", eval_every=0) == (6, None, 2)


@pytest.mark.parametrize(("name", "expected"), [("two", (6, None, 2)), ("held out", (8, None, 2))])
def test_test_videos_are_never_taken_unless_they_are_named(folders, capsys, name, expected):
    assert counts(folders / name) == expected
    assert "no evaluation during training: folder has no validation split; make one, or" in capsys.readouterr().out
    assert counts(folders / name, validation_split="test") == (expected[0], 2, 2)
    assert "no evaluation" not in capsys.readouterr().out
    with pytest.raises(NoSplitError, match="expected split train or test"):
        counts(folders / name, validation_split="validation")


def test_a_validation_split_that_stands_for_the_test_is_both(folders, capsys):
    assert counts(folders / "no test") == (6, 4, 4)
    assert "has no test split: its validation split is the test" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["list", "ucf101"])
def test_other_kinds_of_data_say_so_alike(folders, tmp_path, kind):
    """What `open_splits` waits for is what they raise."""
    for name in ("train", "test"):
        rows = [f"{name}/{label}/{number}.mp4,{label}" for label in NAMES for number in range(1)]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
    (tmp_path / "classInd.txt").write_text("1 a\n2 b\n")
    recipe = Recipe(data=dataclasses.replace(DataRecipe(kind, str(folders / "two")), lists=str(tmp_path)))
    if kind == "list":
        assert [source and len(source) for source in open_splits(recipe)[:3]] == [2, None, 2]
    recipe.data.validation_split = recipe.data.train_split = "validation"
    with pytest.raises(NoSplitError):
        open_splits(recipe)
