"""The command line of scripts/predict.py: what people type, and what reads what it prints."""

import json
import os
import subprocess
import sys

import pytest
from matplotlib.image import imsave

from flaxvid.models.registry import create_model
from flaxvid.weights.native import WeightsInfo, save_variables


@pytest.fixture
def mixed(videos, tmp_path):
    """A folder of two videos and one that is none, in this order: a.mp4, broken.mp4, c.mp4."""
    for name in ("a.mp4", "c.mp4"):
        (tmp_path / name).write_bytes((videos / "a.mp4").read_bytes())
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and no more")
    return tmp_path


@pytest.fixture
def shell(weights):
    """Starts the script in a shell of its own, for pipes and exit statuses; the command's text follows --run."""

    def shell(text, **environment):
        command = f'"{sys.executable}" scripts/predict.py --run "{weights}" {text}'
        told = subprocess.run(["bash", "-c", command], capture_output=True, env={**os.environ, **environment})
        return told.returncode, told.stdout, told.stderr.decode(errors="backslashreplace")

    return shell


def names(out):
    return [json.loads(line)["video"] for line in out.splitlines()]


def test_flags_and_files_in_any_order(predict, mixed):
    a, c = mixed / "a.mp4", mixed / "c.mp4"
    for words in (
        ["--frames", 3, a, c],
        [a, "--frames", 3, c],
        [a, c, "--frames", 3],
        ["--frames=3", a, "--top", 2, c],
        ["--frames", 3, "--", a, c],
        [a, "--json", c, "--frames", 3],
    ):
        code, out, _ = predict(*words, "--json") if "--" not in words else predict("--json", *words)
        assert code == 0, words
        assert names(out) == [str(a), str(c)]
        assert {json.loads(line)["frames"] for line in out.splitlines()} == {3}


def test_several_counts_before_the_files(predict, mixed):
    code, _, err = predict("--budget-ms", 60_000, "--frames", 2, 3, mixed / "a.mp4")
    assert code == 0
    assert "3 frames a clip for 60000 ms" in err
    code, _, err = predict(mixed / "a.mp4", "--budget-ms", 60_000, "--frames", 2, "--frames", 3)
    assert "3 frames a clip for 60000 ms" in err


def test_names_that_look_like_something_else(predict, mixed, monkeypatch):
    monkeypatch.chdir(mixed)
    for name in ("-dash.mp4", "5", "--json", "a[1].mp4", "with space.mp4", "ü 走.mp4", ":car:.mp4", "[b].mp4"):
        (mixed / name).write_bytes((mixed / "a.mp4").read_bytes())
    code, out, _ = predict("--json", "--frames", 2, "--", "-dash.mp4", "5", "--json")
    assert (code, names(out)) == (0, ["-dash.mp4", "5", "--json"])
    code, out, _ = predict("--json", "a[1].mp4", "with space.mp4", "ü 走.mp4", ":car:.mp4", "[b].mp4", "a*4")
    assert names(out) == ["a[1].mp4", "with space.mp4", "ü 走.mp4", ":car:.mp4", "[b].mp4", "a.mp4"]


def test_whatever_is_in_a_name_it_is_one_line(shell, mixed):
    (mixed / "broken.mp4").unlink()
    for name in (b"caf\xe9.mp4", b"new\nline.mp4", b"\x1b[31mred.mp4", b"broken \xe9.mp4"):
        (mixed / os.fsdecode(name)).write_bytes(b"" if b"broken" in name else (mixed / "a.mp4").read_bytes())
    for encoding in ("utf-8:strict", "ascii:strict"):
        code, out, err = shell(f"'{mixed}'", PYTHONIOENCODING=encoding)
        assert (code, len(out.splitlines())) == (0, 5), err
        assert b"\x1b" not in out
        assert b"new\\nline.mp4" in out
        code, out, _ = shell(f"--json '{mixed}'", PYTHONIOENCODING=encoding)
        found = {os.fsencode(json.loads(line)["video"]) for line in out.decode("utf-8").splitlines()}
        assert code == 1
        assert found == {os.fsencode(path) for path in mixed.iterdir()}


