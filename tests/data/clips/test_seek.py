"""Frames read past others are those of a full decode, bit for bit, of every codec and container there is."""

import av
import numpy as np
import pytest

from flaxvid.data.clips.decode import decode
from flaxvid.data.clips.seek import plan_runs, presentation, read_runs, survey

OPEN_X264 = {"x264-params": "keyint=12:min-keyint=12:open-gop=1:b-pyramid=normal:bframes=3"}
OPEN_X265 = {"x265-params": "keyint=12:min-keyint=12:open-gop=1:bframes=4:log-level=none"}
AV1 = {"preset": "12", "g": "12", "svtav1-params": "keyint=12"}
VP9 = {"g": "12", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "8"}
LONG_X264 = {"x264-params": "keyint=250:b-pyramid=normal:bframes=3:b-adapt=0"}
# name: (encoder, options, pixel format, how it is read: "sparse", "" from the start, or "undone" on finding out)
MADE = {
    "h264.mp4": ("libx264", {"g": "12", "bf": "3"}, "yuv420p", "sparse"),
    "h264_open.mp4": ("libx264", OPEN_X264, "yuv420p", "sparse"),
    "h264_open.mkv": ("libx264", OPEN_X264, "yuv420p", "sparse"),
    "h264_long.mp4": ("libx264", LONG_X264, "yuv420p", "sparse"),
    "h264_10bit.mp4": ("libx264", {"g": "12"}, "yuv420p10le", "sparse"),
    "h264_refresh.mkv": ("libx264", {"x264-params": "intra-refresh=1:keyint=12"}, "yuv420p", "sparse"),
    "h264_interlaced.mkv": ("libx264", {"x264-params": "interlaced=1:keyint=12"}, "yuv420p", ""),
    "h264.avi": ("libx264", {"g": "12", "bf": "3"}, "yuv420p", ""),
    "h264.ts": ("libx264", {"g": "12", "bf": "3"}, "yuv420p", ""),
    "hevc_open.mp4": ("libx265", OPEN_X265, "yuv420p", ""),
    "hevc_10bit.mkv": ("libx265", OPEN_X265, "yuv420p10le", ""),
    "av1.mp4": ("libsvtav1", AV1, "yuv420p", "sparse"),
    "av1.webm": ("libsvtav1", AV1, "yuv420p", "sparse"),
    "vp8.webm": ("libvpx", {**VP9, "deadline": "good"}, "yuv420p", ""),
    "vp9.webm": ("libvpx-vp9", VP9, "yuv420p", "sparse"),
    "mpeg4.avi": ("mpeg4", {"g": "12"}, "yuv420p", "sparse"),
    "mpeg4_reordered.avi": ("mpeg4", {"g": "12", "bf": "2"}, "yuv420p", ""),
    "mjpeg.avi": ("mjpeg", {}, "yuvj420p", "sparse"),
}


@pytest.fixture
def readers(streams):
    """Notes how videos are read."""
    with streams.watched() as used:
        yield used


@pytest.mark.parametrize("name", MADE)
def test_chosen_frames_are_those_of_a_full_decode(tmp_path, readers, write_texture, name):
    encoder, options, pixels, expected = MADE[name]
    path = tmp_path / name
    try:
        write_texture(path, encoder, pixel=pixels, **options)
    except (av.error.EncoderNotFoundError, av.codec.codec.UnknownCodecError):
        pytest.skip(f"this PyAV has no encoder {encoder}")
    with av.open(str(path)) as container:
        full = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert len(full) == 40
    for position in range(40):
        np.testing.assert_array_equal(decode(path, [position])[0], full[position])
    assert set(readers) == set(expected.split())
    np.testing.assert_array_equal(decode(path.read_bytes(), [39, 26, 2, 26]), full[[39, 26, 2, 26]])


def test_frames_that_no_other_needs_are_not_decoded(tmp_path, write_texture):
    """Of every four pictures two are B-frames that nothing refers to."""
    with av.open(str(write_texture(tmp_path / "long.mp4", **LONG_X264))) as container:
        stream = container.streams.video[0]
        known = survey(stream)
        last = presentation(known.pictures)[39]
        runs = plan_runs(known.pictures, [last])
        frames = list(read_runs(stream, known.packets, known.pictures, runs))
    assert [number for number, _ in frames][-1] == last
    assert len(known.times) == 40
    assert 18 <= len(frames) <= 20


# 2,000: python tests/data/clips/streams.py 2000
@pytest.mark.parametrize("seed", range(40))
def test_random_streams(tmp_path, streams, seed):
    path, what = streams.write_stream(tmp_path, seed)
    _, fault = streams.compare(path, np.random.default_rng(seed))
    assert not fault, what
