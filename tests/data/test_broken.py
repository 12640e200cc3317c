"""Videos broken in four ways: an empty file, no video at all, cut off, and gone after the list was read."""

import itertools
import re
from pathlib import Path

import chex
import numpy as np
import pytest

from flaxvid.data.broken import BrokenVideosError, Tally, why_broken
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.clips.decode import VideoError
from flaxvid.data.pipeline import eval_batches, train_batches
from flaxvid.data.sources.open import FileSource, open_source

CLIPS = ClipConfig(frames=(2, 4), image_size=24, test_size=28)
REASONS = {
    1: r"1\.mp4: expected a video, got an empty or damaged file",
    4: r"4\.mp4: expected a video, got an empty or damaged file",
    6: r"6\.avi: clip shorter than the frame count: expected at least 4 frames, got [123]:",
    7: r"7\.mp4: no such file: check",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_video):
    """Ten videos, four of them broken."""
    root = tmp_path_factory.mktemp("broken")
    for i in range(10):
        write_video(root / "train" / ("run" if i < 5 else "sit") / f"{i}.{'avi' if i == 6 else 'mp4'}", noise=i == 6)
    source = open_source("folder", root)
    assert isinstance(source, FileSource)
    paths = [Path(source[i]["video"]) for i in range(10)]
    paths[1].write_bytes(b"")
    paths[4].write_bytes(b"no video at all" * 100)
    paths[6].write_bytes(paths[6].read_bytes()[: paths[6].stat().st_size // 6])
    paths[7].unlink()
    return source


def take(batches, count):
    return list(itertools.islice(batches, count))


def test_training_replaces_names_and_goes_on(source):
    batches = take(train_batches(source, CLIPS, 5), 8)
    index, broken = (np.concatenate([batch[key] for batch in batches]) for key in ("index", "broken"))
    assert set(broken) == {-1, *REASONS}
    assert not set(index) & set(REASONS)
    for epoch in range(4):  # every video in its turn, itself or its replacement
        rows = slice(10 * epoch, 10 * epoch + 10)
        assert set(np.where(broken[rows] < 0, index[rows], broken[rows])) == set(range(10))
    for batch in batches:
        np.testing.assert_array_equal(batch["label"], batch["index"] >= 5)
        assert batch["video"][4].any(axis=(1, 2, 3, 4)).all()
    assert len(set(index[broken >= 0])) > 3  # replacements differ


def test_replacements_resume_exactly(source):
    batches = train_batches(source, CLIPS, 5)
    take(batches, 3)
    state = batches.get_state()
    expected = take(batches, 4)
    resumed = train_batches(source, CLIPS, 5, num_threads=1)
    resumed.set_state(state)
    chex.assert_trees_all_equal(take(resumed, 4), expected)


def test_evaluation_masks_them(source):
    batches = list(eval_batches(source, CLIPS, 4))
    whole = {key: np.concatenate([batch[key] for batch in batches]) for key in ("index", "broken", "mask", "label")}
    np.testing.assert_array_equal(whole["index"], [*range(10), -1, -1])
    np.testing.assert_array_equal(whole["broken"], [i if i in REASONS else -1 for i in range(10)] + [-1, -1])
    np.testing.assert_array_equal(whole["mask"], [i not in REASONS for i in range(10)] + [False, False])
    np.testing.assert_array_equal(whole["label"], [0] * 5 + [1] * 5 + [0, 0])


def test_the_tally_counts_and_names(source):
    tally, lines = Tally(source, CLIPS), []
    for batch in take(train_batches(source, CLIPS, 5), 6):
        lines += tally.add(batch)
    assert len(tally.seen) == 10
    assert set(tally.broken) == set(REASONS)
    assert sorted(lines) == sorted(tally.broken.values())
    for position, reason in REASONS.items():
        assert re.search(reason, tally.broken[position]), tally.broken[position]


def row(index, broken=-1):
    return {"index": np.array([index]), "broken": np.array([broken])}


def test_too_many_stop_the_run_with_the_list(source):
    tally = Tally(source, CLIPS, limit=0.25)
    assert tally.add(row(0)) == []
    assert len(tally.add(row(0, broken=1))) == 1  # 1 of 2, but the share is taken of all ten at least
    assert tally.add(row(2, broken=1)) == []
    tally.add(row(3, broken=4))
    with pytest.raises(
        BrokenVideosError, match="expected at most 25% broken videos, got 3 among the first 4 of 10: "
    ) as e:
        tally.add(row(0, broken=7))
    assert [bool(re.search(reason, str(e.value))) for reason in REASONS.values()] == [True, True, False, True]


def test_the_share_of_a_large_set_is_judged_early():
    class Large:
        name, classes, flip_labels = "large", ("one",), None

        def __len__(self):
            return 10**6

        def __getitem__(self, index):
            raise FileNotFoundError(f"no {index}")

    tally = Tally(Large(), CLIPS, limit=0.1)
    for i in range(100):
        assert tally.add(row(1000 + i, broken=i)) == [f"video {i}: no {i}"]
    with pytest.raises(BrokenVideosError, match="got 101 among the first 101 of 1000000"):
        tally.add(row(5000, broken=100))


def test_a_fault_that_is_gone(source):
    assert why_broken(source, 0, CLIPS).endswith("0.mp4: could be read this time: check the disk or the network")


class DamagedRecords:
    """A source whose own storage is damaged at position 3: it gives no item there."""

    name, classes, flip_labels = "damaged", ("run", "sit"), None

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 3:
            raise VideoError("record 3 of shard 0: checksum")
        return {"video": self.path, "label": index % 2, "id": str(index)}


def test_a_damaged_record_is_replaced_and_named_as_a_damaged_file_is(source):
    damaged = DamagedRecords(source[0]["video"])
    tally = Tally(damaged, CLIPS, limit=0.5)
    said = [line for batch in take(train_batches(damaged, CLIPS, 3), 2) for line in tally.add(batch)]
    assert said == ["video 3: record 3 of shard 0: checksum"]
    assert [batch["broken"].tolist() for batch in eval_batches(damaged, CLIPS, 6)] == [[-1, -1, -1, 3, -1, -1]]
