import numpy as np
import pytest

from flaxvid.data.clips import decode as decoding
from flaxvid.data.clips.cut import Augmentation, ClipConfig, cut_views, draw_clips, frame_indices

VIEWS = ClipConfig(frames=(4, 8), image_size=16, clips=2, crops=3)
READERS = {
    "cut_views": lambda item, rng: cut_views(item, VIEWS, rng),
    "draw_clips": lambda item, rng: draw_clips(item, VIEWS, None, rng)[0],
}


@pytest.mark.parametrize("cut", READERS)
@pytest.mark.parametrize(("suffix", "expected"), [("mp4", 0), ("ts", 1), ("avi", 1)])
def test_a_video_is_decoded_in_full_at_most_once(tmp_path, write_video, monkeypatch, cut, suffix, expected):
    """MP4 proves its length by its bits. Of the others one pass of the decoder gives the length and the frames."""
    passes, read = [], decoding.read_frames
    monkeypatch.setattr(decoding, "read_frames", lambda *given: passes.append(given) or read(*given))
    item = {"video": str(write_video(tmp_path / f"a.{suffix}")), "label": 0, "id": "a"}
    views = READERS[cut](item, np.random.default_rng(0))
    assert len(passes) == expected
    monkeypatch.setattr(decoding, "KEPT", 0)  # no memory for frames: the same ones from a second pass
    again = READERS[cut](item, np.random.default_rng(0))
    assert len(passes) == 3 * expected
    for n, view in views.items():
        np.testing.assert_array_equal(view, again[n])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": (4, 4)}, r"got frames=\(4, 4\)"),
        ({"scales": (1.5,)}, r"expected crop scales in \(0, 1\]"),
        ({"image_size": 224, "test_size": 112}, "image_size=224, test_size=112"),
        ({"short": "loop"}, "got 'loop'"),
        ({"sampling": "uniform"}, "expected sampling=.*, got 'uniform'"),
        ({"sampling": "even", "clips": 2}, 'one clip with sampling="even", got clips=2'),
        ({"interval": 0}, "expected interval >= 1, got 0"),
        ({"crops": 2}, "crops 1, 3, 5 or 10, got crops=2"),
        ({"clips": 0}, "got clips=0"),
        ({"repeats": 0}, "expected repeats >= 1, got 0"),
    ],
)
def test_clip_config_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClipConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": "random"}, 'expected crop="multiscale" or "resized", got \'random\''),
        ({"area": (0.5, 0.2)}, r"0 < least <= largest <= 1, got \(0.5, 0.2\)"),
        ({"area": (0.5,)}, r"got \(0.5,\)"),
        ({"aspect": (0.0, 1.0)}, r"expected the aspect of crops as 0 < least <= largest, got \(0.0, 1.0\)"),
        ({"colour_jitter": (0.4, 0.4, 0.4)}, "colour_jitter: expected brightness, contrast and saturation"),
        ({"colour_jitter": (0.4, 0.4, 0.4, 0.6)}, r"hue in \[0, 0.5\], got"),
        ({"randaugment": -1}, "randaugment: expected 0 operations or more, got -1"),
        ({"magnitude": 11.0}, "magnitude: expected 0 to 10, got 11.0"),
    ],
)
def test_augmentation_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**wrong)


def test_a_recipes_clips_must_be_given_frames_and_size():
    with pytest.raises(ValueError, match=r"expected frame counts and a size of clips, got frames=\(\), image_size=0"):
        frame_indices(None, 8, ClipConfig(), None)
