"""Labels are matched by name: whatever the order, with classes missing, several targets; nothing is guessed."""

import pickle

import pytest

from flaxvid.data.sources.class_names import Relabelled, differences, relabel
from flaxvid.data.sources.files import FileSource

KNOWN = ("jump", "run", "sit")


def files(classes, labels):
    count = len(next(iter(labels.values())) if isinstance(labels, dict) else labels)
    return FileSource("their test", "root", tuple(f"{n}.mp4" for n in range(count)), labels, classes)


class Plain:
    """A source that is no FileSource: labels come with the videos only."""

    name, cameras = "plain test", ("front",)

    def __init__(self, classes, labels):
        self.classes, self._labels = classes, labels

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        return {"video": b"v", "label": self._labels[index], "id": str(index)}


def match(source, classes=KNOWN, **options):
    return relabel(source, classes, "the network", "mend it", **options)


def labels_of(source):
    return [source[index]["label"] for index in range(len(source))]


@pytest.mark.parametrize("make", [files, Plain])
@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (("sit", "jump", "run"), (0, 1, 2, 0), [2, 0, 1, 2]),
        (("sit", "jump"), (0, 1, 1), [2, 0, 0]),
        (("run",), (0, 0), [1, 1]),
    ],
)
def test_other_orders_and_missing_classes(make, classes, labels, expected):
    source = pickle.loads(pickle.dumps(match(make(classes, labels)))) if make is files else match(make(classes, labels))
    assert labels_of(source) == expected
    assert source.classes == KNOWN
    assert source[0]["id"] == make(classes, labels)[0]["id"]


def test_classes_without_videos_may_have_any_name():
    """Such as a folder of notes beside class folders, or the rest of a long classes.txt."""
    source = match(files(("annotations", "sit", "jump"), (1, 2, 1)))
    assert (labels_of(source), source.classes) == ([2, 0, 2], KNOWN)
    with pytest.raises(ValueError, match=r"got also annotations in their test"):
        match(files(("annotations", "sit", "jump"), (1, 2, 0)))
    with pytest.raises(ValueError, match=r"got also annotations in plain test"):  # its labels are not known before
        match(Plain(("annotations", "sit", "jump"), (1, 2, 1)))
    source = match(
        files({"do": ("x", "sit"), "who": ("a",)}, {"do": (1, -1), "who": (-1, 0)}), {"do": KNOWN, "who": ("a",)}
    )
    assert labels_of(source) == [{"do": 2, "who": -1}, {"do": -1, "who": 0}]


def test_the_same_classes_leave_the_source_as_it_is():
    source = files(KNOWN, (0, 1))
    assert match(source) is source
    twice = files(("a", "a"), (0, 1))  # the same list is the same, whatever it says
    assert match(twice, ("a", "a")) is twice


def test_a_files_labels_stay_in_memory_and_cameras_are_known():
    assert match(files(("sit", "jump"), (0, 1))).labels == (2, 0)
    relabelled = match(Plain(("sit", "jump"), (0, 1)))
    assert isinstance(relabelled, Relabelled)
    assert (relabelled.cameras, relabelled.name, len(relabelled)) == (("front",), "plain test", 2)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("jump", "run", "sit", "fly"), "expected classes of the network (jump, run, sit), got also fly in their test"),
        (("walk", "fly"), "got none of them in their test (walk, fly): mend it"),
        (("Jump", "run"), "got also Jump in their test (Jump, run); did you mean 'jump' for 'Jump'? Names are not"),
        (("jump ", "s_it"), "did you mean 'jump' for 'jump ', 'sit' for 's_it'?"),
        (("0", "1", "2"), "numbers are no names: put the names into classes.txt"),
    ],
)  # fmt: skip
def test_other_names_are_one_error_with_both_lists(classes, message):
    with pytest.raises(ValueError, match="expected classes of the network") as error:
        match(files(classes, tuple(range(len(classes)))))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_network_that_knows_only_numbers_is_told():
    with pytest.raises(ValueError, match="numbers are no names, and the network has only numbers"):
        match(files(("jump", "run"), (0, 1)), ("0", "1"))
    assert labels_of(match(files(("1", "2"), (0, 1)), ("0", "1", "2"))) == [1, 2]  # lists that count from 1


