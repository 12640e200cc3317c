import json

import numpy as np
import pytest
from matplotlib.image import imread

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.sources.open import FileSource
from flaxvid.evaluate import record as record_module
from flaxvid.evaluate.evaluator import Evaluation, Result, join
from flaxvid.evaluate.record import (
    choose_examples,
    digest_videos,
    evaluation_record,
    film_strip,
    find_fault,
    finish_evaluation,
    place_record,
    write_record,
)

CLIPS = ClipConfig((2,), 32)


def result(guess, confidence):
    guess = np.asarray(guess)
    scores = {"top1": 0.5, "top5": 1.0, "mean_class": 0.5, "calibration_error": 0.25, "clips": len(guess)}
    bins = {"count": np.array([0, 4]), "confidence": np.array([np.nan, 0.75]), "accuracy": np.array([np.nan, 0.5])}
    return Result(scores, np.array([[2, 0], [1, 0]]), bins, guess, np.asarray(confidence, np.float32))


@pytest.fixture
def source(tmp_path):
    """Class folders with images for videos; video 1 is damaged and video 4 goes away after its listing."""
    from matplotlib.image import imsave

    paths = [f"v{number}" for number in range(6)]
    for number, path in enumerate(paths):
        (tmp_path / path).mkdir()
        for frame in range(3):
            imsave(tmp_path / path / f"{frame}.png", np.full((20, 40, 3), 80 * frame, np.uint8))
        if number == 1:
            (tmp_path / path / "2.png").write_bytes(b"no image")
    source = FileSource("six", str(tmp_path), tuple(paths), (0, 0, 1, 1, 0, 0), ("a", "b"))
    (tmp_path / "v4").rename(tmp_path / "elsewhere")
    return source


@pytest.fixture
def evaluation():
    results = {4: result([0, 0, 1, 1], [0.6] * 4), 8: result([1, 0, 0, 0], [0.6, 0.7, 0.9, 0.8])}
    return Evaluation(results, np.array([0, 2, 3, 5]), np.array([0, 1, 1, 0]), (1, 4))


def test_examples_are_right_ones_and_the_most_confident_wrong_ones(evaluation):
    assert choose_examples(evaluation) == [3, 2, 1, 0]


def test_a_record_is_json_with_counted_faults_and_strips(evaluation, source, tmp_path):
    costs = {n: {"gflops": 0.1 * n, "milliseconds": float(n)} for n in (4, 8)}
    facts = {"name": "efficient", "views": "1 clip x 1 crop", "size": 32}
    record = evaluation_record({"": evaluation}, source, clips=CLIPS, protocol=facts, costs=costs)
    (tmp_path / "run" / "strips").mkdir(parents=True)
    (tmp_path / "run" / "strips" / "old.jpg").touch()
    read = json.loads(write_record(tmp_path / "run", record, {"": evaluation}, source).read_text())
    data = read["data"]
    assert [data[name] for name in ("videos", "evaluated", "missing", "unreadable")] == [6, 4, 1, 1]
    assert [(fault["id"], fault["missing"]) for fault in data["faults"]] == [("v1", False), ("v4", True)]
    four, eight = read["frames"]
    assert (four["frames"], four["milliseconds"], eight["gflops"]) == (4, 4.0, 0.8)
    assert four["confusion"] == [[0, 0, 2], [1, 0, 1]]
    assert four["reliability"] == {"count": [0, 4], "confidence": [None, 0.75], "accuracy": [None, 0.5]}
    first = read["examples"][0]
    assert first == {"id": "v5", "label": 0, "guesses": {"4": [1, 0.6], "8": [0, 0.8]}, "strip": "strips/00.jpg"}
    assert sorted(path.name for path in (tmp_path / "run" / "strips").iterdir()) == [f"0{i}.jpg" for i in range(4)]
    assert imread(tmp_path / "run" / first["strip"]).shape == (96, 8 * 192 + 7 * 2, 3)


@pytest.fixture
def finish(evaluation, source, network, tmp_path):
    """Ends an evaluation and gives its record, as it is on disk, and the page."""

    def end(variables):
        model = network[0]
        _, path = finish_evaluation(
            {"": evaluation}, source, model, CLIPS, origin={}, checkpoint=None, folder=tmp_path, variables=variables
        )
        return json.loads(path.read_text()), (tmp_path / "index.html").read_text()

    return end


def test_pictures_show_where_the_network_looked(finish, network, tmp_path):
    record, page = finish({4: None, 8: network[1]})  # the largest count alone is looked at
    assert [clip["look"] for clip in record["examples"]] == [f"strips/0{i}-look.jpg" for i in range(4)]
    assert imread(tmp_path / "strips" / "03-look.jpg").shape == (96, 8 * 96 + 7 * 2, 3)
    assert page.count("Where the network looked in ") == 2 * 4
    assert "look_fault" not in record


def test_only_some_of_many_examples_are_looked_at(evaluation, source, tmp_path, monkeypatch):
    monkeypatch.setattr(record_module, "LOOKED", 3)
    costs = {n: {"gflops": 1.0} for n in (4, 8)}
    facts = {"name": "efficient", "views": "1 clip x 1 crop", "size": 32}
    record = evaluation_record({"": evaluation}, source, clips=CLIPS, protocol=facts, costs=costs)
    drawn = []

    def draw(item, example):
        drawn.append((item["id"], example["label"]))
        return np.zeros((4, 4, 3), np.uint8)

    read = json.loads(write_record(tmp_path / "run", record, {"": evaluation}, source, draw).read_text())
    assert [("look" in clip) for clip in read["examples"]] == [False, True, True, True]  # the right one has none
    assert drawn == [("v3", 1), ("v2", 1), ("v0", 0)]


