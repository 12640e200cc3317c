import numpy as np
import pytest

from flaxvid.data.clips.colours import FILL, OPERATIONS, YIQ, colour_matrix, jitter_colours, randaugment

GREY = np.array([0.299, 0.587, 0.114])


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), np.uint8)


def pixels(*values):
    """A video of one frame and one row."""
    return np.array([[values]], np.uint8)


def test_colour_matrix_by_hand():
    mean = np.array([10.0, 20.0, 30.0])
    matrix, offset = colour_matrix(mean, 0.5, 1, 1, 0)
    np.testing.assert_allclose(matrix, 0.5 * np.eye(3), atol=1e-12)
    np.testing.assert_allclose(offset, 0)
    matrix, offset = colour_matrix(mean, 2, 0.5, 1, 0)
    np.testing.assert_allclose(matrix, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(offset, 0.5 * 2 * (2.99 + 11.74 + 3.42))
    matrix, _ = colour_matrix(mean, 1, 1, 0, 0)
    np.testing.assert_allclose(matrix, [GREY] * 3, atol=1e-12)


def test_hue_keeps_grey_and_luma_and_turns_the_rest():
    third, _ = colour_matrix(np.zeros(3), 1, 1, 1, 1 / 3)
    np.testing.assert_allclose(third @ third @ third, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(GREY @ third, GREY, atol=1e-9)
    np.testing.assert_allclose(third @ np.full(3, 7.0), 7, atol=0.01)
    before, after = (YIQ @ colour for colour in (np.array([1.0, 0, 0]), third @ [1, 0, 0]))
    assert np.hypot(*after[1:]) == pytest.approx(np.hypot(*before[1:]))


def test_jitter_is_one_draw_for_all_frames(video):
    same = np.repeat(video[:1], 3, axis=0)
    jittered = jitter_colours(same, (0.4, 0.4, 0.4, 0.1), np.random.default_rng(1))
    assert (jittered != same).any()
    np.testing.assert_array_equal(jittered, jittered[[0, 0, 0]])
    np.testing.assert_array_equal(jitter_colours(video, (0, 0, 0, 0), np.random.default_rng(1)), video)
    halves = {
        int(jitter_colours(np.full((1, 1, 1, 3), 100, np.uint8), (0.5, 0, 0, 0), np.random.default_rng(i)).max())
        for i in range(200)
    }
    assert (min(halves), max(halves)) == (pytest.approx(50, abs=3), pytest.approx(150, abs=3))


def test_tables_by_hand():
    line = pixels([0, 100, 200], [50, 150, 250])
    expected = {
        ("brightness", 0.5): [[0, 145, 255], [72, 218, 255]],
        ("solarize", 0.5): [[0, 100, 55], [50, 105, 5]],
        ("posterize", -1): [[0, 96, 192], [48, 144, 240]],
        ("autocontrast", 1): [[0, 0, 0], [255, 255, 255]],
        ("identity", 1): [[0, 100, 200], [50, 150, 250]],
    }
    for (name, strength), rows in expected.items():
        np.testing.assert_array_equal(OPERATIONS[name](line, strength)[0, 0], rows, name)
    greys = pixels([100, 100, 100], [200, 200, 200])
    np.testing.assert_array_equal(OPERATIONS["contrast"](greys, -5 / 9)[0, 0, :, 0], [125, 175])  # factor 0.5, mean 150
    red = pixels([200, 0, 0])
    np.testing.assert_array_equal(OPERATIONS["saturation"](red, -5 / 9)[0, 0], [[130, 30, 30]])  # luma 59.8


def test_equalize_by_hand():
    """765 values, 3 a step: 0..254 thrice each are spread evenly already, all but the last value's shift."""
    video = np.repeat(np.arange(255, dtype=np.uint8), 3).reshape(1, 1, 765, 1).repeat(3, axis=3)
    counts = 3
    step = (765 - counts) // 255
    expected = (np.arange(255) * counts + step // 2) // step
    np.testing.assert_array_equal(OPERATIONS["equalize"](video, 0)[0, 0, ::3, 1], expected.clip(0, 255))
    flat = np.full((2, 4, 4, 3), 9, np.uint8)
    np.testing.assert_array_equal(OPERATIONS["equalize"](flat, 0), flat)


def test_sharpness_by_hand():
    video = np.zeros((1, 3, 3, 3), np.uint8)
    video[0, 1, 1] = 130  # smoothed: 130 * 5 / 13 = 50
    np.testing.assert_array_equal(
        OPERATIONS["sharpness"](video, -5 / 9)[0, :, :, 0], [[0, 0, 0], [0, 90, 0], [0, 0, 0]]
    )


def test_geometry_by_hand():
    video = np.arange(1, 101, dtype=np.uint8).reshape(1, 10, 10, 1).repeat(3, axis=3)
    moved = OPERATIONS["translate_x"](video, 2 / 4.5)[0, :, :, 0]  # by a fifth of the width
    np.testing.assert_array_equal(moved[:, :8], video[0, :, 2:, 0])
    np.testing.assert_array_equal(moved[:, 8:], FILL)
    moved = OPERATIONS["translate_y"](video, -1 / 4.5)[0, :, :, 0]
    np.testing.assert_array_equal(moved[1:], video[0, :9, :, 0])
    np.testing.assert_array_equal(moved[0], FILL)
    np.testing.assert_array_equal(OPERATIONS["rotate"](video, 3), np.rot90(video, axes=(1, 2)))  # 90 degrees
    sheared = OPERATIONS["shear_x"](video, 1 / 0.3)[0, :, :, 0]  # as far to the side as down
    # Row 9 lies 4.5 below the middle: 4.5 columns aside, rounded to 5.
    np.testing.assert_array_equal(sheared[9, :5], video[0, 9, 5:, 0])
    np.testing.assert_array_equal(sheared[9, 5:], FILL)
    np.testing.assert_array_equal(sheared[0, 4:], video[0, 0, :6, 0])  # -4.5 to -4


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_keep_shape_and_type_and_treat_frames_alike(name, video):
    still = np.repeat(video[:1], 3, axis=0)
    for strength in (-1.0, -0.3, 0.5, 1.0):
        result = OPERATIONS[name](still, strength)
        assert result.shape == still.shape
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, result[[0, 0, 0]])


def test_randaugment_draws(video):
    first, again, other = (randaugment(video, 2, 9, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(randaugment(video, 0, 9, np.random.default_rng(0)), video)
    results = {randaugment(video, 1, 10, np.random.default_rng(seed)).tobytes() for seed in range(150)}
    assert len(results) > 20  # 14 operations, ten of them in two directions; a few the same


def test_the_strength_of_an_operation_varies_by_its_deviation(monkeypatch):
    strengths = []
    recorded = {"any": lambda video, strength: strengths.append(strength) or video}
    monkeypatch.setattr("flaxvid.data.clips.colours.OPERATIONS", recorded)
    video, rng = np.zeros((1, 1, 1, 3), np.uint8), np.random.default_rng(0)
    randaugment(video, 4, 7, rng)
    assert {abs(strength) for strength in strengths} == {0.7}
    strengths.clear()
    randaugment(video, 4000, 7, rng, deviation=0.5)
    assert np.mean(np.abs(strengths)) == pytest.approx(0.7, abs=0.005)
    assert np.std(np.abs(strengths)) == pytest.approx(0.05, abs=0.005)
    assert np.mean(np.sign(strengths)) == pytest.approx(0, abs=0.05)
    strengths.clear()
    randaugment(video, 4000, 9.8, rng, deviation=1.0)
    assert max(np.abs(strengths)) == 1
    strengths.clear()
    randaugment(video, 4000, 0.2, rng, deviation=1.0)
    assert min(np.abs(strengths)) == 0