def test_every_line_is_json_and_the_status_says_that_some_failed(predict, mixed):
    code, out, err = predict("--json", mixed, mixed / "none.mp4")
    rows = {os.path.basename(row["video"]): row for row in map(json.loads, out.splitlines())}
    assert code == 1
    assert list(rows) == ["a.mp4", "broken.mp4", "c.mp4", "none.mp4"]
    assert set(rows["broken.mp4"]) == set(rows["none.mp4"]) == {"video", "error"}
    assert "none.mp4: no such file" in rows["none.mp4"]["error"]
    assert "2 of 4 videos read, 2 unreadable" in err
    assert predict("--json", mixed / "a.mp4")[0] == 0
    assert predict(mixed)[0] == 0  # for people: somewhat was read


def test_messages_do_not_speak_of_lists(predict, mixed):
    """Nobody gave one."""
    code, out, err = predict("--json", mixed / "broken.mp4", mixed / "gone.mp4")
    assert code == 1
    assert "gone.mp4: no such file: check its path" in err
    assert " list" not in out + err


def test_windows_and_an_error_in_the_end(predict, mixed):
    imsave(mixed / "1.png", [[0.0, 1.0]] * 40)
    code, out, _ = predict("--json", "--window", 1.5, mixed / "a.mp4", mixed / "1.png", mixed / "c.mp4")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [row.get("start") for row in rows] == [0, 1.5, 3, None, 0, 1.5, 3]
    assert [row.get("end") for row in rows] == [1.5, 3, 4, None, 1.5, 3, 4]
    assert "times" in rows[3]["error"]


def test_a_reader_that_goes_ends_it_without_a_word(shell, mixed):
    code, out, err = shell(f"--json --window 0.1 '{mixed}'/a.mp4 '{mixed}'/c.mp4 | head -n 1; exit ${{PIPESTATUS[0]}}")
    assert len(out.splitlines()) == 1
    assert code in (0, 141)  # 0 if it was done before its reader went
    assert "Error" not in err
    assert "Traceback" not in err
    code, out, err = shell(f"'{mixed}'/a.mp4 '{mixed}'/c.mp4 | true; exit ${{PIPESTATUS[0]}}")
    assert (code, out, err) == (141, b"", "")


def test_a_pipe_gets_plain_text(shell, mixed):
    code, out, err = shell(f"'{mixed}' --budget-ms 60000 --frames 2", PYTHONIOENCODING="utf-8")
    assert code == 0
    assert b"\x1b" not in out
    assert "\x1b" not in err
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 3  # the budget, the broken one, the count


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top", 0], "argument --top: expected a whole number of at least 1, got '0'"),
        (["--top", -1], "argument --top: expected a whole number of at least 1, got '-1'"),
        (["--top", 1.5], "argument --top: expected a whole number of at least 1, got '1.5'"),
        (["--frames", 0], "argument --frames: expected a whole number of at least 1, got '0'"),
        (["--frames", -4, 8], "argument --frames: expected a whole number of at least 1, got '-4'"),
        (["--frames", "many"], "argument --frames: expected a whole number of at least 1, got 'many'"),
        (["--frames"], "argument --frames: expected one argument"),
        (["--window", 0], "argument --window: expected a number of at least 0.001, got '0'"),
        (["--window", -2], "argument --window: expected a number of at least 0.001, got '-2'"),
        (["--window", "nan"], "argument --window: expected a number of at least 0.001, got 'nan'"),
        (["--budget-ms", -1], "argument --budget-ms: expected a number of at least 0, got '-1'"),
        (["--budget-ms", "nan"], "argument --budget-ms: expected a number of at least 0, got 'nan'"),
        (["-"], "expected files, got -: a video is not read from stdin; save it to a file"),
        (["--framse", 3], "unrecognized arguments: --framse"),
    ],
)
def test_what_makes_no_sense_is_one_line(predict, videos, words, message):
    code, out, err = predict(videos / "a.mp4", *words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"predict.py: error: {message}")


def test_nothing_to_look_at(predict, tmp_path):
    code, _, err = predict("--frames", 3)
    assert code == 2
    assert "expected videos, got none" in err
    assert "expected videos or numbered images in" in predict(tmp_path)[0]
    assert "expected videos or numbered images in" in predict(tmp_path / "*.mp4")[0]


def test_more_classes_than_there_are(predict, videos):
    code, out, _ = predict(videos / "a.mp4", "--json", "--top", 1000)
    assert code == 0
    assert len(json.loads(out)["top"]) == 3