def test_a_picture_that_fails_is_told_and_costs_nothing(finish, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of <memory>\nand much more")

    monkeypatch.setattr(record_module, "look", fail)
    with pytest.warns(UserWarning, match="no picture shows where the network looked: RuntimeError: out of <memory>"):
        record, page = finish({8: {}})
    assert record["look_fault"] == "RuntimeError: out of <memory>"
    assert not any("look" in clip for clip in record["examples"])
    assert len(record["frames"]) == 2
    assert "No picture shows where the network looked: RuntimeError: out of &lt;memory&gt;." in page


def test_a_program_has_no_gradient_to_look_at(finish):
    record, page = finish({8: lambda video: {}})
    assert not any("look" in clip for clip in record["examples"])
    assert "the network looked" not in page


def test_a_strip_shows_whole_frames_in_order(source):
    strip = film_strip(source[0]["video"])
    centres = strip[48, 96 :: 192 + 2, 0].astype(int)
    assert np.all(np.diff(centres) >= 0)
    assert (centres[0], centres[-1]) == (0, 160)


def test_faults_are_told_apart(source):
    assert "2.png" in find_fault(source, 1, CLIPS)["reason"]
    assert find_fault(source, 4, CLIPS)["missing"]
    assert "clip shorter than the frame count" in find_fault(source, 0, ClipConfig((8,), 32))["reason"]


def test_passes_join_only_over_the_same_videos(evaluation):
    other = Evaluation({16: evaluation.frames[8]}, evaluation.index, evaluation.label, (1, 4))
    assert list(join([{"": evaluation}, {"": other}])[""].frames) == [4, 8, 16]
    with pytest.raises(ValueError, match="got 2 at 4, 8 frames; 0 at 16 frames"):
        join([{"": evaluation}, {"": Evaluation(other.frames, other.index, other.label, ())}])


def test_a_digest_knows_ids_labels_and_sizes_and_neither_place_nor_order(tmp_path):
    def files(root, contents, classes=("a", "b")):
        (tmp_path / root).mkdir()
        for name, (content, _) in contents.items():
            (tmp_path / root / name).write_bytes(content)
        labels = tuple(classes.index(label) for _, label in contents.values())
        return digest_videos(FileSource(root, str(tmp_path / root), tuple(contents), labels, classes))

    own = {"x.mp4": (b"123", "a"), "y.mp4": (b"4", "b")}
    digest = files("own", own)
    assert files("moved", dict(reversed(own.items())), ("b", "a")) == digest
    others = {
        "renamed": {"z.mp4": own["x.mp4"], "y.mp4": own["y.mp4"]},
        "relabelled": {**own, "x.mp4": (b"123", "b")},
        "recoded": {**own, "x.mp4": (b"1234", "a")},
        "fewer": {"x.mp4": own["x.mp4"]},
    }
    assert len({digest, *(files(name, contents) for name, contents in others.items())}) == 5
    assert files("other names", own, ("a", "b", "c")) == digest  # what the network could answer is another matter


def test_each_set_of_videos_has_its_place(tmp_path):
    record = {"data": {"name": "folder test, 3 of 6", "videos": 3, "digest": "0123456789abcdef"}}
    other = tmp_path / "evaluations" / "folder-test-3-of-6-01234567"
    assert place_record(tmp_path, record, own=True) == tmp_path
    assert place_record(tmp_path, record, own=False) == other


@pytest.mark.parametrize(("digest", "own", "expected"), [
    ("0123456789abcdef", False, True), ("another", True, False), (None, True, True), (None, False, False),
])  # fmt: skip
def test_a_record_gives_way_only_to_one_of_its_own_videos(evaluation, source, tmp_path, digest, own, expected):
    facts = {"name": "efficient", "views": "1 clip x 1 crop", "size": 32}
    record = evaluation_record(
        {"": evaluation}, source, clips=CLIPS, protocol=facts, costs={n: {"gflops": 1.0} for n in (4, 8)}
    )
    data = {**record["data"], "digest": "0123456789abcdef"}
    del record["data"]["digest"]  # as older versions wrote it
    record["data"] |= {"digest": digest} if digest else {}
    (tmp_path / "evaluation.json").write_text(json.dumps(record))
    assert (place_record(tmp_path, {"data": data}, own) == tmp_path) == expected
    assert place_record(tmp_path, {"data": {**data, "videos": 7, "digest": "x"}}, own) != tmp_path


def test_an_earlier_checkpoint_has_a_place_of_its_own_and_the_end_of_training_the_folder(
    evaluation, source, network, tmp_path
):
    def finish(step, **more):
        record, path = finish_evaluation(
            {"": evaluation}, source, network[0], CLIPS, origin={}, checkpoint={"name": "best", "step": step},
            folder=tmp_path, **more
        )  # fmt: skip
        assert json.loads(path.read_text())["checkpoint"] == {"name": "best", "step": step} == record["checkpoint"]
        return path.parent

    assert finish(6) == tmp_path
    assert finish(9) == tmp_path  # of later weights
    digest = digest_videos(source)[:8]
    assert finish(6) == tmp_path / "evaluations" / f"six-{digest}-step-6"
    assert not (tmp_path / "any_frame.json").exists()
    assert finish(3, final=True) == tmp_path
    rows = json.loads((tmp_path / "any_frame.json").read_text())
    assert [row["frames"] for row in rows] == [4, 8]
    assert all(row["gflops"] > 0 and "confusion" not in row for row in rows)
    assert "Evaluation" in (tmp_path / "index.html").read_text()
