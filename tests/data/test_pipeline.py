import dataclasses
import itertools
import subprocess
import sys
import time

import chex
import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flaxvid.data.clips.cut import Augmentation, ClipConfig
from flaxvid.data.clips.decode import VideoError
from flaxvid.data.pipeline import eval_batches, steps_per_epoch, train_batches
from flaxvid.data.sources.open import FileSource, open_source

CLIPS = ClipConfig(frames=(2, 4), image_size=24, test_size=28)


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_video):
    """Seven videos of 20 frames and 32 x 48 pixels in two directional classes."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(7):
        write_video(root / "train" / ("turn_left" if i < 4 else "turn_right") / f"{i}.mp4")
    return root


@pytest.fixture(scope="module")
def source(root):
    return open_source("folder", root)


def take(batches, count):
    return list(itertools.islice(batches, count))


def test_training_batch(source, frame_numbers):
    batch = next(train_batches(source, CLIPS, 3))
    assert set(batch) == {"video", "label", "index", "broken"}
    assert list(batch["video"]) == [2, 4]
    for n, video in batch["video"].items():
        chex.assert_shape(video, (3, n, 24, 24, 3))
        assert video.dtype == np.uint8
    np.testing.assert_array_equal(batch["broken"], -1)
    for key in ("label", "index", "broken"):
        chex.assert_shape(batch[key], (3,))
        assert batch[key].dtype == np.int32


def test_segments_and_independent_draws(source, frame_numbers):
    """The right edge of an unflipped picture tells the frame number: 20 frames, so 10 a segment of 2 and 5 of 4."""
    batches = take(train_batches(source, ClipConfig((2, 4), 24, scales=(1.0,), flip=False), 7), 6)
    two, four = (np.concatenate([frame_numbers(batch["video"][n]) for batch in batches]) for n in (2, 4))
    np.testing.assert_array_equal(two // 10, np.broadcast_to([0, 1], two.shape))
    np.testing.assert_array_equal(four // 5, np.broadcast_to([0, 1, 2, 3], four.shape))
    assert len({tuple(row) for row in two}) > 20
    assert (two[:, 0] != four[:, 0]).any()


def test_one_flip_and_one_crop_for_all_frames_and_its_label(source):
    """The left half is 20 brighter, the right half in a mirror; how many columns are, tells the crop."""
    flips, widths = 0, set()
    for batch in take(train_batches(source, ClipConfig((2, 4), 24, scales=(1.0, 0.875), flip=True), 7), 4):
        columns = np.concatenate([batch["video"][n][..., 0].mean(2) for n in (2, 4)], axis=1)  # (b, 6, w)
        for row, index in enumerate(batch["index"]):
            bright = columns[row] > columns[row].mean(1, keepdims=True)
            assert (bright == bright[0]).mean() > 0.9  # an edge may fall between two columns
            flipped = bool(bright[0, -1])
            assert batch["label"][row] == (index >= 4) ^ flipped
            flips += flipped
            widths.add(int(bright[0].sum()))
    assert 6 < flips < 22
    assert len(widths) > 4


def test_no_flip_where_labels_forbid_it(tmp_path, write_video):
    write_video(tmp_path / "a.mp4")
    source = FileSource("one", str(tmp_path), ("a.mp4",), (0,), ("look_left",))
    assert source.flip_labels == (None,)
    for batch in take(train_batches(source, ClipConfig((2,), 32, scales=(1.0,), flip=True), 1), 8):
        assert batch["label"][0] == 0
        assert batch["video"][2][..., 0, 0].astype(int).min() >= batch["video"][2][..., -1, 0].min()


def test_epochs(source):
    assert steps_per_epoch(source, 3) == 2
    assert steps_per_epoch(source, 1, shard_count=3) == 2
    epochs = [
        np.concatenate([batch["index"] for batch in take(batches, 2)])
        for batches in [train_batches(source, CLIPS, 3)] * 8
    ]
    assert all(len(set(epoch)) == 6 for epoch in epochs)  # without repetition, one left out
    assert len({tuple(epoch) for epoch in epochs}) > 6  # in another order each time
    assert set(np.concatenate(epochs)) == set(range(7))  # another one left out each time
    with pytest.raises(
        ValueError, match=r"expected at least one batch of videos, got 7 in folder train for 2 x 4: lower"
    ):
        train_batches(source, CLIPS, 4, shard_count=2)


def test_seeds_and_threads(source):
    first, again, other = (
        take(train_batches(source, CLIPS, 3, seed=seed, num_threads=t), 3) for seed, t in ((1, 1), (1, 4), (2, 1))
    )
    chex.assert_trees_all_equal(first, again)
    assert any((a["index"] != b["index"]).any() for a, b in zip(first, other, strict=True))


def test_shards_together_are_the_whole(source):
    whole = take(train_batches(source, CLIPS, 6), 3)
    shards = [take(train_batches(source, CLIPS, 3, shard_index=i, shard_count=2), 3) for i in range(2)]
    for step, batch in enumerate(whole):
        parts = {k: np.stack([shard[step][k] for shard in shards], 1).reshape(6) for k in ("index", "label")}
        chex.assert_trees_all_equal(parts, {k: batch[k] for k in parts})
        np.testing.assert_array_equal(batch["video"][4][1::2], shards[1][step]["video"][4])


@pytest.mark.parametrize("steps", [1, 5])
def test_resume_is_exact(source, tmp_path, steps):
    """With Grain's own state and through Orbax, within the first epoch (2 steps) and in a later one."""
    batches = train_batches(source, CLIPS, 3)
    take(batches, steps)
    state = batches.get_state()
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(steps, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
        manager.wait_until_finished()
        expected = take(batches, 4)
        resumed = train_batches(source, CLIPS, 3)
        resumed.set_state(state)
        chex.assert_trees_all_equal(take(resumed, 4), expected)
        restored = train_batches(source, CLIPS, 3)
        manager.restore(steps, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(restored)))
        chex.assert_trees_all_equal(take(restored, 4), expected)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_evaluation_sees_every_video_once(source, frame_numbers, shards):
    runs = [list(eval_batches(source, CLIPS, 2, shard_index=i, shard_count=shards)) for i in range(shards)]
    assert {len(run) for run in runs} == {-(-7 // (2 * shards))}
    seen = []
    for batch in itertools.chain(*runs):
        chex.assert_shape(batch["video"][4], (2, 1, 4, 24, 24, 3))
        assert batch["mask"].dtype == bool
        seen += batch["index"][batch["mask"]].tolist()
        np.testing.assert_array_equal(batch["label"][batch["mask"]], batch["index"][batch["mask"]] >= 4)
        np.testing.assert_array_equal(batch["index"][~batch["mask"]], -1)
        assert not batch["video"][2][~batch["mask"]].any()
        for n, centres in {2: [5, 15], 4: [2, 7, 12, 17]}.items():
            numbers = frame_numbers(batch["video"][n][batch["mask"], 0])
            np.testing.assert_array_equal(numbers, np.tile(centres, (len(numbers), 1)))
    assert sorted(seen) == list(range(7))


def test_evaluation_again_and_in_order(source):
    batches = eval_batches(source, CLIPS, 4)
    first = list(batches)
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in first]), [*range(7), -1])
    chex.assert_trees_all_equal(first, list(batches))


