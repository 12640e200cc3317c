import numpy as np
import pytest

from flaxvid.data.clips.sampling import dense_indices, even_indices, segment_indices


@pytest.mark.parametrize(
    ("length", "n", "expected"),
    [
        (16, 4, [2, 6, 10, 14]),
        (10, 4, [1, 3, 6, 8]),  # d = 2.5: 1.25, 3.75, 6.25, 8.75
        (100, 8, [6, 18, 31, 43, 56, 68, 81, 93]),
        (7, 1, [3]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_test_indices_by_hand(length, n, expected):
    np.testing.assert_array_equal(segment_indices(length, n), [expected])


@pytest.mark.parametrize(("length", "n"), [(16, 16), (35, 16), (557, 8), (9, 4), (7, 1)])
def test_training_draws_every_frame_of_every_segment(length, n):
    rng, segment = np.random.default_rng(0), length // n
    draws = segment_indices(length, n, rng, clips=60 * segment)
    for i in range(n):
        assert set(draws[:, i]) == set(range(i * segment, (i + 1) * segment))


def test_a_short_clip_is_an_error_unless_told_to_repeat():
    for rng in (None, np.random.default_rng(0)):
        with pytest.raises(
            ValueError, match=r"shorter than the frame count: expected at least 16 frames, got 13: .*short="
        ):
            segment_indices(13, 16, rng)
        indices = segment_indices(13, 16, rng, short="repeat")
        assert indices.shape == (1, 16)
        assert (np.diff(indices) >= 0).all()
        assert (indices[0, 0], indices[0, -1]) == (0, 12)
    np.testing.assert_array_equal(segment_indices(2, 4, short="repeat"), [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="at least one"):
        segment_indices(0, 4, short="repeat")


def test_several_clips_divide_the_segments():
    """TSM's "twice sample": `int(d / 2 + d * i)` and `int(d * i)`."""
    np.testing.assert_array_equal(
        segment_indices(100, 8, clips=2), [[6, 18, 31, 43, 56, 68, 81, 93], [0, 12, 25, 37, 50, 62, 75, 87]]
    )
    np.testing.assert_array_equal(segment_indices(40, 2, clips=4), [[10, 30], [15, 35], [0, 20], [5, 25]])


def test_dense_test_windows_by_hand():
    """TSM: windows of 64 frames at 8 x 8, ten of them from the first frame to the last window, looping short videos."""
    starts = dense_indices(300, 8, interval=8, clips=10)
    np.testing.assert_array_equal(starts[:, 0], [0, 26, 52, 78, 104, 131, 157, 183, 209, 236])
    np.testing.assert_array_equal(starts[9], 236 + 8 * np.arange(8))
    np.testing.assert_array_equal(dense_indices(300, 8, interval=8)[0, 0], 118)
    np.testing.assert_array_equal(dense_indices(60, 8, interval=8, clips=2), [8 * np.arange(8)] * 2)
    np.testing.assert_array_equal(dense_indices(10, 4, interval=4, short="repeat"), [[0, 4, 8, 2]])
    with pytest.raises(ValueError, match="expected at least 57 frames, got 56"):
        dense_indices(56, 8, interval=8)


def test_dense_training_draws_every_window():
    draws = dense_indices(20, 4, np.random.default_rng(0), interval=3, clips=200)
    assert set(draws[:, 0]) == set(range(9))
    assert (np.diff(draws) == 3).all()


@pytest.mark.parametrize(
    ("length", "n", "expected"),
    [
        (16, 16, range(16)),
        (31, 4, [0, 10, 20, 30]),
        (30, 4, [0, 9, 19, 29]),  # 9.67, 19.33
        (10, 16, [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8, 9]),  # 0.6 a step; the last frame is there
        (1, 3, [0, 0, 0]),
        (9, 1, [0]),
    ],
)
def test_even_indices_by_hand(length, n, expected):
    np.testing.assert_array_equal(even_indices(length, n, short="repeat"), [list(expected)])


def test_even_sampling_counts_in_integers():
    assert even_indices(31, 23)[0, 11] == 15  # floating point has 14.99...


def test_even_sampling_knows_short_videos():
    with pytest.raises(ValueError, match="expected at least 16 frames, got 10"):
        even_indices(10, 16)
    for length in range(1, 70):
        indices = even_indices(length, 16, short="repeat")[0]
        assert (indices[0], indices[-1]) == (0, length - 1)
        assert (np.diff(indices) >= 0).all()
