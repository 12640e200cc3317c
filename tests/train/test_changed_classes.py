"""Runs whose data has other classes than before: at the door, on resume, and in the head of start weights."""

import contextlib
import dataclasses
import json
import shutil

import chex
import numpy as np
import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.recipe import DataRecipe, OptimizerRecipe
from flaxvid.train.setup import count_classes, make_model
from flaxvid.train.start import fit_start, load_start
from flaxvid.train.trained import load
from flaxvid.weights.native import WeightsInfo, save_variables
from flaxvid.weights.torch import to_torch

NAMES = ("blue", "green", "red")
COLOURS = ["red", "green", "blue"]


def listed(root, videos, names):
    """The coloured videos in `root` with lists of labels by number, and `names` as classes.txt."""
    for name in COLOURS:
        if not (root / name).exists():
            shutil.copytree(videos / name, root / name)
    (root / "classes.txt").write_text("\n".join(names))
    for split, numbers in (("train", range(6)), ("test", range(6, 8))):
        lines = [f"{name}/{number}.mp4 {COLOURS.index(name)}" for name in COLOURS for number in numbers]
        (root / f"{split}.txt").write_text("\n".join(lines))
    return DataRecipe("list", str(root), clips=ClipConfig(short="repeat"))


@pytest.fixture
def stopped(colour_recipe, colour_run, coloured_videos, tmp_path):
    """A run that was stopped after 18 of 24 steps: its recipe and folder, and its own copy of the videos."""
    root, folder = tmp_path / "videos", shutil.copytree(colour_run, tmp_path / "run")
    shutil.copytree(coloured_videos, root)
    for name in ("any_frame.json", "evaluation.json"):
        (folder / name).unlink()
    for step in ("21", "24"):
        shutil.rmtree(folder / "checkpoints" / step)
    recipe = dataclasses.replace(colour_recipe, data=dataclasses.replace(colour_recipe.data, root=str(root)))
    saved = json.loads((folder / "recipe.json").read_text())
    saved["data"]["root"] = str(root)
    (folder / "recipe.json").write_text(json.dumps(saved))
    return recipe, folder, root


def refused(recipe, folder):
    """The message of a resume that is refused with nothing in the folder changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match="expected the classes that the run") as error:
        flaxvid.run(recipe, folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_resume_after_a_rename_is_refused_and_goes_on_once_it_is_undone(stopped):
    recipe, folder, root = stopped
    (root / "red").rename(root / "a_red")  # now the first of three: all labels are turned
    assert "got others: gone: red; new: a_red: give the data its class names" in refused(recipe, folder)
    (root / "a_red").rename(root / "red")
    shutil.copytree(root / "red", root / "pink")
    assert "got others: new: pink: give" in refused(recipe, folder)
    shutil.rmtree(root / "pink")
    (root / "green").rename(root.parent / "green")
    assert "got others: gone: green: give" in refused(recipe, folder)
    (root.parent / "green").rename(root / "green")
    (row,) = flaxvid.run(recipe, folder)
    assert row["top1"] == 1
    (root / "red").rename(root / "a_red")
    assert "gone: red" in refused(recipe, folder)  # its results are those of other classes


def test_a_run_of_an_older_version_goes_on_and_says_what_it_takes_for_true(stopped, capsys):
    recipe, folder, _ = stopped
    (folder / "classes.json").unlink()
    (row,) = flaxvid.run(recipe, folder)
    assert "has no classes.json: its classes are taken to be those that the data has now" in capsys.readouterr().out
    assert row["top1"] == 1
    assert not (folder / "classes.json").exists()  # a guess is not made a record


def test_damaged_names_are_one_line_with_the_file(stopped):
    recipe, folder, _ = stopped
    undecodable, unparsable = (b"\xff\xfe\x00",), (b"[", b"[" * 100_000)
    no_names = b'{"a": 1}', b"[1, 2]", b"[]", b"{}", b'"red"', b'{"a": {"b": []}}'
    for content in (*undecodable, *unparsable, *no_names):
        (folder / "classes.json").write_bytes(content)
        for use in (lambda: flaxvid.run(recipe, folder), lambda: load(folder)):
            with pytest.raises(
                ValueError, match=r"expected class names in .*classes\.json, got a damaged file"
            ) as error:
                use()
            assert "\n" not in str(error.value)
        assert (folder / "classes.json").read_bytes() == content


def test_a_folder_without_results_takes_other_classes(stopped):
    recipe, folder, root = stopped
    shutil.rmtree(folder / "checkpoints")
    (root / "red").rename(root / "a_red")
    flaxvid.run(dataclasses.replace(recipe, epochs=1), folder)
    assert json.loads((folder / "classes.json").read_text()) == ["a_red", "blue", "green"]


def test_other_orders_and_targets_are_refused_too(colour_recipe, coloured_videos, tmp_path):
    recipe = dataclasses.replace(colour_recipe, data=listed(tmp_path / "list", coloured_videos, COLOURS), epochs=1)
    flaxvid.run(recipe, tmp_path / "run")
    (tmp_path / "run" / "any_frame.json").unlink()
    listed(tmp_path / "list", coloured_videos, ["green", "red", "blue"])
    message = refused(recipe, tmp_path / "run")
    assert "in another order: red, green, blue there, green, red, blue here" in message
    for split in ("train", "test"):
        (tmp_path / "list" / f"{split}.txt").unlink()
        rows = [f"{name}/{number}.mp4,{name},{number % 2}" for name in COLOURS for number in range(8)]
        (tmp_path / "list" / f"{split}.csv").write_text("\n".join(["path,hue,side", *rows]))
    assert "one target without a name there, targets hue, side here" in refused(recipe, tmp_path / "run")


@pytest.mark.parametrize("several", [False, True])
def test_test_labels_that_training_never_sees_stop_the_run_at_the_door(
    colour_recipe, coloured_videos, tmp_path, several
):
    recipe = dataclasses.replace(colour_recipe, data=listed(tmp_path / "list", coloured_videos, COLOURS))
    (tmp_path / "list" / "classes.txt").unlink()
    if several:
        for split, last in (("train", 1), ("test", 2)):
            (tmp_path / "list" / f"{split}.txt").unlink()
            rows = [f"{name}/{number}.mp4,{number % 2},{number % 2}" for name in COLOURS for number in range(8)]
            text = "\n".join(["path,hue,side", *rows[:-1], f"blue/7.mp4,0,{last}"])
            (tmp_path / "list" / f"{split}.csv").write_text(text)
    else:
        (tmp_path / "list" / "train.txt").write_text(
            "\n".join(
                f"{name}/{number}.mp4 {label}" for label, name in enumerate(("red", "green")) for number in range(6)
            )
        )
    with pytest.raises(ValueError, match=r"list.test.*\b2\b|\b2\b.*list.test") as error:
        flaxvid.run(recipe, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def start(recipe, weights, classes):
    """The head's columns, as numbers of those of `weights`; [] is one that started anew."""
    model = make_model(dataclasses.replace(recipe), count_classes(classes))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights=str(weights)))
    trained = load_start(recipe, count_classes(classes))
    head = fit_start(recipe, model, trained, classes)["params"]["head"]
    return {
        name.removeprefix("classifier").lstrip("_"): [
            [old for old in range(3) if np.array_equal(leaves["kernel"][:, new], TRAINED["kernel"][:, old])
             and leaves["bias"][new] == TRAINED["bias"][old]]
            for new in range(leaves["kernel"].shape[1])
        ]
        for name, leaves in head.items()
    }  # fmt: skip


TRAINED = {}


@pytest.fixture(scope="module")
def weights(colour_run, tmp_path_factory):
    """The run as it is, and as files with and without class names."""
    folder, trained = tmp_path_factory.mktemp("weights"), load(colour_run)
    variables = trained.select(2)
    TRAINED.update({name: np.asarray(leaf) for name, leaf in variables["params"]["head"]["classifier"].items()})
    overrides = {"num_frames": 2, "image_size": 32, "num_classes": 3, "width": 8, "depths": [1]}
    save_variables(folder / "named.safetensors", variables, WeightsInfo("tsm_resnet18", overrides, None, NAMES))
    save_variables(folder / "plain.safetensors", variables, WeightsInfo("tsm_resnet18", overrides))
    save_file(to_torch("tsm_resnet18", variables), folder / "torch.safetensors")
    files = {path.stem: path for path in folder.iterdir()}
    return {"run": colour_run, "checkpoint": colour_run / "checkpoints" / "24", **files}


@pytest.mark.parametrize("kind", ["run", "checkpoint", "named"])
def test_a_head_is_kept_for_the_same_names_only(weights, colour_recipe, capsys, kind):
    file = weights[kind]
    assert start(colour_recipe, file, NAMES) == {"": [[0], [1], [2]]}
    assert "head" not in capsys.readouterr().out
    assert start(colour_recipe, file, ("red", "blue", "green")) == {"": [[2], [0], [1]]}
    assert "the head is kept, its classes put into the data's order" in capsys.readouterr().out
    for classes in (("Red", "blue", "green"), ("blue", "green", "white"), ("blue", "green"), (*NAMES, "white"),
                    ("blue", "blue", "green"), ("0", "1", "2")):  # fmt: skip
        assert start(colour_recipe, file, classes) == {"": [[]] * len(classes)}
        told = f"the head starts anew: its classes are blue, green, red, the data's are {', '.join(classes)}"
        assert told in capsys.readouterr().out
    assert start(colour_recipe, file, {"hue": NAMES, "side": ("0", "1")}) == {"hue": [[]] * 3, "side": [[]] * 2}
    assert "the head of hue starts anew: the targets there are one only, without a name" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["run", "checkpoint", "named", "plain", "torch"])
