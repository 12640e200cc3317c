"""Damaged files of a run: one line that names the file. And records of older versions, which still load."""

import json

import pytest

from flaxvid.report.compare import group_by_data, name_runs
from flaxvid.report.page import write_page
from flaxvid.report.run import read_metrics, read_run
from flaxvid.report.tables import evaluation_notes

ROWS = [{"frames": n, "top1": 0.5, "top5": 1.0, "gflops": 4.1, "clips": 10} for n in (4, 8)]


def refused(folder, name):
    for use in (read_run, write_page):
        with pytest.raises(ValueError, match=rf"\b{name}\b") as error:
            use(folder)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize("name", ["recipe.json", "any_frame.json", "evaluation.json"])
@pytest.mark.parametrize(
    "content", [b"\xff\xfe{}", b"{", b"", b'"text"', b"3", b"null", b'["x"]', b"[" * 100_000, b'{"frames": \xe9}']
)
def test_what_is_no_utf_8_no_json_or_of_another_kind(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, name)


def test_an_empty_record_is_damaged(tmp_path):
    (tmp_path / "evaluation.json").write_text("{}")
    assert "expected protocol, got none" in refused(tmp_path, "evaluation.json")


def test_a_list_for_an_object_and_an_object_for_a_list(tmp_path):
    for name, content in (("recipe.json", "[]"), ("evaluation.json", "[1]"), ("any_frame.json", '{"a": 1}')):
        (tmp_path / name).write_text(content)
        refused(tmp_path, name)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("data",), None, "expected data, got none"),
        (("data",), [], "expected dict as data, got list"),
        (("data", "videos"), "12", "expected int as data.videos, got str"),
        (("data", "faults", 0, "missing"), 1, "expected bool as data.faults[0].missing, got int"),
        (("protocol", "size"), None, "expected protocol.size, got none"),
        (("frames",), [], "expected a row for each frame count, got none"),
        (("frames", 1, "top1"), "0.5", "expected int or float as frames[1].top1, got str"),
        (("frames", 1, "clips"), True, "expected int as frames[1].clips, got bool"),
        (("frames", 0, "gflops"), None, "expected frames[0].gflops, got none"),
        (("frames", 0, "confusion"), [[0, 3, 1]], "expected numbers of 3 classes in frames, got 3"),
        (("frames", 0, "confusion"), [[0, -1, 1]], "expected numbers of 3 classes in frames, got -1"),
        (("frames", 0, "confusion"), [[0, 1]], "expected [label, guess, videos] and [guess, confidence]"),
        (("frames", 0, "reliability", "count"), 3, "expected list as frames[0].reliability.count, got int"),
        (("examples", 0, "label"), 7, "expected numbers of 3 classes in examples, got 7"),
        (("examples", 0, "guesses"), {"4": [0, 0.5]}, "expected guesses at 8 frames of a.avi, got none"),
        (("examples", 0, "guesses"), {"4": 1, "8": 2}, "got something else"),
        (("examples", 0, "strip"), 3, "expected names of pictures of a.avi, got something else"),
        (("examples", 0, "look"), ["x"], "expected names of pictures of a.avi, got something else"),
        (("look_fault",), 3, "expected str as look_fault, got int"),
        (("classes",), {"action": ["a"]}, "expected class names, got none"),
        (("classes",), [1, 2, 3], "expected class names, got none"),
    ],
)
def test_an_evaluation_with_something_wrong_inside(evaluated, evaluation, path, value, message):
    *above, last = path
    place = evaluation
    for key in above:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    (evaluated / "evaluation.json").write_text(json.dumps(evaluation))
    assert message in refused(evaluated, "evaluation.json")


@pytest.mark.parametrize("row", [3, {}, {**ROWS[0], "top1": None}, {**ROWS[0], "frames": "4"}])
def test_rows_with_something_wrong_inside(tmp_path, row):
    (tmp_path / "any_frame.json").write_text(json.dumps([ROWS[1], row]))
    assert "[1]" in refused(tmp_path, "any_frame.json")


LINES = [b"\xff\xfe", b"[]", b"null", b"3", b'{"epoch": 1}', b'{"step": "1"}', b'{"step": 1', b"", b"[" * 99999]


