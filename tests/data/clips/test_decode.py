import ctypes
import gc
from fractions import Fraction

import av
import numpy as np
import pytest

from flaxvid.data.clips.decode import VideoError, count_frames, decode


def test_frames_asked_for_in_the_order_asked(tmp_path, write_video, frame_numbers, ask):
    path = write_video(tmp_path / "a.mp4")
    indices = [17, 3, 3, 0, 11]
    video = decode(path, indices)
    assert video.shape == (5, 32, 48, 3)
    assert video.dtype == np.uint8
    np.testing.assert_array_equal(frame_numbers(video), indices)
    np.testing.assert_array_equal(decode(path.read_bytes(), indices), video)
    np.testing.assert_array_equal(ask(str(path), lambda count: np.array(indices) % count), video)


def test_resizes_while_converting(tmp_path, write_video, frame_numbers):
    path = write_video(tmp_path / "a.mp4")
    assert decode(path, [5], size=16).shape == (1, 16, 24, 3)
    video = decode(path, [5, 9], size=(64, 49))
    assert video.shape == (2, 64, 49, 3)
    np.testing.assert_array_equal(frame_numbers(video), [5, 9])
    left, right = video[0, 30, [5, 40], 0].astype(int)
    assert abs(left - right - 20) <= 2


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_counts(tmp_path, write_video, suffix, ask):  # mkv: its header has no count, so that packets are counted
    path = write_video(tmp_path / f"a.{suffix}", frames=13)
    assert count_frames(path) == count_frames(path.read_bytes()) == 13
    assert len(ask(path, range)) == 13


def test_a_folder_of_images_is_a_video(tmp_path, write_video):
    video = decode(write_video(tmp_path / "a.mp4", frames=4), range(4))
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, picture in enumerate(video):
        av.VideoFrame.from_ndarray(picture, format="rgb24").save(str(folder / f"{i + 1:05d}.png"))
    assert count_frames(folder) == 4
    np.testing.assert_allclose(decode(folder, [2, 0]), video[[2, 0]], atol=2)
    assert decode(str(folder), [2, 0], size=16).shape == (2, 16, 24, 3)


def test_a_file_cut_off(tmp_path, write_video, ask):
    whole = write_video(tmp_path / "a.avi", frames=20, noise=True).read_bytes()
    assert count_frames(whole) == 20
    cut = whole[: len(whole) * 6 // 10]
    count = count_frames(cut)
    assert 2 < count < 20
    assert ask(cut, range).shape == (count, 32, 48, 3)
    with pytest.raises(VideoError, match=rf"^cut: expected frame indices within its {count} frames, got 19 to 19"):
        decode(cut, [19], name="cut")


def test_a_header_that_counts_its_first_fragment_only(tmp_path, write_video, frame_numbers, ask):
    path = write_video(tmp_path / "a.mp4", gop=5, movflags="frag_keyframe")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 5
    assert count_frames(path) == 20
    np.testing.assert_array_equal(frame_numbers(ask(path, lambda count: [count - 1, 7])), [19, 7])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_times_of_frames_at_a_variable_rate(tmp_path, suffix, frame_times):
    path, times = tmp_path / f"a.{suffix}", [200, 240, 280, 320, 1320, 2320, 2340]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "2", "b-adapt": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 30 * i, np.uint8)).reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = frame_times(path)
    assert count_frames(path) == len(found) - 1 == len(times)
    np.testing.assert_allclose(found[:-1], (np.array(times) - 200) / 1000, atol=0.002)
    assert 0 < found[-1] - found[-2] <= 1
    np.testing.assert_array_equal(frame_times(path.read_bytes()), found)


def test_images_and_bare_streams_have_no_times(tmp_path, frame_times):
    with av.open(str(tmp_path / "a.h264"), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    av.VideoFrame(16, 16, "rgb24").save(str(tmp_path / "1.png"))
    for video in (tmp_path, tmp_path / "1.png", (tmp_path / "1.png").read_bytes(), tmp_path / "a.h264"):
        with pytest.raises(VideoError, match="expected a video whose frames have times, got none: take it as one clip"):
            frame_times(video)


def test_titles_in_any_encoding(tmp_path, write_video):
    video = write_video(tmp_path / "a.mp4").read_bytes()
    assert video.count(b"isomiso2") == 1  # a brand of the header, which FFmpeg hands on as a text
    assert decode(video.replace(b"isomiso2", b"isom\xe9\xff\xfe2"), [3]).shape == (1, 32, 48, 3)


def test_errors_name_the_video_and_the_way_out(tmp_path, write_video):
    path = write_video(tmp_path / "a.mp4", frames=5)
    with pytest.raises(VideoError, match=r"a\.mp4: expected frame indices within its 5 frames, got 0 to 5"):
        decode(path, range(6))
    with pytest.raises(VideoError, match="got none at all"):
        decode(path, [])
    with pytest.raises(VideoError, match=r"missing\.mp4: no such file: check"):
        decode(tmp_path / "missing.mp4", [0])
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4: expected a video, got an empty or damaged file.*drop it"):
        decode(tmp_path / "empty.mp4", [0])
    with pytest.raises(VideoError, match=r"^video of 0 bytes: expected a video"):
        count_frames(b"")
    with pytest.raises(VideoError, match=r"^clip 7: expected a video"):
        decode(b"no video at all" * 100, [0], name="clip 7")
    audio = write_video(tmp_path / "audio.mp4", audio_only=True)
    with pytest.raises(VideoError, match=r"audio\.mp4: expected a video stream, got audio: drop"):
        decode(audio, [0])
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "00001.jpg").touch()
    with pytest.raises(VideoError, match=r"images/00001\.jpg: expected a video, got an empty or damaged file"):
        decode(tmp_path / "images", [0])
    (tmp_path / "folder").mkdir()
    with pytest.raises(VideoError, match="folder: expected a video or a folder of"):
        decode(tmp_path / "folder", [0])


