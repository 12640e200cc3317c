import numpy as np
import pytest

from flaxvid.data.sampling import segment_indices


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
    np.testing.assert_array_equal(segment_indices(length, n), expected)


@pytest.mark.parametrize(("length", "n"), [(16, 16), (35, 16), (557, 8), (9, 4), (7, 1)])
def test_training_draws_every_frame_of_every_segment(length, n):
    rng, segment = np.random.default_rng(0), length // n
    draws = np.stack([segment_indices(length, n, rng) for _ in range(60 * segment)])
    for i in range(n):
        assert set(draws[:, i]) == set(range(i * segment, (i + 1) * segment))


def test_a_short_clip_is_an_error_unless_told_to_repeat():
    for rng in (None, np.random.default_rng(0)):
        with pytest.raises(
            ValueError, match=r"shorter than the frame count: expected at least 16 frames, got 13: .*short="
        ):
            segment_indices(13, 16, rng)
        indices = segment_indices(13, 16, rng, short="repeat")
        assert indices.shape == (16,)
        assert (np.diff(indices) >= 0).all()
        assert (indices[0], indices[-1]) == (0, 12)
    np.testing.assert_array_equal(segment_indices(2, 4, short="repeat"), [0, 0, 1, 1])
    with pytest.raises(ValueError, match="at least one"):
        segment_indices(0, 4, short="repeat")