@pytest.mark.parametrize("line", LINES)
def test_metrics_with_something_wrong_inside(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    for number, text in ((1, line + b'\n{"step": 2}\n'), (2, b'{"step": 2}\n' + line + b"\n")):
        path.write_bytes(text)
        wanted = f"expected a JSON object with its step in line {number} of {path}"
        assert wanted in refused(tmp_path, "metrics.jsonl")
    path.write_bytes(b'{"step": 2}\n' + line)  # a killed process may leave half a last line
    assert read_metrics(path) == ({"step": 2},)


def test_damaged_records_of_other_videos_are_named_too(evaluated):
    place = evaluated / "evaluations" / "other-12345678"
    place.mkdir(parents=True)
    (place / "evaluation.json").write_text("{}x")
    assert "other-12345678" in refused(evaluated, "evaluation.json")


def make_run(folder, root, clips, record=None, **data):
    folder.mkdir()
    recipe = {"data": {"name": "folder", "root": root, "eval_split": "test", **data}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    (folder / "any_frame.json").write_text(json.dumps([{**row, "clips": clips} for row in ROWS]))
    if record:
        (folder / "evaluation.json").write_text(json.dumps(record))
    return folder


def groups(*folders):
    return [set(group) for group in group_by_data(name_runs(folders)).values()]


def test_older_runs_stand_together_by_what_their_recipes_say(tmp_path):
    a, b = (make_run(tmp_path / name, "videos", 10) for name in "ab")
    other_root, other_count = make_run(tmp_path / "c", "more", 10), make_run(tmp_path / "d", "videos", 11)
    fold = make_run(tmp_path / "e", "videos", 10, fold=2)
    assert groups(a, b, other_root, other_count, fold) == [{"a", "b"}, {"c"}, {"d"}, {"e"}]


def test_older_runs_join_a_digest_only_where_it_must_be_theirs(tmp_path, evaluation):
    def record(digest):
        return {**evaluation, "data": {**evaluation["data"], "root": "/videos", "split": "test", "digest": digest}}

    old, new = make_run(tmp_path / "old", "videos", 10), make_run(tmp_path / "new", "videos", 10, record("one"))
    same = make_run(tmp_path / "same", "elsewhere", 10, record("one"))
    assert groups(old, new, same) == [{"old", "new", "same"}]
    changed = make_run(tmp_path / "changed", "videos", 10, record("two"))  # the folder's videos were others then
    assert groups(old, new, changed) == [{"old"}, {"new"}, {"changed"}]


def test_an_older_evaluation_of_other_videos_is_told_apart_by_their_number(tmp_path, evaluation):
    run = make_run(tmp_path / "run", "videos", 60, evaluation)
    read = read_run(run)
    assert read.evaluation == {}
    assert [other.data["name"] for other in read.others] == ["ucf101 test1"]
    assert "Evaluation on other videos, ucf101 test1" in write_page(run).read_text()
    assert groups(run, make_run(tmp_path / "second", "videos", 60)) == [{"run", "second"}]


def test_an_earlier_checkpoint_stands_beside_the_run_s_own_number(evaluated, evaluation, tmp_path):
    data = {**evaluation["data"], "digest": "12ab"}
    own = {**evaluation, "data": data, "checkpoint": {"name": "latest", "step": 9}}
    (evaluated / "evaluation.json").write_text(json.dumps(own))
    place = evaluated / "evaluations" / "ucf101-12ab-step-3"
    place.mkdir(parents=True)
    rows = [{**row, "top1": 0.125} for row in evaluation["frames"]]
    (place / "evaluation.json").write_text(json.dumps({**own, "frames": rows, "checkpoint": {"name": "3", "step": 3}}))
    (group,) = group_by_data(name_runs([evaluated])).values()
    assert {name: run.any_frame[0]["top1"] for name, run in group.items()} == {
        "evaluated": 0.5,
        "evaluated at step 3": 0.125,
    }
    page = write_page(evaluated).read_text()
    assert "Evaluation at step 3" in page
    assert "on other videos" not in page
    assert "Weights: checkpoint of step 3 (3)." in page
    (place / "evaluation.json").write_text(json.dumps({**own, "checkpoint": {"name": "3", "step": "3"}}))
    assert "expected int as checkpoint.step, got str" in refused(evaluated, "evaluation.json")


def test_notes_say_which_videos_and_classes(evaluation):
    assert len(evaluation_notes(evaluation)) == 3  # as in older records
    evaluation["data"] |= {"root": "/videos", "split": "all", "digest": "12ab", "by_number": True}
    for row in evaluation["frames"]:
        row["confusion"] = [[1, 0, 4]]
    notes = evaluation_notes(evaluation)
    assert "Data: ucf101 test1 in /videos, split all, 12 videos, digest 12ab." in notes
    assert "Labels: compared by number, because the names of the network's classes are unknown." in notes
    assert "Classes: videos of 1 of the network's 3 ($run$); an answer may be any of all classes." in notes