def test_a_name_that_the_network_has_twice_is_not_guessed():
    with pytest.raises(ValueError, match="got also run in their test"):
        match(files(("jump", "run"), (0, 1)), ("run", "jump", "run"))


def test_an_accent_is_the_same_in_both_of_its_spellings():
    assert labels_of(match(files(("cafe\u0301", "bar"), (0, 1)), ("bar", "caf\u00e9"))) == [1, 0]


def test_a_long_list_is_cut():
    known = tuple(f"class{number}" for number in range(100))
    with pytest.raises(ValueError, match=r"class19, \.\.\. \(100 in all\)\), got none"):
        match(files(("a", "b"), (0, 1)), known)


TASKS = {"action": KNOWN, "actor": ("me", "you")}


def test_each_of_several_targets_is_matched_by_its_name():
    classes = {"place": ("in", "out"), "actor": ("you", "me"), "action": ("sit", "run")}
    labels = {"place": (0, 1), "actor": (0, 1), "action": (0, 1)}
    expected = [{"action": 2, "actor": 1}, {"action": 1, "actor": 0}]
    assert labels_of(match(files(classes, labels), TASKS)) == expected
    rows = [{target: own[index] for target, own in labels.items()} for index in (0, 1)]
    assert labels_of(match(Plain(classes, rows), TASKS)) == expected
    rows[1]["action"] = -1  # a label that is missing stays missing
    assert labels_of(match(Plain(classes, rows), TASKS))[1] == {"action": -1, "actor": 0}


@pytest.mark.parametrize(
    ("classes", "known", "message"),
    [
        ({"action": KNOWN}, TASKS, "expected labels of the network's targets action, actor, got targets action in"),
        (KNOWN, TASKS, "got one target without a name in their test"),
        (TASKS, KNOWN, "expected labels of the network's one target without a name, got targets action, actor"),
        ({"action": ("a", "b"), "actor": ("c",)}, TASKS, "the network for actor (me, you), got none of them in their"),
    ],
)
def test_other_targets_are_one_error(classes, known, message):
    labels = dict.fromkeys(classes, (0, 0)) if isinstance(classes, dict) else (0, 0)
    with pytest.raises(ValueError, match="expected") as error:
        match(files(classes, labels), known)
    assert message in str(error.value)


def test_names_can_be_given():
    source = match(files(("rennen", "sit", "laufen"), (0, 1, 2)), renames={"": {"rennen": "run", "laufen": "run"}})
    assert labels_of(source) == [1, 2, 1]
    source = match(
        files({"action": ("rennen",), "actor": ("me",)}, {"action": (0,), "actor": (0,)}),
        TASKS,
        renames={"action": {"rennen": "run"}},
    )
    assert labels_of(source) == [{"action": 1, "actor": 0}]
    with pytest.raises(ValueError, match=r"expected to rename classes of their test \(jump\), got hop"):
        match(files(("jump",), (0,)), renames={"": {"hop": "jump"}})
    with pytest.raises(ValueError, match=r"expected renames of one target without a name, got targets action"):
        match(files(("jump",), (0,)), renames={"action": {"hop": "jump"}})


def test_differences_of_two_lists():
    assert differences(KNOWN, KNOWN) == []
    assert differences(KNOWN, ("hop", "run", "sit")) == ["gone: jump", "new: hop"]
    assert differences(KNOWN, ("jump", "run")) == ["gone: sit"]
    assert differences(KNOWN, (*KNOWN, "walk")) == ["new: walk"]
    assert differences(KNOWN, ("run", "jump", "sit")) == ["in another order: jump, run, sit there, run, jump, sit here"]
    assert differences(TASKS, {**TASKS, "actor": ("me", "us")}) == ["actor: gone: you", "actor: new: us"]
    assert differences(KNOWN, TASKS) == ["one target without a name there, targets action, actor here"]
    assert differences({"action": KNOWN}, TASKS) == ["targets action there, targets action, actor here"]
