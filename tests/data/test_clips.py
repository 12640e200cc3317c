import pytest

from flaxvid.data.clips import ClipConfig


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": ()}, "expected distinct frame counts"),
        ({"frames": (4, 4)}, r"got frames=\(4, 4\)"),
        ({"scales": (1.5,)}, r"expected crop scales in \(0, 1\]"),
        ({"test_size": 112}, "image_size=224, test_size=112"),
        ({"short": "loop"}, "got 'loop'"),
        ({"sampling": "uniform"}, 'expected sampling="segment" or "dense" and interval >= 1, got \'uniform\', 8'),
        ({"interval": 0}, "got 'segment', 0"),
        ({"crops": 2}, "crops 1, 3, 5 or 10, got clips=1, crops=2"),
        ({"clips": 0}, "got clips=0"),
    ],
)
def test_clip_config_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClipConfig(**wrong)
