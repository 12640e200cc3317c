import numpy as np
import pytest

from flaxvid.data.clips.crops import Crop, multiscale_crop, resized_crop, view_crops


def crops(height, width, image_size, scales, count=3000):
    rng = np.random.default_rng(0)
    return {multiscale_crop(height, width, image_size, scales, rng) for _ in range(count)}


def test_one_scale_has_thirteen_places():
    found = crops(256, 356, 224, (0.875,))
    assert {crop[:2] for crop in found} == {(256, 356)}
    assert {(crop.top, crop.left) for crop in found} == {
        *((top, left) for top in (0, 16, 32) for left in (0, 66, 132)),
        *((top, left) for top in (8, 24) for left in (33, 99)),
    }


def test_scales_pair_with_their_neighbours_only():
    found = {crop[:2] for crop in crops(240, 320, 112, (1.0, 0.875, 0.75, 0.66))}
    sides = [240, 210, 180, 158]
    pairs = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    assert found == {(round(240 * 112 / h), round(320 * 112 / w)) for h, w in pairs}


def test_crops_lie_within_the_frame_and_reach_its_edges():
    for height, width in ((240, 320), (64, 64), (30, 40), (1, 1), (1080, 33)):
        found = crops(height, width, 64, (1.0, 0.75), 500)
        assert all(0 <= c.top <= c.height - 64 and 0 <= c.left <= c.width - 64 for c in found)
        assert any(c.top + 64 == c.height and c.left + 64 == c.width for c in found)


def test_a_side_near_the_image_size_is_not_resampled():
    assert {crop[:2] for crop in crops(256, 340, 223, (0.875,))} == {(256, 340)}
    assert crops(64, 64, 64, (1.0,)) == {Crop(64, 64, 0, 0)}


def test_resized_crops():
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(2000):
        crop = resized_crop(240, 320, 64, (0.25, 0.5), (0.5, 2.0), rng)
        assert 0 <= crop.top <= crop.height - 64
        assert 0 <= crop.left <= crop.width - 64
        parts.append((240 * 64 / crop.height, 320 * 64 / crop.width, crop.top / crop.height, crop.left / crop.width))
    height, width, top, left = np.array(parts).T
    area, aspect = height * width / (240 * 320), width / height
    assert (area.min(), area.max()) == (pytest.approx(0.25, abs=0.02), pytest.approx(0.5, abs=0.02))
    assert (aspect.min(), aspect.max()) == (pytest.approx(0.5, abs=0.03), pytest.approx(2, abs=0.1))
    assert np.median(aspect) == pytest.approx(1, abs=0.1)  # even in the logarithm
    assert top.min() == left.min() == 0
    # A part that cannot fit: the middle square of 30 x 40, twice its size.
    assert resized_crop(30, 40, 60, (1.0, 1.0), (9.0, 9.0), rng) == Crop(60, 80, 0, 10)
    assert resized_crop(32, 32, 32, (1.0, 1.0), (1.0, 1.0), rng) == Crop(32, 32, 0, 0)


def test_the_test_crops():
    assert view_crops(240, 320, 224, 256, 1) == [Crop(256, 341, 16, 58)]
    assert view_crops(64, 64, 64, 64, 1) == [Crop(64, 64, 0, 0)]
    assert view_crops(240, 320, 224, 256, 3) == [Crop(256, 341, 16, left) for left in (0, 58, 117)]
    assert view_crops(320, 240, 256, 256, 3) == [Crop(341, 256, top, 0) for top in (0, 42, 85)]
    five = view_crops(240, 320, 224, 256, 5)
    assert [crop[2:] for crop in five] == [(0, 0), (0, 117), (32, 0), (32, 117), (16, 58)]
    assert view_crops(240, 320, 224, 256, 10) == five + five


def test_a_crop_is_cut_from_every_frame():
    video = np.arange(2 * 6 * 8 * 3, dtype=np.uint8).reshape(2, 6, 8, 3)
    np.testing.assert_array_equal(Crop(6, 8, 1, 2).cut(video, 4), video[:, 1:5, 2:6])
