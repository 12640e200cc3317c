"""What a compiled program reads, writes and sends, by its text."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_FREE = ("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all")
_INSIDE = ("while", "conditional", "call", "async-start")
_TAKE = ("slice", "dynamic-slice", "gather")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.+?) (?P<op>[\w\-]+)\((?P<rest>.*)")


class Instruction(NamedTuple):
    """An instruction of a program: ``%name = shape op(rest``."""

    name: str
    shape: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of its operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])


@dataclasses.dataclass(frozen=True)
class Collective:
    """How often a program calls a collective operation, and the bytes in all of its arrays when they are whole."""

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device reads and writes, and what devices send each other.

    Attributes:
        moved: bytes, where each operation reads its operands and writes its result once. Of an array that it only
            takes slices of, it reads these.
        collectives: by their names.
    """

    moved: int
    collectives: Mapping[str, Collective]


def count_bytes(shape: str) -> int:
    """The bytes of a shape, or of a tuple of shapes: ``(f32[2,3]{1,0}, bf16[4])`` has 32."""
    arrays = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape)
    return sum(BYTES.get(kind, 1) * math.prod(map(int, filter(None, sizes.split(",")))) for kind, sizes in arrays)


def read_traffic(text: str) -> Traffic:
    """The traffic of a program, `compiled.as_text()`. A loop counts as often as it runs, if the program says that."""
    computations, entry = _read(text)
    moved, counts, sizes = 0, collections.Counter(), collections.Counter()
    for times, instruction, own in _walk(computations, entry, 1):
        op = instruction.op.removesuffix("-start")
        read = _read_bytes(instruction, own, computations)
        shape = instruction.shape
        if instruction.op == "custom-call":
            shape = re.sub(r"\b[su]8\[\d+\]", "", shape)  # a library's workspace
        written = count_bytes(shape)
        if instruction.op.endswith("-start") and op != "all-reduce":  # its result holds its operands, too
            written -= sum(read)
        moved += times * (sum(read) + written)
        if op in COLLECTIVES:
            counts[op] += times
            sizes[op] += times * max(sum(read), written)
    return Traffic(moved, {op: Collective(counts[op], sizes[op]) for op in COLLECTIVES if counts[op]})


def _read_bytes(
    instruction: Instruction, own: dict[str, Instruction], computations: dict[str, dict[str, Instruction]]
) -> list[int]:
    """What an operation reads of each operand."""
    inside, names = {instruction.name: instruction}, instruction.operands
    if fused := re.search(r"calls=%?([\w.\-]+)", instruction.rest if instruction.op == "fusion" else ""):
        inside = computations[fused[1]]
        parameters = {one.rest.partition(")")[0]: name for name, one in inside.items() if one.op == "parameter"}
        names = [parameters[str(number)] for number in range(len(parameters))]
    shares = collections.defaultdict[str, float](float)  # how much of each result is needed
    shares[list(inside)[-1]] = 1.0
    for one in reversed(list(inside.values())):
        for place, name in enumerate(one.operands):
            source, part = inside.get(name) or own.get(name), 1.0
            if source and one.op in _TAKE and place == 0:
                part = count_bytes(one.shape) / max(1, count_bytes(source.shape))
            shares[name] = min(1.0, shares[name] + shares[one.name] * part)
    operands = zip(names, instruction.operands, strict=True)
    return [round(shares[name] * count_bytes(own[operand].shape)) for name, operand in operands if operand in own]


def _read(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Every computation of a program, and the name of the first that runs."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := re.match(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$", line):
            current = computations.setdefault(head["name"], {})
            entry = head["name"] if head["entry"] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current[match["name"]] = Instruction(**match.groupdict())
    return computations, entry


def _walk(
    computations: dict[str, dict[str, Instruction]], name: str, times: int
) -> Iterator[tuple[int, Instruction, dict[str, Instruction]]]:
    """Every instruction that moves data: how often, and the computation that it is in."""
    own = computations[name]
    for instruction in own.values():
        op, rest = instruction.op, instruction.rest
        if op in _FREE or op.endswith("-done"):
            continue
        if op not in _INSIDE:
            yield times, instruction, own
            continue
        runs = re.search(r"known_trip_count\D+(\d+)", rest) if op == "while" else None
        for part in re.findall(r"(?:body|to_apply|calls|computations|computation)=\{?%?([\w.\-]+)", rest)[:1]:
            yield from _walk(computations, part, times * (int(runs[1]) if runs else 1))
