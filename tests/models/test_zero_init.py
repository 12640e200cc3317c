"""Blocks that begin as their shortcuts."""

import jax
import numpy as np
import pytest

from flaxvid import trees
from flaxvid.models.registry import create_tiny


@pytest.mark.parametrize("name", ["slow_r50", "x3d_s", "slowfast_r50"])
def test_the_last_norm_of_every_block_starts_at_zero(name):
    video = np.zeros((1, 4, 32, 32, 3), np.uint8)
    for zero in (False, True):
        model = create_tiny(name, zero_init=zero)

        def scales(key, model=model):  # nothing else of the network is compiled
            params = trees.flatten(model.init(key, video)["params"])
            return {path: leaf for path, leaf in params.items() if path.endswith("/scale")}

        started = jax.jit(scales)(jax.random.key(0))
        assert any("conv_c" in path for path in started)
        for path, leaf in started.items():
            np.testing.assert_array_equal(leaf, 0 if zero and "conv_c" in path else 1)