def test_an_attentive_probe_takes_stem_and_body(weights, colour_recipe, capsys, kind):
    """And a new head, though the trained classifier has the shape of the new one."""
    options = colour_recipe.model.options | {"head": "attention"}
    model = dataclasses.replace(colour_recipe.model, weights=str(weights[kind]), options=options)
    recipe = dataclasses.replace(colour_recipe, model=model, freeze=("stem", "body"))
    with pytest.warns(UserWarning, match="has not the head") if kind == "torch" else contextlib.nullcontext():
        variables = fit_start(recipe, make_model(recipe, 3), load_start(recipe, 3), NAMES)
    trained = load(weights["run"]).select(2)
    for part in ("stem", "body"):
        chex.assert_trees_all_close(variables["params"][part], trained["params"][part], rtol=1e-6)
        chex.assert_trees_all_close(variables["batch_stats"][part], trained["batch_stats"][part], rtol=1e-6)
    assert set(variables["params"]["head"]) == {"attention_0", "classifier"}
    assert not np.allclose(variables["params"]["head"]["classifier"]["kernel"], TRAINED["kernel"])
    assert ("the head is of another kind and starts anew" in capsys.readouterr().out) == (kind != "torch")


def test_an_attentive_probe_learns_and_leaves_the_rest_as_it_is(colour_recipe, colour_run, tmp_path):
    options = colour_recipe.model.options | {"head": "attention"}
    model = dataclasses.replace(colour_recipe.model, weights=str(colour_run), options=options)
    recipe = dataclasses.replace(colour_recipe, model=model, freeze=("stem", "body"))
    (row,) = flaxvid.run(recipe, tmp_path / "probe")
    assert row["top1"] == 1
    variables, trained = (load(folder).select(2) for folder in (tmp_path / "probe", colour_run))
    for part in ("stem", "body"):
        chex.assert_trees_all_equal(variables["params"][part], trained["params"][part])
        chex.assert_trees_all_equal(variables["batch_stats"][part], trained["batch_stats"][part])


@pytest.mark.parametrize("kind", ["plain", "torch"])
def test_without_names_an_equal_number_has_to_do_and_that_is_said(weights, colour_recipe, capsys, kind):
    assert start(colour_recipe, weights[kind], ("a", "b", "c")) == {"": [[0], [1], [2]]}
    told = "does not name its classes; the head is kept, since their number is the data's"
    assert told in capsys.readouterr().out
    with pytest.warns(UserWarning, match="freshly") if kind == "torch" else contextlib.nullcontext():
        assert start(colour_recipe, weights[kind], ("a", "b")) == {"": [[], []]}
    assert told not in capsys.readouterr().out


def test_names_that_are_not_as_many_as_the_classifier_has_are_refused(weights, colour_recipe, colour_run, tmp_path):
    folder = shutil.copytree(colour_run, tmp_path / "run")
    (folder / "classes.json").write_text('["red", "green"]')
    with pytest.raises(ValueError, match=r"names of the 3 classes of the network in .*run, got 2 \(red, green"):
        start(colour_recipe, folder, ("green", "red"))


def test_a_run_starts_from_another_whose_classes_are_in_another_order(
    colour_recipe, colour_run, coloured_videos, tmp_path
):
    """Nothing is learnt, so a head that is not turned as the labels are would show."""
    recipe = dataclasses.replace(
        colour_recipe,
        data=listed(tmp_path / "list", coloured_videos, COLOURS),
        model=dataclasses.replace(colour_recipe.model, weights=str(colour_run)),
        optimizer=OptimizerRecipe("sgd", 0.0),
        freeze=("stem", "body"),
        epochs=1,
    )
    (row,) = flaxvid.run(recipe, tmp_path / "run")
    assert row["top1"] == 1
    kernel = restore_variables(tmp_path / "run")["params"]["head"]["classifier"]["kernel"]
    old = restore_variables(colour_run)["params"]["head"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel, np.asarray(old)[:, [2, 1, 0]])


def test_so_does_a_network_for_every_frame_count(colour_recipe, colour_run, tmp_path):
    """Each target of several is taken by its name."""
    recipe = dataclasses.replace(colour_recipe, task=FfnRecipe((2, 3)))
    assert start(recipe, colour_run, ("red", "blue", "green")) == {"": [[2], [0], [1]]}
