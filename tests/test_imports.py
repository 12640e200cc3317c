"""What importing costs: `import flaxvid` alone, and then a model, bring nothing heavy."""

import subprocess
import sys

HEAVY = ("tensorflow", "torch", "matplotlib", "grain", "av", "tensorflow_datasets", "orbax", "tensorboardX")


PROGRAM = """
import sys
for program, unwanted in {steps}:
    exec(program)
    print(*(f"{{program}} imports {{name}}" for name in unwanted if name in sys.modules), sep="\\n", end="")
"""


def test_imports_stay_light():
    """One process goes from step to step: what a step must not import, those before it must not either."""
    steps = (
        ("import flaxvid", (*HEAVY, "jax", "flax", "rich")),
        ("from flaxvid import FrameFlexible, create_model, layers, losses; create_model('tsm_resnet50')", HEAVY),
        ("flaxvid.load_torch", ("tensorflow", "torch", "matplotlib", "grain", "av")),
        ("flaxvid.run", ("tensorflow",)),
    )
    command = [sys.executable, "-c", PROGRAM.format(steps=steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == ""
