import numpy as np
import pytest

from flaxvid.data.decode import VideoError, decode, decode_windows, frame_rate


@pytest.fixture(scope="module")
def video(write_video, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "v.mkv")


def windows(*positions):
    return lambda length: [np.asarray(clip) for clip in positions]


def test_clips_are_those_of_decode(video, frame_numbers):
    clips = list(decode_windows(video, windows([0, 4], [5, 5, 9], [12, 19]), size=16))
    assert [frame_numbers(clip).tolist() for clip in clips] == [[0, 4], [5, 5, 9], [12, 19]]
    np.testing.assert_array_equal(clips[1], decode(video, [5, 5, 9], size=16))


def test_a_file_that_ends_early_repeats_its_last_frame(write_video, frame_numbers, tmp_path):
    data = write_video(tmp_path / "v.avi", noise=False).read_bytes()
    cut = data[: data.index(b"movi") + (data.index(b"idx1") - data.index(b"movi")) // 2]
    last = int(frame_numbers(decode(cut, lambda count: np.arange(count), name="cut")).max())
    assert 2 < last < 17
    positions = windows([0, 1], [last - 1, last + 2], [18, 19])  # within the 20 that the header promises
    assert [frame_numbers(clip).tolist() for clip in decode_windows(cut, positions)] == [[0, 1], [last - 1, last - 1]]
    everything = decode_windows(cut, windows(range(20)))
    assert frame_numbers(next(everything)).tolist() == [*range(last), *[last] * (20 - last)]


def test_clips_from_before_the_damage_are_given(shared_data):
    video = shared_data / "decode" / "h264_corrupted_after_28.mp4"
    clips = decode_windows(video, windows([0, 3], [40]), size=16)
    assert next(clips).shape == (2, 16, 28, 3)
    with pytest.raises(VideoError, match="got 28 and then broken data"):
        next(clips)


def test_frame_rate(video, tmp_path):
    assert frame_rate(video) == 10
    with pytest.raises(VideoError, match="got a folder: take it as one clip"):
        frame_rate(tmp_path)
    with pytest.raises(VideoError, match="no such file"):
        frame_rate(tmp_path / "none.mp4")