def test_one_video_by_several_names(predict, mixed, monkeypatch):
    monkeypatch.chdir(mixed)
    (mixed / "deep").mkdir()
    _, out, _ = predict("--json", "a.mp4", "./a.mp4", mixed / "a.mp4", "deep/../a.mp4", "*.mp4", mixed)
    assert names(out) == ["a.mp4", "broken.mp4", "c.mp4"]


def test_a_run_that_is_not_there_or_has_not_begun(predict, videos, tmp_path):
    code, *_ = predict(videos / "a.mp4", run=tmp_path / "none")
    assert "expected a run's folder or a .safetensors file, got no folder and no weights file at" in code
    (tmp_path / "recipe.json").write_text("{}")
    code, *_ = predict(videos / "a.mp4", run=tmp_path)
    assert code not in (0, None)
    code, *_ = predict(videos / "a.mp4", run=videos)
    assert "expected a run's folder with recipe.json" in code


def first_class(predict, video, classes, **more):
    code, out, _ = predict(video, "--json", "--classes", classes, **more)
    return code or json.loads(out)["top"]


def test_class_names_from_files(predict, videos, tmp_path):
    own = first_class(predict, videos / "a.mp4", write(tmp_path / "own.txt", b"first\nsecond\nthird\n"))
    other = {"first": "jumpür", "second": "ride a bike", "third": "走"}
    expected = [{**row, "class": other[row["class"]]} for row in own]
    text = "\n".join(other.values())
    for name, content in {
        "plain.txt": text.encode(),
        "windows.txt": text.replace("\n", "\r\n").encode("utf-8-sig") + b"\r\n\r\n",
        "notepad.txt": text.encode("utf-16"),
        "old_mac.txt": text.replace("\n", "\r").encode(),
        "classes.json": json.dumps(list(other.values())).encode(),
        "readable.JSON": json.dumps(list(other.values()), indent=1, ensure_ascii=False).encode("utf-8-sig"),
    }.items():
        assert first_class(predict, videos / "a.mp4", write(tmp_path / name, content)) == expected, name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("two.txt", b"jump\nrun", "expected names of the 3 classes of the network"),
        ("four.json", b'["a", "b", "c", "d"]', "expected names of the 3 classes of the network"),
        ("tasks.json", b'{"action": ["a", "b", "c"]}', "expected names of the 3 classes of the network"),
        ("empty.txt", b"\n \n", "empty.txt, one a line or as JSON"),
        ("empty.json", b"[]", "empty.json, one a line or as JSON"),
        ("latin.txt", "jump\nr\u00fcn\nfall".encode("latin-1"), "latin.txt, one a line or as JSON, in UTF-8, got 'utf"),
        ("half.json", b'["a", "b"', "half.json, one a line or as JSON, in UTF-8, got Expecting"),
        ("numbers.json", b'{"jump": 0, "run": 1, "fall": 2}', "numbers.json, one a line or as JSON such as"),
        ("text.json", b'"jump"', "text.json, one a line or as JSON such as"),
        ("nameless.json", b'["a", "", "c"]', "nameless.json, one a line or as JSON such as"),
    ],
)
def test_files_that_name_no_classes(predict, videos, tmp_path, name, content, message):
    assert message in first_class(predict, videos / "a.mp4", write(tmp_path / name, content))
    assert "none.txt" in first_class(predict, videos / "a.mp4", tmp_path / "none.txt")


def test_class_names_of_several_targets(predict, videos, random_variables, tmp_path):
    overrides = {"image_size": 32, "width": 8, "depths": (1,), "num_frames": 4}
    overrides["num_classes"] = {"action": 2, "actor": 3}
    weights = tmp_path / "two.safetensors"
    variables = random_variables(create_model("tsm_resnet18", **overrides))
    save_variables(weights, variables, WeightsInfo("tsm_resnet18", overrides))
    classes = {"action": ["jump", "run"], "actor": ["cat", "dog", "ant"]}
    file = write(tmp_path / "classes.json", json.dumps(classes).encode("utf-8-sig"))
    top = first_class(predict, videos / "a.mp4", file, run=weights)
    assert {task: {row["class"] for row in rows} for task, rows in top.items()} == {
        task: set(own) for task, own in classes.items()
    }
    for wrong in ({"action": ["jump", "run"]}, {"action": ["a", "b"], "actor": ["a"]}, ["jump", "run"]):
        file = write(tmp_path / "wrong.json", json.dumps(wrong).encode())
        assert "of the network" in first_class(predict, videos / "a.mp4", file, run=weights)


def write(path, content):
    path.write_bytes(content)
    return path