def test_the_centre_is_cut_from_the_resized_frame(source):
    """32 x 48 at short side 28 is 28 x 42; its middle 24 columns start at 9, so that the bright half ends at 12."""
    picture = next(iter(eval_batches(source, CLIPS, 1)))["video"][2][0, 0, 0, :, :, 0].astype(int)
    assert np.ptp(picture[:, :10]) <= 3
    assert np.ptp(picture[:, 14:]) <= 3
    assert picture[0, 0] - picture[0, -1] == pytest.approx(20, abs=2)


def test_views(source, frame_numbers):
    """Clips first, then crops; 32 x 48 has its middle at 24, so that left, middle and right crops differ there."""
    clips = ClipConfig((2, 4), 32, 32, clips=2, crops=3)
    batch = next(iter(eval_batches(source, clips, 3)))
    video = batch["video"][4]
    chex.assert_shape(video, (3, 6, 4, 32, 32, 3))
    chex.assert_shape(batch["video"][2], (3, 6, 2, 32, 32, 3))
    rows = [[2, 7, 12, 17]] * 3 + [[0, 5, 10, 15]] * 3
    np.testing.assert_array_equal(frame_numbers(video[:, 2::3]), np.tile(rows[2::3], (3, 1, 1)))
    edges = [int(np.argmax(np.diff(video[0, view, 0, 16, :, 0].astype(int)) < -10)) + 1 for view in range(6)]
    assert edges == [24, 16, 8] * 2
    whole = ClipConfig((2, 4), 32, 32, clips=2, crops=1)
    np.testing.assert_array_equal(next(iter(eval_batches(source, whole, 3)))["video"][4], video[:, 1::3])


def test_ten_crops_are_five_and_their_mirrors(tmp_path, write_video, source):
    write_video(tmp_path / "a.mp4")
    plain = FileSource("one", str(tmp_path), ("a.mp4",), (0,), ("run",))
    video = next(iter(eval_batches(plain, ClipConfig((2,), 24, crops=10), 1)))["video"][2]
    chex.assert_shape(video, (1, 10, 2, 24, 24, 3))
    np.testing.assert_array_equal(video[:, 5:], video[:, :5, :, :, ::-1])
    with pytest.raises(ValueError, match=r"folder train: expected at most 5 crops, because its labels .*use 5"):
        eval_batches(source, ClipConfig((2,), 24, crops=10), 1)


def test_dense_sampling(source, frame_numbers):
    clips = ClipConfig((2, 4), 24, scales=(1.0,), flip=False, sampling="dense", interval=3, clips=3)
    numbers = np.concatenate([frame_numbers(b["video"][4]) for b in take(train_batches(source, clips, 7), 6)])
    assert (np.diff(numbers) == 3).all()
    assert set(numbers[:, 0]) == set(range(9))  # 20 frames, windows of 12
    numbers = frame_numbers(next(iter(eval_batches(source, clips, 2)))["video"][4])
    np.testing.assert_array_equal(numbers, [[[0, 3, 6, 9], [4, 7, 10, 13], [8, 11, 14, 17]]] * 2)


def test_even_sampling_is_the_same_in_training_and_test(source, frame_numbers):
    """20 frames: 0, 6.33, 12.67, 19."""
    clips = ClipConfig((2, 4), 24, scales=(1.0,), flip=False, sampling="even")
    batches = (next(train_batches(source, clips, 7)), next(iter(eval_batches(source, clips, 7))))
    for video in (batches[0]["video"], {n: views[:, 0] for n, views in batches[1]["video"].items()}):
        np.testing.assert_array_equal(frame_numbers(video[4]), [[0, 6, 12, 19]] * 7)
        np.testing.assert_array_equal(frame_numbers(video[2]), [[0, 19]] * 7)


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop="resized", area=(0.3, 1.0)),
        Augmentation(colour_jitter=(0.4, 0.4, 0.4, 0.1)),
        Augmentation(randaugment=2, magnitude=8.0, deviation=0.5),
    ],
)
def test_augmentations_change_clips_and_resume(source, augmentation):
    plain = ClipConfig((2, 4), 24, sampling="dense", interval=1)
    clips = dataclasses.replace(plain, augmentation=augmentation)
    batches = train_batches(source, clips, 3)
    first = next(batches)
    state = batches.get_state()
    expected = take(batches, 2)
    resumed = train_batches(source, clips, 3, num_threads=1)
    resumed.set_state(state)
    chex.assert_trees_all_equal(take(resumed, 2), expected)
    chex.assert_shape(first["video"][4], (3, 4, 24, 24, 3))
    assert (first["video"][4] != next(train_batches(source, plain, 3))["video"][4]).any(axis=(1, 2, 3, 4)).all()


def test_repeats_are_clips_of_one_video_drawn_apart(source, frame_numbers):
    clips = ClipConfig((2, 4), 24, scales=(1.0,), repeats=2)
    batches = take(train_batches(source, clips, 6), 4)
    for batch in batches:
        chex.assert_shape(batch["video"][4], (6, 4, 24, 24, 3))
        np.testing.assert_array_equal(batch["index"][:3], batch["index"][3:])
        assert (batch["video"][4][:3] != batch["video"][4][3:]).any(axis=(1, 2, 3, 4)).all()
    assert len({*batches[0]["index"], *batches[1]["index"]}) == 6  # an epoch is two steps
    with pytest.raises(ValueError, match="expected repeats to divide the batch size, got 2 and 3"):
        train_batches(source, clips, 3)


