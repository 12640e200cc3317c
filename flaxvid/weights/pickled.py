"""Pickles read as data: what stands in them, without calling anything that they name.

torch's own reader (`torch.load` with `weights_only`) runs no foreign code either, but it believes what a pickle says:
it reads past the end of short storages, and a few bytes make it allocate gigabytes or hash for hours. Here nothing in
a pickle is called: a call is kept as a `Call`. So time and memory grow with the number of bytes alone.
"""

import dataclasses
import pickletools
import re
from typing import IO, Any

_MOST_STEPS = 2_000_000
"""A pickle may have so many opcodes; a network of 500 tensors with its optimizer has 50,000."""

_PLAIN = re.compile(
    r"collections\.(OrderedDict|defaultdict)|_codecs\.encode|(__builtin__|builtins)\.bytearray"
    r"|torch\.(cuda\.|sparse\.|cuda\.sparse\.|storage\.)?[A-Za-z]\w*(Storage|Tensor)|torch\.(Tensor|Size|device)"
    r"|torch\.(b?float|u?int|q?u?int|complex|bits|bool|half|double|long|short|per_)\w*"
    r"|torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout"
    r"|torch\.nn\.parameter\.(Parameter|Buffer)"
    r"|numpy\.(_?core\.(multiarray\._reconstruct|numeric\._frombuffer)|ndarray|dtype)"
)
"""What a file of tensors may name: containers, and tensors of torch and NumPy and their parts."""

_STRANGERS = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|collections\.(Counter|deque)|pathlib\.(\w+\.)?\w*Path|uuid\.UUID"
    r"|datetime\.(datetime|date|time|timedelta|timezone)|(__builtin__|builtins)\.(getattr|object|set|frozenset|complex"
    r"|slice|range|xrange|bool|int|long|float|str|unicode|bytes|list|dict|tuple)|(copyreg|copy_reg)\._reconstructor"
    r"|numpy\.(_?core\.multiarray\.scalar|random\.[\w.]+)"
    r"|mmengine\.(logging\.history_buffer\.HistoryBuffer(\.\w+)?|config\.config\.(Config|ConfigDict))"
    r"|mmcv\.utils\.config\.(Config|ConfigDict)|addict\.addict\.Dict|easydict\.EasyDict|(yacs|fvcore\.common)\.config\.CfgNode"
    r"|omegaconf\.\w+\.\w+|typing\.Any|(pytorch_lightning|lightning_fabric|lightning)\.[\w.]+"
    r"|torch\.optim\.[\w.]+|deepspeed\.(runtime\.fp16\.loss_scaler|utils\.tensor_fragment)\.\w+"
)
"""What training leaves beside the tensors: times, settings, histories, states of optimizers. It is skipped."""

_GIVE_THEIR_FIRST = re.compile(r"(copyreg|copy_reg)\._reconstructor|(__builtin__|builtins)\.getattr")
"""What these make is of the kind of their first argument: an object of a class, or a method of one."""

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


@dataclasses.dataclass(eq=False)
class Call:
    """What a call of `name` would make, and what the file then puts into it."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None

    @property
    def is_tensor(self) -> bool:
        """Whether it would make a tensor of torch or an array of NumPy."""
        return self.name.startswith(("torch._utils._rebuild_", "torch._tensor._rebuild_")) or self.is_array

    @property
    def is_array(self) -> bool:
        """Whether it would make an array of NumPy."""
        return self.name.startswith("numpy.") and self.name.endswith(("._reconstruct", "._frombuffer"))


@dataclasses.dataclass(frozen=True, eq=False)
class Stranger:
    """A class that has nothing to do with tensors, or an object of it. What is in the object is skipped."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Outside:
    """A part of the file outside the pickle, such as a tensor's storage, by the number or tuple that names it."""

    identity: Any


@dataclasses.dataclass(frozen=True, eq=False)
class OddKey:
    """A key that is not a string. It is not hashed, because a hostile file's keys could take forever to hash."""

    key: Any


class _Bounded:
    """A file that takes no memory for bytes that it does not have."""

    def __init__(self, file: IO[bytes], size: int):
        self.readline, self._file, self._size = file.readline, file, size

    def read(self, count: int) -> bytes:
        if count > 1 << 16:  # the many small reads go straight on
            count = min(count, self._size - self._file.tell())
        return self._file.read(count)


