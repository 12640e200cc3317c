"""Real evaluations of seconds: on data whose classes have other numbers or names, and where their records go."""

import dataclasses
import functools
import json
import shutil

import pytest

import flaxvid
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.report.compare import group_by_data, name_runs
from flaxvid.report.run import read_run
from flaxvid.train.recipe import DataRecipe


@pytest.fixture
def run(colour_run, tmp_path):
    """A copy of that run, to write into."""
    return shutil.copytree(colour_run, tmp_path / "run")


@pytest.fixture
def evaluate(call_script):
    return functools.partial(call_script, "evaluate.py")


def test_the_run_s_record_says_which_videos_it_is_of(colour_run, coloured_videos):
    videos, data = coloured_videos, read_run(colour_run).data
    assert (data["name"], data["root"], data["split"], data["videos"]) == ("folder test", str(videos), "test", 6)
    assert len(data["digest"]) == 16
    page = (colour_run / "index.html").read_text()
    assert f"Data: folder test in {videos}, split test, 6 videos, digest {data['digest']}." in page


def test_other_videos_are_matched_by_name_whole_and_filed_apart(run, make_videos, evaluate, capsys, tmp_path):
    own = (run / "evaluation.json").read_bytes()
    strips = sorted(path.name for path in (run / "strips").iterdir())
    other = make_videos(tmp_path / "other", {"green": "green", "red": "red"}, 3, 1)  # blue is missing: other numbers
    evaluate(run, "--root", other, "--split", "all")
    out = capsys.readouterr().out
    assert out.splitlines()[2].split("|")[2].strip() == "100.00"
    assert "6 of 6 of folder all evaluated" in out
    assert "videos of 2 of the network's 3 (green, red); an answer may be any of all classes" in out
    assert (run / "evaluation.json").read_bytes() == own
    assert sorted(path.name for path in (run / "strips").iterdir()) == strips
    (record,) = read_run(run).others
    assert (record.data["root"], record.data["split"], record.data["videos"]) == (str(other), "all", 6)
    assert record.evaluation["classes"] == ["blue", "green", "red"]
    assert record.evaluation["frames"][0]["confusion"] == [[1, 1, 3], [2, 2, 3]]
    page = (run / "index.html").read_text()
    assert f"Evaluation on other videos, folder all in {other}" in page
    assert page.count('alt="Frames from all of green/0.mp4"') == 1
    evaluate(run, "--root", other, "--split", "all")  # the same again takes its own place only
    assert len(read_run(run).others) == 1
    evaluate(run)  # and the run's own that of the run's
    assert len(read_run(run).others) == 1
    assert read_run(run).data["digest"] == json.loads(own)["data"]["digest"]


def test_a_part_of_the_own_videos_or_new_ones_among_them_are_other_videos(
    run, make_videos, coloured_videos, evaluate, tmp_path
):
    before = read_run(run).data["digest"]
    evaluate(run, "--limit", 3)
    assert [other.data["videos"] for other in read_run(run).others] == [3]
    assert read_run(run).data["digest"] == before
    copy = shutil.copytree(coloured_videos, tmp_path / "moved")
    evaluate(run, "--root", copy)  # the same videos in another place
    assert len(read_run(run).others) == 1
    assert read_run(run).data["root"] == str(copy)
    make_videos(copy, {"red": "red"}, 8, 5)  # the same names, other content
    evaluate(run, "--root", copy)
    assert len(read_run(run).others) == 2
    assert read_run(run).data["digest"] == before


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a_red": "red", "z_green": "green", "m_blue": "blue"}, r"network \(blue, green, red\), got none of them in"),
        ({"red": "red", "white": "white"}, r"got also white in folder all \(red, white\)"),
        ({"Red": "red", "green": "green", "blue": "blue"}, r"did you mean 'red' for 'Red'\? Names are not guessed"),
        ({"1": "red", "2": "green", "3": "blue"}, r"numbers are no names"),
    ],
)
def test_classes_that_the_run_never_saw_are_one_error(colour_run, make_videos, evaluate, tmp_path, classes, message):
    make_videos(tmp_path, classes, 1, 2)
    before = sorted(colour_run.rglob("*"))
    with pytest.raises(SystemExit, match=message) as error:
        evaluate(colour_run, "--root", tmp_path, "--split", "all")
    assert "--rename MAP.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(colour_run.rglob("*")) == before


