"""Arrays of NumPy, out of its archives and out of pickles, such as Caffe2's files are, as data."""

import io
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flaxvid.weights.archive import Archive
from flaxvid.weights.pickled import Call, Stranger, Unreadable

_HEADER = 1 << 16
"""The most bytes of an array's header in an archive: NumPy itself takes 10,000 for one that it trusts."""
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""By the version of the format. A third one is for fields with names, which no tensor has."""
_NUMBERS = "biufc"
"""Kinds of types: truth, whole numbers with and without a sign, floats, complex numbers."""


def read_npz(archive: Archive, most: int, pick: Callable[[Any], Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of an .npz archive.

    Args:
        archive: all its members are .npy files.
        most: bytes of all arrays together.
        pick: chooses among them by their names.

    Raises:
        Unreadable: an array is not of plain numbers, or has other numbers than its header says.
        Exception: whatever NumPy raises on damaged bytes.
    """
    if (claimed := sum(map(archive.size, archive.names))) > most:
        raise Unreadable(f"has arrays of {claimed} bytes, expected at most {most}: write them uncompressed")
    headers = {name.removesuffix(".npy"): name for name in archive.names}
    return {key: _read_npy(key, archive.read(headers[key], most)) for key in pick(dict.fromkeys(headers, np.empty(0)))}


def _read_npy(key: str, content: bytearray) -> np.ndarray:
    head = io.BytesIO(content[:_HEADER])
    shape, fortran, dtype = _READ_HEADER[np.lib.format.read_magic(head)](head)
    return _array(key, shape, dtype, "F" if fortran else "C", memoryview(content)[head.tell() :])


def to_array(key: str, made: Call) -> np.ndarray:
    """The array that a pickle would make. Its text is then let go, which for Caffe2's files is most of the memory.

    Raises:
        Unreadable: it is not of plain numbers, or has other numbers than its shape says.
        Exception: the pickle is damaged.
    """
    if made.name.endswith("_frombuffer"):
        content, dtype, shape, order = made.arguments
    else:
        _, shape, dtype, fortran, content = made.state
        order, made.state = "F" if fortran else "C", None
    return _array(key, shape, _dtype(key, dtype), order, _content(content))


def _array(key: str, shape: Any, dtype: np.dtype, order: Any, content: Any) -> np.ndarray:
    if dtype.kind not in _NUMBERS:
        raise Unreadable(f"must hold arrays of numbers, got {key} of {str(dtype)[:80]}: convert it to float32")
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape) or len(shape) > 32:
        raise Unreadable(f"is damaged: {key} has no shape of 32 axes or fewer: fetch it again")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise Unreadable(
            f"is damaged: {key} {shape} needs {math.prod(shape) * dtype.itemsize} bytes, it has {len(content)}: fetch "
            "it again"
        )
    return np.frombuffer(content, dtype).reshape(shape, order=order) if len(content) else np.empty(shape, dtype)


def _dtype(key: str, made: Any) -> np.dtype:
    """A type of numbers, which a pickle makes of its name and, in the state, of the order of bytes."""
    if not (isinstance(made, Call) and made.name == "numpy.dtype" and isinstance(made.arguments[0], str)):
        raise Unreadable(f"is damaged: {key} has no type of numbers: fetch it again")
    name, order = made.arguments[0], made.state[1] if made.state else "="
    if not re.fullmatch(rf"[{_NUMBERS}]\d{{1,2}}", name) or order not in ("<", ">", "|", "="):
        raise Unreadable(f"must hold arrays of numbers, got {key} of {name[:80]!r}: convert it to float32")
    return np.dtype(name).newbyteorder(order)


def _content(made: Any) -> bytes | bytearray:
    """The bytes of an array. Python 2 writes them as text, and Python 3 so that Python 2 reads them."""
    if isinstance(made, Call) and made.name == "_codecs.encode":
        made = made.arguments[0]
    if isinstance(made, Call) and made.name.endswith(".bytearray") and isinstance(made.arguments[0], bytes):
        made = made.arguments[0]
    if isinstance(made, Stranger) and made.name.endswith(".bytes"):  # so Python 2 reads none
        return b""
    if isinstance(made, str):
        made = made.encode("latin-1")
    if not isinstance(made, bytes | bytearray):
        raise Unreadable("has an array of Python objects, which could run code: save numbers alone")
    return made
