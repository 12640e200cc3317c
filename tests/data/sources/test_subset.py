import pytest

from flaxvid.data.sources.open import FileSource
from flaxvid.data.sources.subset import random_subset


@pytest.fixture
def source(tmp_path):
    for number in range(30):
        (tmp_path / f"{number}.mp4").touch()
    paths = tuple(f"{number}.mp4" for number in range(30))
    return FileSource("all", str(tmp_path), paths, tuple(number // 10 for number in range(30)), ("a", "b", "c"))


def test_a_subset_is_drawn_from_all_of_the_source_and_is_always_the_same(source):
    part = random_subset(source, 9)
    items = [part[index] for index in range(len(part))]
    assert [item["id"] for item in items] == [source[position]["id"] for position in part.positions]
    assert list(part.positions) == sorted(set(part.positions))
    assert {item["label"] for item in items} == {0, 1, 2}
    assert random_subset(source, 9).positions == part.positions
    assert (part.name, part.classes, part.flip_labels) == ("all, 9 of 30", ("a", "b", "c"), None)


@pytest.mark.parametrize("count", [0, 31])
def test_more_than_there_is_is_an_error(source, count):
    with pytest.raises(ValueError, match=f"expected 1 to 30 videos of all, got {count}"):
        random_subset(source, count)
