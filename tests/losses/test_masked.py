"""The loss of masked pre-training, by hand."""

import numpy as np
import pytest

from flaxvid.losses.masked import cube_statistics, cut_cubes, join_cubes, reconstruction_errors

PATCH = (2, 2, 2)


@pytest.fixture
def video():
    return np.random.default_rng(0).random((2, 4, 4, 6, 3)).astype(np.float32)


def test_cubes_are_counted_along_time_height_and_width(video):
    cubes = cut_cubes(video, PATCH)
    assert cubes.shape == (2, 2 * 2 * 3, 8, 3)
    np.testing.assert_array_equal(cubes[1, 10].reshape(2, 2, 2, 3), video[1, 2:4, 2:4, 2:4])
    np.testing.assert_array_equal(join_cubes(cubes, PATCH, (2, 2, 3)), video)


def test_the_deviation_is_that_of_a_sample(video):
    mean, deviation = cube_statistics(cut_cubes(video, PATCH))
    pixels = video[0, :2, :2, :2].reshape(8, 3)
    np.testing.assert_allclose(mean[0, 0, 0], pixels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation[0, 0, 0], np.sqrt(((pixels - pixels.mean(0)) ** 2).sum(0) / 7), rtol=1e-4)


@pytest.mark.parametrize("by_cube", [True, False])
def test_errors_by_hand(video, by_cube):
    hidden = np.array([[1, 7], [11, 4]])
    predictions = np.random.default_rng(1).normal(size=(2, 2, 24)).astype(np.float32)
    errors = reconstruction_errors(predictions, video, hidden, PATCH, by_cube)
    for row in range(2):
        squares = []
        for cube, prediction in zip(hidden[row], predictions[row], strict=True):
            t, y, x = np.unravel_index(cube, (2, 2, 3))
            pixels = video[row, 2 * t : 2 * t + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].reshape(8, 3)
            target = (pixels - pixels.mean(0)) / (pixels.std(0, ddof=1) + 1e-6) if by_cube else pixels
            squares.append((prediction.reshape(8, 3) - target) ** 2)
        np.testing.assert_allclose(errors[row], np.mean(squares), rtol=1e-4)


def test_visible_cubes_do_not_count_and_a_flat_one_is_finite(video):
    hidden = np.array([[0], [0]])
    predictions = np.zeros((2, 1, 24), np.float32)
    before = reconstruction_errors(predictions, video, hidden, PATCH)
    np.testing.assert_allclose(before, 7 / 8, rtol=1e-4)  # the mean of n squares whose sample variance is 1
    video[:, 2:] = 0.3
    np.testing.assert_array_equal(reconstruction_errors(predictions, video, hidden, PATCH), before)
    flat = reconstruction_errors(predictions, video, np.array([[6], [6]]), PATCH)
    np.testing.assert_allclose(flat, 0, atol=1e-3)
