import jax
import numpy as np
import pytest

from flaxvid.models.registry import create_tiny


@pytest.fixture(scope="session")
def network(random_variables):
    """A tiny network of five classes with random variables."""
    model = create_tiny("tsm_resnet18", num_classes=5, image_size=32)
    return model, random_variables(model)


@pytest.fixture(scope="session")
def answer(network):
    """The network's probabilities for uint8 clips (b, n, h, w, 3), in one call."""
    model, variables = network
    return lambda video: np.asarray(jax.nn.softmax(jax.jit(model.apply)(variables, video)))


@pytest.fixture
def batches(clip):
    """Two batches of four videos with two views at 2 and 4 frames: 7 is padding, 2 could not be read."""

    def make(first):
        index = np.arange(first, first + 4, dtype=np.int32)
        return {
            "video": {n: clip(4, 2, n, 32, 32, seed=first + n) for n in (2, 4)},
            "label": (index % 5).astype(np.int32),
            "index": np.where(index == 7, -1, index).astype(np.int32),
            "mask": ~np.isin(index, (2, 7)),
            "broken": np.where(index == 2, index, -1).astype(np.int32),
        }

    return [make(0), make(4)]
