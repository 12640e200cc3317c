"""Pickles read as data: what stands in them, without calling anything that they name.

torch's own reader (`torch.load` with `weights_only`) runs no foreign code either, but it believes what a pickle says:
it reads past the end of short storages, and a few bytes make it allocate gigabytes or hash for hours. Here nothing in
a pickle is called: a call is kept as a `Call`. So time and memory grow with the number of bytes alone.
"""

import dataclasses
import io
import pickletools
import re
from typing import Any

_MOST_STEPS = 2_000_000
"""A pickle may have so many opcodes; a network of 500 tensors with its optimizer has 50,000."""

_PLAIN = re.compile(
    r"collections\.(OrderedDict|Counter)|_codecs\.encode|(__builtin__|builtins)\.(bytearray|set|frozenset|complex)"
    r"|torch\.(cuda\.|sparse\.|cuda\.sparse\.|storage\.)?[A-Za-z]\w*(Storage|Tensor)|torch\.(Tensor|Size|device)"
    r"|torch\.(b?float|u?int|q?u?int|complex|bits|bool|half|double|long|short|per_)\w*"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)|argparse\.Namespace"
)
"""What a file of tensors may name: containers, torch's tensors and their parts, and the arguments of a run."""

_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Unreadable(ValueError):
    """Why bytes are not read as weights: a sentence without its subject, the file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """A class or function by its name."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What a call of `name` would make."""

    name: str
    arguments: tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Outside:
    """A part of the file outside the pickle, such as a tensor's storage, by the number or tuple that names it."""

    identity: Any


@dataclasses.dataclass(frozen=True, eq=False)
class OddKey:
    """A key that is not a string. It is not hashed, because a hostile file's keys could take forever to hash."""

    key: Any


def read_pickle(file: io.BytesIO) -> tuple[Any, list[Outside]]:
    """The next pickle of a file, and the parts outside it that it names.

    Mappings become dicts, sets lists.

    Raises:
        Unreadable: it names something that could run code, or does what no file of tensors does.
        Exception: it is damaged (IndexError, KeyError, ValueError, ...).
    """
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[int, Any] = {}
    outside: list[Outside] = []
    steps = 0
    for opcode, value, _ in pickletools.genops(file):
        steps += 1
        name = opcode.name
        if name in _VALUES:
            stack.append(value)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [_last(stack, _TUPLES[name])]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[value])  # pyright: ignore[reportArgumentType]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else value] = stack[-1]  # pyright: ignore[reportArgumentType]
        elif name == "MARK":
            below.append(stack)
            stack = []
        elif name in ("EMPTY_LIST", "EMPTY_SET"):
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in ("TUPLE", "LIST", "FROZENSET", "DICT", "APPENDS", "ADDITEMS", "SETITEMS", "POP_MARK"):
            items, stack = stack, below.pop()
            if name in ("APPENDS", "ADDITEMS"):
                _of(list, stack[-1]).extend(items)
            elif name == "SETITEMS":
                _put(stack[-1], items)
            elif name == "DICT":
                stack.append(_put({}, items))
            elif name != "POP_MARK":
                stack.append(items if name == "LIST" else tuple(items))
        elif name == "APPEND":
            item = stack.pop()
            _of(list, stack[-1]).append(item)
        elif name == "SETITEM":
            items = _last(stack, 2)
            del stack[-2:]
            _put(stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                value = " ".join(_of(str, part) for part in _last(stack, 2))
                del stack[-2:]
            stack.append(Named(_plain(str(value).replace(" ", "."))))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = _last(stack, 2)
            arguments = _of(tuple, arguments)
            if _of(Named, function).name == "collections.OrderedDict":
                pairs = _of(list, arguments[0]) if arguments else []
                steps += len(pairs)
                made: Any = _put({}, [part for key, item in pairs for part in (key, item)])
            else:
                made = Call(function.name, arguments)
            stack[-2:] = [made]
        elif name == "BUILD":  # attributes, such as a state_dict's versions of its modules
            stack.pop()
            if not (isinstance(stack[-1], Call) and stack[-1].name == "argparse.Namespace"):
                _of(dict, stack[-1])
        elif name == "BINPERSID":
            outside.append(Outside(stack.pop()))
            stack.append(outside[-1])
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            return stack.pop(), outside
        elif name not in ("PROTO", "FRAME"):
            raise Unreadable(f"is not a file of plain tensors, got a pickle with {name}: save model.state_dict()")
        if steps > _MOST_STEPS:
            raise Unreadable(f"holds more than {_MOST_STEPS} things beside its tensors: save model.state_dict() alone")
    raise EOFError("the pickle does not end")


def _plain(name: str) -> str:
    if not _PLAIN.fullmatch(name):
        raise Unreadable(
            "is not a file of plain tensors, and reading it could run code, so it was not read "
            f"(GLOBAL {name[:200]!r}). If you trust it, load it with torch yourself and pass its state_dict"
        )
    return name


def _last(stack: list[Any], count: int) -> tuple[Any, ...]:
    if len(stack) < count:
        raise IndexError("the pickle takes more than it gives")
    return tuple(stack[-count:])


def _of(kind: type, thing: Any) -> Any:
    if not isinstance(thing, kind):
        raise TypeError(f"the pickle has a {type(thing).__name__} for a {kind.__name__}")
    return thing


def _put(mapping: Any, items: Any) -> dict[Any, Any]:
    """Keys and values in turn into a dict."""
    for key, item in zip(items[::2], items[1::2], strict=True):
        known = key if isinstance(key, str) else OddKey(key)
        if known in _of(dict, mapping):
            raise Unreadable(f"holds {key!r} twice: it is damaged, fetch it again")
        mapping[known] = item
    return mapping
