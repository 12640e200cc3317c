"""The tensors in what a file holds: which mapping of them is meant, and what beside it is left out."""

from collections.abc import Iterator, Mapping
from typing import Any

from flaxvid.weights.pickled import Call, Named, OddKey, Stranger, Unreadable
from flaxvid.weights.safetensors_file import is_name

CONTAINERS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "encoder", "target_encoder", "net", "ema",
    "blobs",
)  # fmt: skip
"""Names under which training programs save a network; the last is Caffe2's."""
_DEEPEST = 8
INDICES = ("num_batches_tracked", "relative_position_index", "position_ids")
"""Whole numbers that some modules of torch save beside their parameters: counters and places, which follow from
shapes."""
_PLAIN = ("builtins.", "__builtin__.", "collections.", "numpy.", "torch.")
"""Where the classes of plain values are from, which need no word."""
_MOST_SHOWN = 10


def find_tensors(content: Any, part: str | None = None) -> tuple[dict[str, Any], str]:
    """The tensors of what a file or caller holds, however nested, without counters and indices.

    Args:
        content: what there is. Tensors may be the calls that would make them.
        part: where to look, such as "target_encoder" or "model/ema"; None looks everywhere.

    Returns:
        The tensors by their names, and a line that says what else there is; "" where that is plain values.

    Raises:
        Unreadable: there are none, or several mappings of them.
    """
    if not isinstance(content, Mapping):
        kind = "Tensor" if isinstance(content, Call) and content.is_tensor else type(content).__name__
        raise Unreadable(f"must hold a mapping of tensors, got {kind}: save model.state_dict()")
    start = take_part(content, part)
    parts = _find(start, part or "", set())
    if len(parts) > 1:
        names = [repr(name) for name in {**parts, **_others(start, part)}]
        raise Unreadable(
            f"must hold tensors in one place, got {', '.join(names[:-1])} and {names[-1]}: choose by part={names[0]}"
        )
    if not parts:
        raise _no_tensors(start, part)
    ((path, tensors),) = parts.items()
    if odd := [key for key in tensors if not is_name(key)]:
        raise Unreadable(f"must have names of tensors for keys, got {_shown(odd[0])}: pass the state_dict")
    left = list(_left_out(content, path.split("/") if path else []))
    more = f" and {len(left) - _MOST_SHOWN} others" if len(left) > _MOST_SHOWN else ""
    return tensors, f"{path!r} is read; left out: {', '.join(left[:_MOST_SHOWN])}{more}" if left else ""


def take_part(content: Any, part: str | None) -> Any:
    """The mapping at a path such as "model/ema"; all for None.

    Raises:
        Unreadable: there is none.
    """
    if part is None:
        return content
    found = content
    for name in part.split("/"):
        found = found.get(name) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        items = content.items() if isinstance(content, Mapping) else ()
        parts = [repr(key)[:80] for key, item in items if isinstance(item, Mapping)]
        raise Unreadable(f"has no part {part!r}, expected one of {', '.join(parts) or '(none)'}: choose another")
    return found


def is_tensor(item: Any) -> bool:
    """Whether it is a tensor, an array, or a call that would make one."""
    return item.is_tensor if isinstance(item, Call) else hasattr(item, "shape")


def _find(mapping: Mapping[Any, Any], path: str, above: set[int], seen: set[int] | None = None) -> dict[str, Any]:
    """The mappings of tensors at or under a mapping, by their paths."""
    seen = set() if seen is None else seen
    if len(above) == _DEEPEST or id(mapping) in above:
        raise Unreadable(
            f"has mappings in mappings, more than {_DEEPEST} deep, or one that holds itself: pass the one that holds "
            "the tensors"
        )
    if id(mapping) in seen:
        return {}
    seen.add(id(mapping))
    inner = {name: item for name in CONTAINERS if isinstance(item := mapping.get(name), Mapping)}
    if not inner and (tensors := _all_tensors(mapping, path)):
        return {path: tensors}
    found: dict[str, Any] = {}
    for name, item in inner.items():
        found |= _find(item, f"{path}/{name}".removeprefix("/"), above | {id(mapping)}, seen)
    return found


def _all_tensors(mapping: Mapping[Any, Any], path: str) -> dict[str, Any]:
    """What a mapping holds if that is tensors alone, but for what is not read of it; else {}."""
    caffe2 = path.rpartition("/")[-1] == "blobs"
    kept = {key: item for key, item in mapping.items() if not (isinstance(key, str) and _is_unread(key, caffe2))}
    return kept if all(map(is_tensor, kept.values())) else {}


def _is_unread(key: str, caffe2: bool) -> bool:
    return key.endswith(INDICES) or (caffe2 and (key in ("lr", "model_iter") or key.endswith("_momentum")))


def _others(mapping: Mapping[Any, Any], part: str | None) -> dict[str, Any]:
    """Mappings of tensors under names that do not tell of a network."""
    inner = {
        f"{part or ''}/{name}".removeprefix("/"): item
        for name, item in mapping.items()
        if isinstance(name, str) and name not in CONTAINERS and isinstance(item, Mapping)
    }
    return {path: item for path, item in inner.items() if _all_tensors(item, path)}


def _no_tensors(start: Mapping[Any, Any], part: str | None) -> Unreadable:
    mapping, others = start, _others(start, part)
    while inner := [mapping[name] for name in CONTAINERS if isinstance(mapping.get(name), Mapping)]:
        mapping = inner[0]
    got = [_shown(key) for key, item in mapping.items() if not is_tensor(item)][:_MOST_SHOWN]
    fix = f"choose by part={next(iter(others))!r}" if others else "pass the part of it that is the state_dict"
    return Unreadable(
        f"must hold tensors by name, at the top or under {', '.join(CONTAINERS)}, got "
        f"{', '.join(got) or 'an empty mapping'}: {fix}"
    )


def _left_out(content: Mapping[Any, Any], path: list[str]) -> Iterator[str]:
    """What is beside the mappings on a path, if it is more than plain values, with the classes that it is of."""
    mapping: Any = content
    for name in path:
        for key, item in mapping.items():
            if key != name and item is not mapping[name] and (kinds := _kinds(item)):
                yield f"{_shown(key)} ({', '.join(sorted(kinds))})"
        mapping = mapping[name]
    if path and path[-1] == "blobs" and any(isinstance(key, str) and key.endswith("_momentum") for key in mapping):
        yield "the blobs '..._momentum' (tensors)"


def _kinds(item: Any) -> set[str]:
    """The classes of all that is in something, and "tensors"; none for plain values."""
    found, todo, seen = set(), [item], set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Mapping):
            todo += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            todo += one
        elif is_tensor(one):
            found.add("tensors")
        elif isinstance(one, Stranger):
            found.add(one.name)
        elif not isinstance(one, Call | Named | int | float | complex | str | bytes | bytearray | None):
            found.add(f"{type(one).__module__}.{type(one).__qualname__}")
    return {name for name in found if not name.startswith(_PLAIN)}


def _shown(key: Any) -> str:
    key = key.key if isinstance(key, OddKey) else key
    return repr(key)[:80] if isinstance(key, int | float | bytes | str) else f"a {type(key).__name__}"
