"""What the tests of weights share."""

import io
import pickle
import struct

import numpy as np
import pytest

from flaxvid.weights.torch_file import pickled_state_dict


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="session")
def write_legacy():
    """Writes a file as torch did before 1.6: pickles, then the storages, each behind its length."""

    def write(path, tensors):
        out = io.BytesIO()
        for plain in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            out.write(pickle.dumps(plain, 2))
        out.write(pickled_state_dict(tensors))
        out.write(pickle.dumps([str(number) for number in range(len(tensors))], 2))
        for array in map(np.asarray, tensors.values()):
            out.write(struct.pack("<q", array.size) + array.tobytes())
        path.write_bytes(out.getvalue())

    return write
