import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest

from flaxvid.data.clips import decode as decode_module
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.clips.decode import VideoError, decode
from flaxvid.data.clips.windows import cut_windows
from flaxvid.evaluate.predictor import Predictor

CLIPS = ClipConfig((2,), image_size=32, test_size=32, short="repeat")


def write(path, milliseconds, codec="libx264", edit=lambda packets: packets, **options):
    """A video whose frame i is shown at the i-th time; `numbers` reads i off its brightness, up to 50."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "1", "preset": "ultrafast", **options})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        packets = []
        for i, time in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 5 * (i % 50), np.uint8), format="rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = int(time), Fraction(1, 1000)
            packets += stream.encode(frame)
        for packet in edit(packets + stream.encode()):
            container.mux(packet)
    return path


def numbers(clip):
    return np.round(clip.mean((1, 2, 3)) / 5).astype(int).tolist()


def seen(video, seconds, clips=CLIPS):
    return [(round(start, 3), round(end, 3), numbers(clip)) for start, end, clip in cut_windows(video, seconds, clips)]


def expected(edges, seconds):
    """The frames of each window, looked for one by one."""
    rows, number = [], 0
    while number * seconds < edges[-1] - 0.002:
        start, end = number * seconds, (number + 1) * seconds
        inside = [i for i, time in enumerate(edges[:-1]) if start - 1e-6 <= time < end - 1e-6]
        rows.append((start, inside or [max(i for i, time in enumerate(edges[:-1]) if time < start)]))
        number += 1
    return rows


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("first", [0, 1700])
def test_variable_rate(tmp_path, suffix, first, frame_times):
    """10 s at 10 frames a second, then 20 s at one: windows are as long in the second part as in the first."""
    times = [first + 100 * i for i in range(100)] + [first + 10_000 + 1000 * i for i in range(20)]
    path = write(tmp_path / f"phone.{suffix}", times)
    rows = seen(path, 5)
    assert [row[0] for row in rows] == [0, 5, 10, 15, 20, 25]
    assert [row[2] for row in rows] == [[12, 37], [12, 37], [1, 3], [6, 8], [11, 13], [16, 18]]
    assert [row[1] for row in rows[:-1]] == [5, 10, 15, 20, 25]
    assert rows[-1][1] == pytest.approx(frame_times(path)[-1], abs=1e-3)


def test_random_times_against_a_search(tmp_path, frame_times):
    rng = np.random.default_rng(0)
    for trial in range(12):
        steps = rng.choice([1, 16, 33, 40, 200, 3000], size=rng.integers(1, 60), p=[0.1, 0.2, 0.3, 0.2, 0.15, 0.05])
        suffix = ("mp4", "mkv")[trial % 2]
        path = write(tmp_path / f"{trial}.{suffix}", np.cumsum(steps), bf=str(trial % 3), preset="medium")
        seconds = float(rng.choice([0.02, 0.1, 1 / 3, 1, 2.5, 1000]))
        edges = frame_times(path)
        rows = list(cut_windows(path, seconds, CLIPS))
        wanted = expected(edges, seconds)
        assert [row[0] for row in rows] == pytest.approx([start for start, _ in wanted])
        assert [row[1] for row in rows] == pytest.approx([start for start, _ in wanted[1:]] + [edges[-1]])
        for (_, _, clip), (_, inside) in zip(rows, wanted, strict=True):
            assert numbers(clip) == [inside[len(inside) // 4] % 50, inside[int(len(inside) * 0.75)] % 50]


def test_a_pause_shows_the_frame_before_it(tmp_path):
    path = write(tmp_path / "screen.mkv", [0, 100, 200, 10_000, 10_100])
    rows = seen(path, 2)
    assert [row[:2] for row in rows] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 10.14)]
    assert [row[2] for row in rows] == [[0, 2], [2, 2], [2, 2], [2, 2], [2, 2], [3, 4]]


def test_a_pause_is_answered_once(tmp_path):
    asked = []

    class Counting(Predictor):
        """Answers with how often it was asked, instead of a network."""

        def __call__(self, video):
            asked.append(video)
            return {"": np.array([[len(asked)]], np.float32)}

    path = write(tmp_path / "screen.mkv", [0, 100, 200, 10_000, 10_100])
    predictor = Counting(None, lambda _: {}, (), ClipConfig(image_size=32, test_size=32))
    answers = [prediction.probabilities[""][0] for prediction in predictor.predict(path, 2, window=2)]
    assert answers == [1, 2, 2, 2, 2, 3]
    assert len(asked) == 3


def test_windows_shorter_than_a_frame(tmp_path):
    path = write(tmp_path / "a.mp4", [0, 100, 200, 300])
    rows = seen(path, 0.04)
    assert [row[0] for row in rows] == [round(0.04 * i, 3) for i in range(len(rows))]
    assert [row[2][0] for row in rows] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3][: len(rows)]
    assert [row[1] - row[0] for row in rows[:-1]] == pytest.approx([0.04] * (len(rows) - 1))


def test_a_window_that_each_frame_fills(tmp_path):
    """3 * 0.1 is more than 0.3 in floating point, and Matroska's times are whole milliseconds."""
    for suffix in ("mp4", "mkv"):
        path = write(tmp_path / f"a.{suffix}", [100 * i for i in range(50)])
        rows = seen(path, 0.1)[:49]
        assert [row[2] for row in rows] == [[i, i] for i in range(49)]
        assert [row[0] for row in rows] == [round(0.1 * i, 3) for i in range(49)]


