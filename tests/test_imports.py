"""What importing costs: `import flaxvid` alone, and then a model, bring nothing heavy."""

import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "torch", "matplotlib", "grain", "av", "tensorflow_datasets", "orbax", "tensorboardX")


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import flaxvid", (*HEAVY, "jax", "flax", "rich")),
        (
            "from flaxvid import FrameFlexible, create_model, layers, losses; create_model('tsm_resnet50')",
            HEAVY,
        ),
        ("import flaxvid; flaxvid.load_torch", ("tensorflow", "torch", "matplotlib", "grain", "av")),
        ("import flaxvid; flaxvid.run", ("tensorflow",)),
    ],
)
def test_imports_stay_light(program, unwanted):
    program += f"; import sys; print(*[name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == []
