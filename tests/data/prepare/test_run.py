import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from flaxvid.data.clips.decode import decode
from flaxvid.data.prepare import run as prepare_module
from flaxvid.data.prepare.examine import Encoding
from flaxvid.data.prepare.run import Preparation, prepare
from flaxvid.data.sources.open import open_source

SCRIPT = Path(__file__).parents[3] / "scripts" / "prepare_data.py"


@pytest.fixture
def nasty(tmp_path, write_video):
    """A list of videos with everything wrong with it."""
    root = tmp_path / "videos"
    for i in range(3):
        write_video(root / f"train{i}.mp4", frames=6 + i, noise=True)
    write_video(root / "test.mp4", frames=12, width=64)
    write_video(root / "short.mp4", frames=2)
    (root / "copy.mp4").write_bytes((root / "train1.mp4").read_bytes())
    (root / "broken.mp4").write_bytes((root / "test.mp4").read_bytes()[:500])
    train = ["train0.mp4 0", "broken.mp4 1", "train1.mp4 1", "gone.mp4 0", "train2.mp4 0"]
    (root / "train.txt").write_text("\n".join(train))
    (root / "test.txt").write_text("test.mp4 1\nshort.mp4 0\ncopy.mp4 1\n")
    return root


def padding(number, size=0):
    """A box that players pass over, to make an MP4 another file, or larger."""
    return (size + 12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big") + bytes(size)


def sources(root):
    return {split: open_source("list", root, split, missing="keep") for split in ("train", "test")}


def times(output):
    return {path.name: path.stat().st_mtime_ns for path in (*output.glob("*record-*"), *output.glob("parts/*.json"))}


def test_prepare(nasty, tmp_path, write_video):
    output, what = tmp_path / "out", Preparation("clips", min_frames=3, shard_size=2)
    report = prepare(sources(nasty), output, what, workers=2)
    train, test = report.splits["train"], report.splits["test"]
    assert (train.videos, train.good, train.missing, list(train.unreadable)) == (5, 3, ("gone.mp4",), ["broken.mp4"])
    assert (train.shortest, train.median, train.longest) == (6, 7, 8)
    assert (test.videos, test.good, test.short) == (3, 2, {"short.mp4": 2})
    assert [(pair.splits, pair.ids, pair.kind) for pair in report.duplicates] == [
        (("train", "test"), ("train1.mp4", "copy.mp4"), "same file")
    ]
    assert json.loads((output / "report.json").read_text())["splits"]["test"]["short"] == {"short.mp4": 2}

    stored = open_source("tfds", output)
    assert [(stored[i]["id"], stored[i]["label"]) for i in range(3)] == [(f"train{i}.mp4", i % 2) for i in range(3)]
    assert all(stored[i]["video"] == (nasty / f"train{i}.mp4").read_bytes() for i in range(3))
    by_tfds = tfds.builder_from_directory(str(output)).as_data_source("test")
    assert [by_tfds[i]["id"] for i in range(len(by_tfds))] == [b"test.mp4", b"copy.mp4"]

    before = times(output)
    assert len(before) == 10
    assert prepare(sources(nasty), output, what, workers=1) == report
    assert times(output) == before

    write_video(nasty / "broken.mp4", frames=9, height=64)  # repaired: its shard is done again, and no other
    repaired = prepare(sources(nasty), output, what, workers=1)
    assert (repaired.splits["train"].good, repaired.splits["train"].longest) == (4, 9)
    changed = {name for name, when in times(output).items() if before[name] != when}
    assert changed == {"train-00000.json", "clips-train.array_record-00000"}
    assert [open_source("tfds", output)[i]["id"] for i in (0, 1, 2)] == ["train0.mp4", "broken.mp4", "train1.mp4"]


def test_other_work_in_the_folder(nasty, tmp_path):
    splits, output = sources(nasty), tmp_path / "out"
    check = Preparation(store=False)
    assert not prepare(splits, output, check, workers=1).clean
    assert not list(output.glob("*record*"))
    with pytest.raises(ValueError, match=r"options as before, got a different min_frames, shard_size:"):
        prepare(splits, output, Preparation(store=False, min_frames=2, shard_size=8), workers=1)
    (nasty / "train.txt").write_text("train0.mp4 1\n")
    with pytest.raises(ValueError, match=r"as before, got a different split train: choose another folder"):
        prepare(sources(nasty), output, check, workers=1)
    with open(output / "parts" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"got .*out, where another one works: wait"):
            prepare(splits, output, check, workers=1)
    with pytest.raises(ValueError, match=r"expected a new or empty folder, or one of an earlier run, got .*videos"):
        prepare(splits, nasty, check, workers=1)


def test_nothing_good_to_store(nasty, tmp_path):
    with pytest.raises(ValueError, match=r"got none in train, test: read why in .*report.json"):
        prepare(sources(nasty), tmp_path / "out", Preparation(min_frames=100), workers=1)
    with pytest.raises(FileNotFoundError, match=r"expected a prepared data set .*, got none: .* was stopped"):
        open_source("tfds", tmp_path / "out")


def test_options_that_make_no_sense(nasty, tmp_path):
    with pytest.raises(ValueError, match="expected an encoding only with a data set to store"):
        Preparation(store=False, encoding=Encoding())
    with pytest.raises(ValueError, match="expected min_frames and shard_size of at least 1"):
        Preparation(shard_size=0)
    train = sources(nasty)["train"]
    (nasty / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="expected the same classes in all splits, got 2 different"):
        prepare({"train": train, "test": sources(nasty)["test"]}, tmp_path / "out", Preparation(), workers=1)


def command(*arguments):
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the children of a process in /proc")
def test_killed_and_run_again(tmp_path, write_video):
    root, count = tmp_path / "videos", 30
    one = write_video(root / "0.mp4", frames=30, height=96, width=96, noise=True).read_bytes()
    for i in range(count):  # one file under two labels would be a finding
        (root / f"{i}.mp4").write_bytes(one + padding(i))
    write_video(root / "9.mp4", frames=30, height=720, width=960, noise=True)  # time enough to be killed
    (root / "train.txt").write_text("".join(f"{i}.mp4 {i % 2}\n" for i in range(count)))
    options = ("--splits", "train", "--short-side", 64, "--shard-size", 2, "--workers", 1)
    arguments = ("list", root, tmp_path / "out", *options)
    first = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    parts = tmp_path / "out" / "parts"
    while len(list(parts.glob("train-*.json"))) < 2 and first.poll() is None:
        time.sleep(0.005)
    family = children(first.pid)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    done = times(tmp_path / "out")
    assert 2 <= sum(name.endswith(".json") for name in done) < count // 2
    assert family
    deadline = time.monotonic() + 120
    while any(map(running, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(running, family))  # workers end with their parent
    again = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "All videos are good." in again.stdout
    kept = {name: when for name, when in times(tmp_path / "out").items() if name in done}
    finished = {name for name in done if name.endswith(".json")}
    assert {name: kept[name] for name in finished} == {name: done[name] for name in finished}
    stored = open_source("tfds", tmp_path / "out")
    items = [stored[i] for i in range(len(stored))]
    assert [(item["id"], item["label"]) for item in items] == [(f"{i}.mp4", i % 2) for i in range(count)]
    assert decode(stored[count - 1]["video"], [29]).shape == (1, 64, 64, 3)


def test_script(nasty, tmp_path):
    check = command("list", nasty, tmp_path / "out", "--check-only", "--workers", 1)
    found = subprocess.run(check, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stderr
    assert "gone.mp4" in found.stdout
    assert "same file" in found.stdout
    assert f"All findings: {tmp_path / 'out'}/report.json" in found.stdout
    wrong = subprocess.run(command("ucf101", nasty, tmp_path / "no"), capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("FileNotFoundError: expected ")
    assert wrong.stderr.count("\n") == 1
    assert "classInd.txt" in wrong.stderr
    assert not os.path.exists(tmp_path / "no")


def test_one_file_under_two_labels(tmp_path, write_video):
    root = tmp_path / "videos"
    for i in range(4):
        write_video(root / f"{i}.mp4", frames=4 + i, noise=True)
    for copy in ("copy", "again"):
        (root / f"{copy}.mp4").write_bytes((root / "1.mp4").read_bytes())
    (root / "train.txt").write_text("0.mp4 0\n1.mp4 1\ncopy.mp4 0\n2.mp4 1\n")
    (root / "test.txt").write_text("3.mp4 0\nagain.mp4 0\n")
    report = prepare(sources(root), tmp_path / "out", Preparation(store=False), workers=1)
    assert [(pair.splits, pair.ids, pair.kind) for pair in report.duplicates] == [
        (("train", "train"), ("1.mp4", "copy.mp4"), "same file, two labels"),
        (("train", "test"), ("1.mp4", "again.mp4"), "same file, two labels"),
        (("train", "test"), ("copy.mp4", "again.mp4"), "same file"),
    ]
    assert not report.clean
    arguments = ("list", root, tmp_path / "shown", "--check-only", "--workers", 1)
    found = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "two labels" in found.stdout
    assert [line.split() for line in found.stderr.splitlines()[:3]] == [
        ["class", "train", "test"],
        ["0", "2", "2"],
        ["1", "2", "0"],
    ]
    assert "classes without test videos: 1" in found.stderr


@pytest.mark.parametrize("name", ["ju\nmp", "ju\u2028mp", os.fsdecode(b"caf\xe9")])
def test_class_names_that_cannot_be_stored_show_before_the_work(tmp_path, write_video, name):
    for place in ("run", name):
        write_video(tmp_path / "videos" / place / "a.mp4", frames=2)
    splits = {"train": open_source("folder", tmp_path / "videos")}
    with pytest.raises(ValueError, match=r"expected class names of one line in UTF-8, .*: rename the class"):
        prepare(splits, tmp_path / "out", Preparation(), workers=1)
    assert not (tmp_path / "out").exists()
    assert prepare(splits, tmp_path / "out", Preparation(store=False), workers=1).splits["train"].good == 2


def test_an_output_among_class_folders_is_refused(tmp_path, write_video):
    for name in ("run/a", "run/b", "jump/a", "jump/b"):
        write_video(tmp_path / f"{name}.mp4", frames=2)
    splits = {split: open_source("folder", tmp_path, split) for split in ("train", "test")}
    with pytest.raises(
        ValueError, match=r"expected an output folder outside of .*, got .*out: there it would be a class"
    ):
        prepare(splits, tmp_path / "out", Preparation(store=False), workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("preparation.json", "{", r"expected a JSON object in .*preparation.json, got a damaged file"),
        ("parts/train-00000.json", "[", r"expected a JSON list in .*train-00000.json, got a damaged file"),
        ("parts/train-00000.json", '[{"no": 1}]', r"expected findings in .*train-00000.json, got something else"),
    ],
)
def test_damaged_findings_are_named(tmp_path, write_video, name, content, message):
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.mp4", frames=2)
    (tmp_path / "videos" / "train.txt").write_text("0.mp4 0\n1.mp4 1\n")
    splits = {"train": open_source("list", tmp_path / "videos")}
    prepare(splits, tmp_path / "out", Preparation(store=False), workers=1)
    (tmp_path / "out" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        prepare(splits, tmp_path / "out", Preparation(store=False), workers=1)


@pytest.mark.parametrize("shard_size", [3, 256])
def test_large_videos_are_few_in_memory(tmp_path, write_video, monkeypatch, shard_size):
    """Bytes that were read and not yet written, counted as the work goes on."""
    root, size, count = tmp_path / "videos", 2**20, 12
    one = write_video(root / "0.mp4", frames=2).read_bytes()
    for i in range(count):
        (root / f"{i}.mp4").write_bytes(one + padding(i, size))
    (root / "train.txt").write_text("".join(f"{i}.mp4 {i % 2}\n" for i in range(count)))
    monkeypatch.setattr("flaxvid.data.prepare.run.IN_FLIGHT", 3 * size)
    flight = {"submitted": 0, "written": 0, "most": 0}
    writer = prepare_module.shard_writer

    def counting_writer(classes):
        write = writer(classes)

        def counted(examples):
            for example in examples:
                flight["most"] = max(flight["most"], flight["submitted"] - flight["written"])
                yield example
                flight["written"] += len(example["video"])

        return lambda path, examples: write(path, counted(examples))

    def counting_size(item):
        flight["submitted"] += os.path.getsize(item["video"])
        return os.path.getsize(item["video"])

    monkeypatch.setattr(prepare_module, "shard_writer", counting_writer)
    monkeypatch.setattr(prepare_module, "_size", counting_size)
    splits = {"train": open_source("list", root)}
    prepare(splits, tmp_path / "out", Preparation(shard_size=shard_size), workers=1)
    stored = open_source("tfds", tmp_path / "out")
    assert [len(stored[i]["video"]) for i in range(count)] == [len(one) + size + 12] * count
    assert 2 * size < flight["most"] <= 5 * size  # three under way, one that is written, one that waits to be sent
