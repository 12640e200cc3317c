"""What the tests of weights share."""

import time

import pytest

from flaxvid.weights.tensors import read_tensors


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def refused():
    """Checks that a source is refused by the one error, soon, and with its name."""

    def check(source, message, reader=read_tensors):
        began = time.monotonic()
        with pytest.raises(ValueError, match=message) as error:
            reader(source)
        assert str(error.value).startswith("the state_dict" if isinstance(source, dict) else str(source))
        assert time.monotonic() - began < 60

    return check
