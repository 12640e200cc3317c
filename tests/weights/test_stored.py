"""Weights files that the code of a628795 wrote, when cameras were called views: they load and compute the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from flaxvid.train.trained import load

STORED = Path(__file__).parent / "stored"
LOGITS = json.loads((STORED / "logits.json").read_text())
VIDEO = (np.arange(1 * 4 * 16 * 16 * 3) * 37 % 256).astype(np.uint8).reshape(1, 4, 16, 16, 3)
CLASSES = {
    "plain": ("a", "b", "c"),
    "flexible": ("class 0", "class 1", "class 2"),
    "views": {"action": ("a", "b"), "actor": ("x", "y", "z")},
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_stored_file(name):
    trained = load(STORED / f"{name}.safetensors")
    assert trained.classes == CLASSES[name]
    assert trained.frames == ((2, 4) if name == "flexible" else (4,))
    assert trained.model.cameras == (("top", "side") if name == "views" else ())
    cameras = {camera: np.roll(VIDEO, 7 * place, axis=3) for place, camera in enumerate(trained.model.cameras)}
    logits = trained.model.apply(trained.select(4), cameras or VIDEO)
    expected = LOGITS[name]
    for target, values in expected.items() if name == "views" else [("", expected)]:
        np.testing.assert_allclose((logits[target] if target else logits)[0], values, rtol=1e-4)