def test_shuffled_frames(source, frame_numbers):
    plain, shuffled = (
        next(iter(eval_batches(source, ClipConfig((1, 8), 24, 28, shuffle_frames=shuffle), 7)))
        for shuffle in (False, True)
    )
    numbers = frame_numbers(shuffled["video"][8][:, 0])
    np.testing.assert_array_equal(np.sort(numbers), frame_numbers(plain["video"][8][:, 0]))
    assert len({tuple(row) for row in numbers}) > 4
    np.testing.assert_array_equal(shuffled["video"][1], plain["video"][1])
    clips = ClipConfig((8,), 24, scales=(1.0,), flip=False, shuffle_frames=True)
    numbers = frame_numbers(next(train_batches(source, clips, 7))["video"][8])
    assert (np.diff(numbers) < 0).any(axis=1).all()


def test_videos_shorter_than_the_frame_count(source):
    """A broken video is one more; where all are too short, training has nothing to replace them by."""
    too_long = ClipConfig((4, 32), 24)
    with pytest.raises(
        VideoError,
        match=r"folder train: 100 videos in a row cannot be read, the last because .*\.mp4: "
        "clip shorter than the frame count: expected at least 32 frames, got 20",
    ):
        next(train_batches(source, too_long, 2))
    batch = next(iter(eval_batches(source, too_long, 2)))
    np.testing.assert_array_equal(batch["mask"], False)
    np.testing.assert_array_equal(batch["broken"], [0, 1])
    batch = next(train_batches(source, ClipConfig((4, 32), 24, short="repeat"), 2))
    chex.assert_shape(batch["video"][32], (2, 32, 24, 24, 3))


WORKERS = """
import sys
import time
from jax._src import xla_bridge
from flaxvid.data.pipeline import ClipConfig, train_batches
from flaxvid.data.sources.open import open_source

class Watched:
    def __init__(self, source):
        self.source, self.name, self.classes, self.flip_labels = source, source.name, source.classes, source.flip_labels
    def __len__(self):
        return len(self.source)
    def __getitem__(self, index):
        assert not xla_bridge._backends, "a JAX backend was started"
        return self.source[index]

if __name__ == "__main__":
    batches = train_batches(Watched(open_source("folder", sys.argv[1])), ClipConfig((2,), 24), 2, num_workers=2)
    first = [next(batches) for _ in range(4)]
    state = batches.get_state()
    after = [next(batches)["index"].tolist() for _ in range(3)]
    batches.set_state(state)
    assert after == [next(batches)["index"].tolist() for _ in range(3)]
    assert not xla_bridge._backends, "a JAX backend was started"
    print(*(batch["video"][2].shape for batch in first))
"""


def test_worker_processes_never_start_a_jax_backend(root, tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run([sys.executable, script, root], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == " ".join(["(2, 2, 24, 24, 3)"] * 4)


WAITING = """
import sys, time
from flaxvid.data.pipeline import ClipConfig, train_batches
from flaxvid.data.sources.open import open_source

if __name__ == "__main__":
    batches = train_batches(open_source("folder", sys.argv[1]), ClipConfig((2,), 24), 2, num_workers=2)
    next(batches)
    print("begun", flush=True)
    time.sleep(100)
"""


def test_worker_processes_end_with_a_killed_parent(root, tmp_path):
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)

    def processes():
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True)
        rows = (line.split() for line in listing.stdout.splitlines())
        return {int(pid): int(parent) for pid, parent, state in rows if state[0] != "Z"}  # those only wait for init

    with subprocess.Popen([sys.executable, script, root], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "begun\n"
        children = {pid for pid, parent in processes().items() if parent == run.pid}
        assert len(children) >= 2
        run.kill()
    deadline = time.monotonic() + 120
    while children & processes().keys():
        assert time.monotonic() < deadline
        time.sleep(0.1)