def test_names_are_translated_by_a_file(run, make_videos, evaluate, capsys, tmp_path):
    other = make_videos(tmp_path / "other", {"a_red": "red", "z_green": "green", "m_lime": "green"}, 2, 3)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"a_red": "red", "z_green": "green", "m_lime": "green"}), encoding="utf-8-sig")
    evaluate(run, "--root", other, "--split", "all", "--rename", names)
    assert capsys.readouterr().out.splitlines()[2].split("|")[2].strip() == "100.00"
    for text, message in (
        (b"[1]", "expected .* as JSON in"),
        (b"\xff\xfe\x00", "expected .* as JSON in"),
        (b'{"a_red": 1}', "got 1$"),
        (b'{"red": "a_red"}', "got red: give the data's own name first"),
    ):
        names.write_bytes(text)
        with pytest.raises(SystemExit, match=message):
            evaluate(run, "--root", other, "--split", "all", "--rename", names)


def test_a_list_of_numbers_needs_names_and_with_them_any_order(run, make_videos, evaluate, capsys, tmp_path):
    make_videos(tmp_path, {"a": "red", "b": "blue"}, 2, 4)
    (tmp_path / "test.txt").write_text("a/0.mp4 0\na/1.mp4 0\nb/0.mp4 1\nb/1.mp4 1\n")
    with pytest.raises(SystemExit, match=r"numbers are no names: put the names into classes\.txt"):
        evaluate(run, "--data", "list", "--root", tmp_path)
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    evaluate(run, "--data", "list", "--root", tmp_path)
    assert capsys.readouterr().out.splitlines()[2].split("|")[2].strip() == "100.00"


def test_results_do_not_go_into_another_run(colour_run, run, evaluate):
    before = (run / "evaluation.json").read_bytes()
    with pytest.raises(SystemExit, match="expected a folder for the results, got that of another run"):
        evaluate(colour_run, "--output", run)
    assert (run / "evaluation.json").read_bytes() == before


def test_a_damaged_record_shows_before_the_work(run, evaluate, capsys):
    (run / "evaluation.json").write_bytes(b"\xff\xfe")
    with pytest.raises(SystemExit, match=r"expected a JSON object in .*evaluation\.json"):
        evaluate(run)
    assert "frames" not in capsys.readouterr().out


def test_a_run_of_an_older_version_says_where_its_names_are_from(run, evaluate, capsys):
    (run / "classes.json").unlink()
    record = json.loads((run / "evaluation.json").read_text())
    for key in ("root", "split", "digest"):
        del record["data"][key]
    (run / "evaluation.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"has no classes\.json: its class names are taken from its data set as it is"):
        evaluate(run)
    assert capsys.readouterr().out.splitlines()[2].split("|")[2].strip() == "100.00"
    assert "digest" in read_run(run).data
    assert not read_run(run).others


def test_compare_has_a_table_for_each_set_of_videos(run, colour_recipe, make_videos, evaluate, call_script, tmp_path):
    other = make_videos(tmp_path / "other", {"red": "red", "green": "green"}, 5, 6)
    data = DataRecipe("folder", str(other), clips=ClipConfig(short="repeat"))
    second = tmp_path / "second"
    flaxvid.run(dataclasses.replace(colour_recipe, data=data, epochs=1), second)
    assert [set(group) for group in group_by_data(name_runs([run, second])).values()] == [{"run"}, {"second"}]
    evaluate(run, "--root", other)
    evaluate(run, "--limit", 2)  # nothing to compare with: left out
    call_script("compare.py", run, second, "--output", tmp_path / "compare.html")
    groups = group_by_data(name_runs([run, second]))
    assert [set(group) for group in groups.values()] == [{"run", "second"}, {"run"}]
    page = (tmp_path / "compare.html").read_text()
    assert f"Accuracy on folder test in {other}, split test, 2 videos" in page
    assert f"Accuracy on folder test in {colour_recipe.data.root}, split test, 6 videos" in page
    assert "compare figures within this section only" in page