@pytest.mark.parametrize("rate", [24, 30, 60, Fraction(30000, 1001)])
def test_no_window_for_a_rounding_at_the_end(tmp_path, rate):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        count = round(2 * rate)
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    assert [round(start, 3) for start, *_ in cut_windows(tmp_path / "a.mkv", float(count / rate / 2), CLIPS)] == [
        0,
        round(float(count / rate / 2), 3),
    ]


def test_a_window_longer_than_the_video_is_the_video(tmp_path):
    path = write(tmp_path / "a.mp4", [0, 40, 80, 120])
    for seconds in (0.16, 7, 1e300, float("inf")):
        assert seen(path, seconds) == [(0, 0.16, [1, 3])]


def test_an_edit_list_hides_frames_from_windows(tmp_path, frame_times):
    """As a cut without encoding anew: what comes before the cut is in the file, and is not shown."""

    def from_the_fifth(packets):
        for packet in packets:
            packet.pts, packet.dts = packet.pts - 500, packet.dts - 500
        return packets

    path = write(tmp_path / "cut.mp4", [100 * i for i in range(30)], edit=from_the_fifth)
    edges = frame_times(path)
    shown = [numbers(decode(path, [i], size=32))[0] for i in range(len(edges) - 1)]
    for (start, end, got), (wanted, inside) in zip(seen(path, 1), expected(edges, 1), strict=True):
        assert (start, got) == (wanted, [shown[inside[len(inside) // 4]], shown[inside[int(len(inside) * 0.75)]]])
        assert end <= edges[-1] + 1e-3


@pytest.mark.parametrize(
    ("sampling", "frames"),
    [
        ("segment", [[3, 9, 15, 21], [25, 26, 26, 27], [28, 28, 29, 29]]),
        ("dense", [[8, 10, 12, 14], [25, 27, 26, 25], [28, 28, 28, 28]]),
        ("even", [[0, 8, 16, 24], [25, 25, 26, 27], [28, 28, 28, 29]]),
    ],
)
def test_a_window_with_fewer_frames_than_the_clip(tmp_path, sampling, frames):
    path = write(tmp_path / "a.mp4", [40 * i for i in range(25)] + [1000 + 400 * i for i in range(5)])
    clips = ClipConfig((4,), image_size=32, test_size=32, sampling=sampling, interval=2, short="repeat")
    rows = seen(path, 1, clips)
    assert [row[2] for row in rows] == frames
    with pytest.raises(VideoError, match=r"a\.mp4: clip shorter than the frame count"):
        seen(path, 1, ClipConfig((4,), image_size=32, test_size=32, sampling=sampling, interval=2))


def test_very_many_windows_need_the_memory_of_one(tmp_path):
    path = write(tmp_path / "a.mkv", [0, 10_000, 20_000])
    count, start = 0, -1.0
    tracemalloc.start()
    for start, end, clip in cut_windows(path, 0.001, CLIPS):
        assert start < end
        assert clip.shape == (2, 32, 32, 3)
        count += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == pytest.approx(20_040, abs=2)
    assert peak < 1_000_000


def test_a_video_is_gone_through_once(tmp_path, monkeypatch):
    path, passes, read = write(tmp_path / "a.mp4", [40 * i for i in range(100)]), [], decode_module.read_frames
    monkeypatch.setattr(decode_module, "read_frames", lambda *args: passes.append(args) or read(*args))
    rows = list(cut_windows(path, 0.2, CLIPS))
    assert (len(rows), len(passes)) == (20, 1)
    for number, (_, _, clip) in enumerate(rows):
        same = decode(path, [5 * number + 1, 5 * number + 3], size=32)
        np.testing.assert_array_equal(clip, same[:, :, 8:40])


@pytest.mark.parametrize("seconds", [0, -1, 1e-9, float("nan"), float("-inf")])
def test_what_is_no_window(tmp_path, seconds):
    with pytest.raises(ValueError, match=r"expected a window of at least 0\.001 seconds, got"):
        next(cut_windows(tmp_path, seconds, CLIPS))


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, frame_times):
    path = write(tmp_path / "a.mkv", [0, 40, 80, 120])
    monkeypatch.setattr(decode_module._Stream, "__len__", lambda _: 6)
    monkeypatch.setattr(decode_module._Stream, "times", np.arange(7) / 25)
    with pytest.raises(VideoError, match=r"a\.mkv: expected 6 frames, got 4: fetch the file again"):
        list(cut_windows(path, 0.08, CLIPS))