def read_pickle(file: IO[bytes], size: int) -> tuple[Any, list[Outside]]:
    """The next pickle of a file of so many bytes, and the parts outside it that it names.

    Mappings become dicts, sets lists.

    Raises:
        Unreadable: it names something that is not known to be harmless, or does what no file of tensors does.
        Exception: it is damaged (IndexError, KeyError, ValueError, ...).
    """
    stack: list[Any] = []
    below: list[list[Any]] = []
    memo: dict[int, Any] = {}
    outside: list[Outside] = []
    steps = 0
    for opcode, value, _ in pickletools.genops(_Bounded(file, size)):  # pyright: ignore[reportArgumentType]
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
                _fill(stack[-1], items)
            elif name == "SETITEMS":
                _put(stack[-1], items)
            elif name == "DICT":
                stack.append(_put({}, items))
            elif name != "POP_MARK":
                stack.append(items if name == "LIST" else tuple(items))
        elif name == "APPEND":
            item = stack.pop()
            _fill(stack[-1], [item])
        elif name == "SETITEM":
            items = _last(stack, 2)
            del stack[-2:]
            _put(stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                value = " ".join(_of(str, part) for part in _last(stack, 2))
                del stack[-2:]
            stack.append(_named(str(value)))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = _last(stack, 2)
            made = _call(function, _of(tuple, arguments))
            steps += len(made) if isinstance(made, dict) else 0
            stack[-2:] = [made]
        elif name == "NEWOBJ_EX":
            function, arguments, _ = _last(stack, 3)
            stack[-3:] = [_call(function, _of(tuple, arguments))]
        elif name in ("INST", "OBJ"):  # Python 2's way to make an object
            items, stack = stack, below.pop()
            stack.append(_call(_named(str(value)) if name == "INST" else items.pop(0), tuple(items)))
        elif name == "BUILD":  # attributes, such as a state_dict's versions of its modules
            state = stack.pop()
            if isinstance(stack[-1], Call) and stack[-1].name.startswith("numpy."):
                stack[-1].state = state
            elif not isinstance(stack[-1], Stranger):
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


def _named(value: str) -> Named | Stranger:
    """A class or function that the pickle names, as "module name"."""
    name = value.replace(" ", ".")
    if _STRANGERS.fullmatch(name):
        return Stranger(name)
    if not _PLAIN.fullmatch(name):
        raise _refusal(name)
    return Named(name)


def _refusal(name: str) -> Unreadable:
    return Unreadable(
        "is not a file of plain tensors, and reading it could run code, so it was not read "
        f"(GLOBAL {name[:200]!r}). If you trust it, load it with torch yourself and pass its state_dict"
    )


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
    if isinstance(function, Stranger):
        if not _GIVE_THEIR_FIRST.fullmatch(function.name):
            return function
        if not (arguments and isinstance(arguments[0], Stranger)):
            raise _refusal(function.name)
        return arguments[0]
    name = _of(Named, function).name
    if name == "collections.OrderedDict":
        pairs = _of(list, arguments[0]) if arguments else []
        return _put({}, [part for key, item in pairs for part in (key, item)])
    return {} if name == "collections.defaultdict" else Call(name, arguments)


def _last(stack: list[Any], count: int) -> tuple[Any, ...]:
    if len(stack) < count:
        raise IndexError("the pickle takes more than it gives")
    return tuple(stack[-count:])


def _of(kind: type, thing: Any) -> Any:
    if not isinstance(thing, kind):
        raise TypeError(f"the pickle has a {type(thing).__name__} for a {kind.__name__}")
    return thing


def _fill(container: Any, items: list[Any]) -> None:
    if not isinstance(container, Stranger):
        _of(list, container).extend(items)


def _put(mapping: Any, items: Any) -> Any:
    """Keys and values in turn into a dict."""
    if isinstance(mapping, Stranger):
        return mapping
    for key, item in zip(items[::2], items[1::2], strict=True):
        known = key if isinstance(key, str) else OddKey(key)
        if known in _of(dict, mapping):
            raise Unreadable(f"holds {key!r} twice: it is damaged, fetch it again")
        mapping[known] = item
    return mapping
