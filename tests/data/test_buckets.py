"""Videos of like length in one batch."""

import collections
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from flaxvid.data.buckets import bucket_sizes, describe_buckets, sort_by_length
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.pipeline import steps_per_epoch, train_batches
from flaxvid.data.sources.open import FileSource

LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
CLIPS = ClipConfig(frames=(2, 4, 8), image_size=16, short="repeat")


@pytest.fixture(scope="module")
def source(encode_video, tmp_path_factory):
    """Twelve videos of 1 to 12 frames, in this order."""
    folder = tmp_path_factory.mktemp("lengths")
    for length in LENGTHS:
        pictures = np.full((length, 16, 16, 3), 20 * length, np.uint8)
        encode_video(folder / f"{length:02}.mp4", pictures, preset="ultrafast")
    paths = tuple(f"{length:02}.mp4" for length in LENGTHS)
    return FileSource("lengths", str(folder), paths, tuple(range(12)), tuple(map(str, LENGTHS)))


def lengths(buckets):
    return {count: [LENGTHS[position] for position in own] for count, own in buckets.items()}


def test_a_video_gets_the_most_frames_that_it_has(source):
    thirds = ClipConfig(frames=(3, 6, 12), image_size=16)
    assert lengths(sort_by_length(source, thirds, 1)) == {3: [1, 2, 3, 4, 5], 6: [6, 7, 8, 9, 10, 11], 12: [12]}
    dense = ClipConfig(frames=(2, 4), image_size=16, sampling="dense", interval=3)
    assert lengths(sort_by_length(source, dense, 1)) == {2: [1, 2, 3, 4, 5, 6, 7, 8, 9], 4: [10, 11, 12]}


def test_a_count_with_too_few_videos_gives_them_to_the_next_lower_one(source):
    assert bucket_sizes((8, 2, 4), 3) == {2: 12, 4: 6, 8: 3}
    # Four videos do not make a batch of 2 x 3 at 4 frames; with them there are seven of twelve at 2 frames.
    with pytest.raises(
        ValueError, match=r"lengths: expected at least one batch of 12 videos at 2 frames, got 7: leave 2"
    ):
        sort_by_length(source, CLIPS, 3)
    # Five at 8 frames are too few for six; without them the longest clips have 4 frames.
    assert lengths(sort_by_length(source, ClipConfig((4, 8), 16), 6)) == {4: list(LENGTHS)}


def test_what_cannot_be_read_is_of_the_fewest(source, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    broken = FileSource("two", str(tmp_path), ("broken.mp4", "none.mp4"), (0, 0), ("a",))
    assert sort_by_length(broken, CLIPS, 1) == {2: (0, 1)}


def test_a_scene_is_as_long_as_its_shortest_camera(source):
    reverse = FileSource(source.name, source.root, source.paths[::-1], source.labels, source.classes)
    pairs = zip(source, reverse, strict=True)
    scenes = [{"id": str(i), "video": {"front": a["video"], "left": b["video"]}} for i, (a, b) in enumerate(pairs)]
    found = lengths(sort_by_length(scenes, ClipConfig((2, 4), 16), 1))
    assert found == {2: [1, 2, 3, 10, 11, 12], 4: [4, 5, 6, 7, 8, 9]}


def epoch(batches, steps):
    """The batches of an epoch as (frame count, positions of the videos)."""
    found = []
    for _ in range(steps):
        batch = next(batches)
        ((count, video),) = batch["video"].items()
        assert video.shape == (len(batch["index"]), count, 16, 16, 3)
        assert (np.abs(video.mean((1, 2, 3, 4)) - 20 * (batch["index"] + 1)) < 8).all()  # the clip is the video's own
        np.testing.assert_array_equal(batch["label"], batch["index"])
        found.append((count, batch["index"].tolist()))
    return found


def test_a_batch_has_one_count_and_about_as_many_frames_as_any_other(source):
    buckets = {2: (0, 1, 2, 3, 4, 5, 6, 7), 8: (8, 9, 10, 11)}
    assert steps_per_epoch(source, 1, buckets=buckets) == 2 + 4
    assert describe_buckets(buckets, 1) == "by length: 8 videos at 2 frames, 4 a batch; 4 videos at 8 frames, 1 a batch"
    batches = train_batches(source, CLIPS, 1, seed=3, buckets=buckets)
    orders = []
    for _ in range(3):
        found = epoch(batches, 6)
        assert collections.Counter(count for count, _ in found) == {2: 2, 8: 4}
        seen = [position for _, positions in found for position in positions]
        assert sorted(seen) == list(range(12))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_repeats_and_shards_share_the_batches(source):
    buckets = {2: (0, 1, 2, 3, 4, 5, 6, 7), 4: (8, 9, 10, 11)}
    whole = epoch(train_batches(source, CLIPS, 4, buckets=buckets), 2)
    shards = [epoch(train_batches(source, CLIPS, 2, shard_index=i, shard_count=2, buckets=buckets), 2) for i in (0, 1)]
    for (count, positions), *parts in zip(whole, *shards, strict=True):
        assert [own for own, _ in parts] == [count, count]
        assert sorted(itertools.chain(*(indices for _, indices in parts))) == sorted(positions)
    twice = epoch(train_batches(source, dataclasses.replace(CLIPS, repeats=2), 4, buckets=buckets), 4)
    assert [len(positions) for count, positions in twice] == [{2: 8, 4: 4}[count] for count, _ in twice]
    assert all(positions[: len(positions) // 2] == positions[len(positions) // 2 :] for _, positions in twice)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_resume_where_they_stopped(source, workers):
    buckets = {2: (0, 1, 2, 3, 4, 5, 6, 7), 8: (8, 9, 10, 11)}
    batches = train_batches(source, CLIPS, 1, num_workers=workers, buckets=buckets)
    epoch(batches, 4)
    state = json.loads(json.dumps(batches.get_state()))
    expected = epoch(batches, 5)
    again = train_batches(source, CLIPS, 1, num_workers=workers, buckets=buckets)
    again.set_state(state)
    assert epoch(again, 5) == expected
    for data in (batches, again):
        data.close()


def test_a_broken_video_is_replaced_by_one_of_its_bucket(source, tmp_path):
    for path in source.paths[:4]:
        (tmp_path / path).write_bytes((Path(source.root) / path).read_bytes())
    (tmp_path / source.paths[2]).write_bytes(b"no video")
    broken = dataclasses.replace(source, root=str(tmp_path))
    batches = train_batches(broken, CLIPS, 1, buckets={2: (0, 1, 2), 4: (3,)})
    replaced = [batch["index"].tolist() for batch in (next(batches) for _ in range(12)) if 2 in batch["broken"]]
    assert replaced
    assert set(itertools.chain(*replaced)) == {0, 1}
    with pytest.raises(ValueError, match="at least one batch of videos, got 1 in lengths for 1 x 2"):
        train_batches(source, CLIPS, 2, buckets={4: (1,)})