REAL = {
    "animation.gif": (36, 150, 200),
    "av1.mkv": (125, 360, 640),
    "h264_10bit.mp4": (30, 200, 200),
    "h264_1x1.mp4": (5, 1, 1),
    "h264_arm_wrestling.mp4": (280, 256, 340),
    "h264_two_streams.mp4": (390, 270, 480),
    "hevc.mp4": (10, 128, 128),
    "mpeg4_40x30_13_frames.mp4": (13, 30, 40),
    "mpeg4_with_audio.avi": (164, 240, 320),
    "rotation_0.mov": (3, 320, 568),
    "rotation_90.mov": (3, 568, 320),
    "unordered_pts.mov": (4, 50, 50),
    "vp9_no_duration.webm": (74, 720, 1280),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared_data, name, ask):
    """The documented frames, upright; chosen ones equal those of a full decode without FFmpeg's threads or ours."""
    path, (count, height, width) = shared_data / "decode" / name, REAL[name]
    assert count_frames(path) == count_frames(path.read_bytes()) == count
    chosen = [0, count - 1, count // 2]
    video = ask(path, lambda n: [0, n - 1, n // 2])
    assert video.shape == (3, height, width, 3)
    frames = 0
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.best("video")):
            for picture in video[[i for i, position in enumerate(chosen) if position == frames]]:
                turned = np.rot90(picture, -round(frame.rotation / 90))
                np.testing.assert_array_equal(turned, frame.to_ndarray(format="rgb24"))
            frames += 1
    assert frames == count
    with pytest.raises(VideoError, match=f"expected frame indices within its {count} frames, got {count} to {count}"):
        decode(path, [count])
    short = min(height, width)
    assert decode(path, [0], size=64).shape[1:3] == (height * 64 // short, width * 64 // short)


def test_rotation_metadata_turns_the_picture(shared_data):
    """Two clips of a keyboard; the second is stored on its side and says so (turned by -90 its keys stand upright)."""
    upright, turned = (decode(shared_data / "decode" / f"rotation_{angle}.mov", [0])[0] for angle in (0, 90))
    with av.open(str(shared_data / "decode" / "rotation_90.mov")) as container:
        stored = next(container.decode(video=0))
    assert stored.rotation == -90
    np.testing.assert_array_equal(turned, np.rot90(stored.to_ndarray(format="rgb24"), -1))
    assert upright.shape[:2] == turned.shape[1::-1]


def test_real_corruption(shared_data):
    path = shared_data / "decode" / "h264_corrupted_after_28.mp4"
    assert decode(path, range(0, 28, 9), size=32).shape == (4, 32, 56, 3)
    with pytest.raises(VideoError, match=r"corrupted_after_28.mp4: expected 50 frames, got 28 and then broken data"):
        decode(path, [40])
    with pytest.raises(VideoError, match=r"empty\.webm: expected a video, got an empty"):
        decode(shared_data / "decode" / "empty.webm", [0])


class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (*"abcd", "mapped", "e", "f", "in_use", "g", "h")]


def bytes_in_use(mallinfo2):
    gc.collect()
    heap = mallinfo2()
    return heap.in_use + heap.mapped


def test_memory_does_not_grow(tmp_path, write_video, ask):
    """Not by a hundred bytes a video, of which a week of training reads millions."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("only glibc 2.33 and later tell what is in use")
    mallinfo2.restype = Heap
    sparse, path = (write_video(tmp_path / f"{gop}.mp4", gop=gop) for gop in (4, 250))
    data, rounds = path.read_bytes(), 150
    for warm in (True, False):
        before = bytes_in_use(mallinfo2)
        for _ in range(rounds):
            for video in (path, data, sparse):
                decode(video, [0, 7, 12], size=24)
                ask(video, lambda count: [count - 1])
                count_frames(video)
        assert warm or bytes_in_use(mallinfo2) - before < 50 * 9 * rounds
