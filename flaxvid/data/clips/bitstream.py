"""Proves by the bits of a video which of its packets need not be decoded.

A container's times and flags may be wrong: MP4 without a list of key frames calls every packet one, and cuts and
repairs leave times in no order. The headers of the pictures cannot be wrong, because every decoder obeys them. A plain
stream has one ordinary picture in each packet, one set of parameters, no lost picture, and an order in which pictures
are shown. Everything else is strange. Then nothing is proven, and the whole stream is decoded.
"""

import abc
import heapq
from typing import Any, NamedTuple

from av.packet import Packet


class StrangeError(Exception):
    """The stream is not plain enough to prove anything."""


class Picture(NamedTuple):
    """The one picture of a packet.

    Attributes:
        is_start: Neither this picture nor a later one needs an earlier one, both in order of decoding and as shown.
        is_needed: Other pictures may be predicted from it.
        order: Sorts the pictures as they are shown.
    """

    is_start: bool
    is_needed: bool
    order: tuple[int, int]


class Bits:
    """Reads bits one after the other. An end that comes too early is strange."""

    def __init__(self, content: bytes):
        self.text, self.position = bin(int.from_bytes(b"\1" + content))[3:], 0

    def take(self, count: int) -> int:
        """Reads an unsigned number of `count` bits."""
        begin, self.position = self.position, self.position + count
        if self.position > len(self.text):
            raise StrangeError
        return int(self.text[begin : self.position] or "0", 2)

    def golomb(self) -> int:
        """Reads an unsigned Exp-Golomb number, `ue(v)`. A signed one takes the same bits."""
        one = self.text.find("1", self.position)
        if one < 0:
            raise StrangeError
        zeros, self.position = one - self.position, one
        return self.take(zeros + 1) - 1

    def expect(self, *values: int) -> None:
        """Reads bits that a plain stream has."""
        for value in values:
            if self.take(1) != value:
                raise StrangeError


class InOrder:
    """A stream that shows pictures in the order of its packets."""

    is_needed = True

    def __init__(self, codec: Any):
        self.number, self.extradata = 0, codec.extradata or b""

    def add(self, packet: Packet) -> Picture:
        """Reads the next packet in the order of decoding. A strange one voids all answers before it."""
        is_start = self._is_start(bytes(packet))
        if not (self.number or is_start):  # predicted from nothing
            raise StrangeError
        self.number += 1
        return Picture(is_start, self.is_needed, (0, self.number))

    @abc.abstractmethod
    def _is_start(self, content: bytes) -> bool:
        """Whether decoding can begin at a packet."""


class MPEG4(InOrder):
    """MPEG-4 part 2 (Xvid, DivX) without B-frames.

    These are strange: packed bitstreams (several pictures in a packet, then an empty one), B-pictures, sprites,
    pictures that are "not coded", and parameters that come again with another value.
    """

    first, bits = b"", 0

    def _is_start(self, content: bytes) -> bool:
        head, _, body = content.partition(b"\0\0\1\xb6")
        parameters, _, group = head.partition(b"\0\0\1\xb3")  # a group's header only says a time
        if b"\0\0\1" in body or b"\0\0\1" in group or len(body) < 4:
            raise StrangeError
        if not self.number:
            self.first, self.bits = parameters, _time_bits(parameters if b"\0\0\1\x20" in head else self.extradata)
        elif parameters not in (b"", self.first):
            raise StrangeError
        bits = Bits(body[:16])
        kind = bits.take(2)
        while bits.take(1):  # seconds
            pass
        bits.expect(1)
        bits.take(self.bits)
        bits.expect(1, 1)  # a marker, and "coded"
        if kind > 1:  # B or sprite
            raise StrangeError
        return kind == 0


def _time_bits(header: bytes) -> int:
    """Bits of the time within a second, read from the header of a video object layer."""
    _, start, layer = header.partition(b"\0\0\1\x20")
    if not start or header.count(start) > 1:
        raise StrangeError
    bits = Bits(layer[:32])
    bits.take(9)
    if bits.take(1):
        bits.take(7)
    if bits.take(4) == 15:
        bits.take(16)
    if bits.take(1):
        bits.take(3)
        if bits.take(1):
            bits.take(79)
    bits.expect(0, 0, 1)  # rectangular, a marker
    resolution = bits.take(16)
    bits.expect(1)
    if not resolution:
        raise StrangeError
    return max(1, (resolution - 1).bit_length())


_HIGH = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244}
"""Profiles of H.264 whose parameters begin with the chroma format."""
_HARMLESS = {0, 1, 3, 4, 5, 6, 45, 137, 144}
"""Messages (SEI) that change no pixel: buffers, times, captions, the encoder, recovery, two eyes, light."""
_RECOVERY = 6


class H264:
    """H.264 with its parameters in the container, in whole frames (no fields), with nothing lost.

    By the standard, frame_num shows whether a needed frame was lost, an IDR picture starts anew, no other picture needs
    one with nal_ref_idc 0, and the picture order count sorts pictures. FFmpeg's decoder obeys that order if it holds
    back as many pictures as the stream reorders.
    """

    def __init__(self, codec: Any):
        self.depth = codec.reorder_depth
        self.parameters = _parameter_sets(codec.extradata or b"")  # avcC
        sequences = [unit for unit in self.parameters if unit[0] & 31 == 7]
        if len(sequences) != 1:
            raise StrangeError
        self.frame_bits, self.order_bits, sequence = _sequence(sequences[0])
        self.pictures = {_picture_set(unit, sequence) for unit in self.parameters if unit[0] & 31 == 8}
        self.period = self.number = self.last_frame = 0
        self.low, self.high = 0, 0  # picture order count of the last picture that others need
        self.waiting: list[tuple[int, int]] = []
        self.shown, self.floor, self.largest = (0, 0), (0, 0), (0, 0)

    def add(self, packet: Packet) -> Picture:
        """Reads the next packet in the order of decoding. A strange one voids all answers before it."""
        view = memoryview(packet)
        position, size, first, is_recovery = 0, len(view), b"", False
        while position < size:
            start = position + 4
            position = start + int.from_bytes(view[position:start])
            if position > size or position == start:
                raise StrangeError
            header = view[start]
            kind = header & 31
            if kind == 1 or kind == 5:
                if not first:
                    first = bytes(view[start : min(start + 40, position)])
                # More slices of the same picture begin further down in it.
                elif header != first[0] or start + 1 == position or view[start + 1] & 128:
                    raise StrangeError
            elif kind == 6:
                is_recovery |= _RECOVERY in _messages(bytes(view[start + 1 : position]))
            elif kind == 7 or kind == 8:
                if bytes(view[start:position]) not in self.parameters:
                    raise StrangeError
            elif kind != 9 and kind != 12:  # a delimiter, filler
                raise StrangeError
        if not first:
            raise StrangeError
        picture = self._picture(first)
        self._sort(picture, is_recovery)
        return picture

    def _picture(self, slice_: bytes) -> Picture:
        header = slice_[0]
        bits = Bits(slice_[1:].replace(b"\0\0\3", b"\0\0"))
        is_start, is_needed = header & 31 == 5, bool(header & 96)
        first_block, kind, picture_set = bits.golomb(), bits.golomb(), bits.golomb()
        frame = bits.take(self.frame_bits)
        if header & 128 or first_block or kind > 9 or kind % 5 > 2 or picture_set not in self.pictures:
            raise StrangeError
        if is_start:
            bits.golomb()
            self.period += 1
            self.low = self.high = 0
            if frame or not is_needed or kind % 5 != 2:
                raise StrangeError
        elif not self.period or frame != (self.last_frame + 1) % (1 << self.frame_bits):
            raise StrangeError  # no first picture, or one is lost
        self.number += 1
        low, high, order = 0, 0, self.number
        if self.order_bits:
            low, high, span = bits.take(self.order_bits), self.high, 1 << self.order_bits
            if low < self.low and self.low - low >= span // 2:
                high += span
            elif low > self.low and low - self.low > span // 2:
                high -= span
            order = high + low
        if is_start:
            bits.expect(0)  # or pictures before it are never shown
        if is_needed:
            self.last_frame, self.low, self.high = frame, low, high
        return Picture(is_start, is_needed, (self.period, order))

    def _sort(self, picture: Picture, is_recovery: bool) -> None:
        """Checks that a decoder that holds back `depth` pictures shows them in their order."""
        if is_recovery and not picture.is_start:  # FFmpeg shows all pictures before it first
            self.floor = self.largest
        if picture.order <= max(self.floor, self.shown) or (is_recovery and not picture.is_needed):
            raise StrangeError
        self.largest = max(self.largest, picture.order)
        heapq.heappush(self.waiting, picture.order)
        if len(self.waiting) > self.depth:
            self.shown = heapq.heappop(self.waiting)


def _parameter_sets(box: bytes) -> set[bytes]:
    """The units of an avcC box whose packets write lengths in four bytes."""
    if len(box) < 7 or box[0] != 1 or box[4] & 3 != 3:
        raise StrangeError
    units, position = set(), 5
    for mask in (31, 255):
        if position >= len(box):
            raise StrangeError
        count, position = box[position] & mask, position + 1
        for _ in range(count):
            start = position + 2
            position = start + int.from_bytes(box[position:start])
            if position > len(box) or position == start:
                raise StrangeError
            units.add(box[start:position])
    return units


def _sequence(unit: bytes) -> tuple[int, int, int]:
    """Bits of frame_num, bits of the order count (0: shown as decoded) and number of a sequence's parameters."""
    profile, bits = unit[1], Bits(unit[4:].replace(b"\0\0\3", b"\0\0"))
    number = bits.golomb()
    if profile in _HIGH:
        if bits.golomb() == 3:
            bits.expect(0)  # planes of their own
        bits.golomb()
        bits.golomb()
        bits.take(1)
        bits.expect(0)  # matrices
    frame_bits, kind = bits.golomb() + 4, bits.golomb()
    if kind == 1:
        raise StrangeError
    order_bits = bits.golomb() + 4 if kind == 0 else 0
    bits.golomb()
    bits.expect(0)  # no gaps in frame_num
    bits.golomb()
    bits.golomb()
    bits.expect(1)  # whole frames
    return frame_bits, order_bits, number


def _picture_set(unit: bytes, sequence: int) -> int:
    """The number of a picture's parameters."""
    bits = Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))
    number = bits.golomb()
    if bits.golomb() != sequence:
        raise StrangeError
    bits.take(1)
    bits.expect(0)  # a picture's two fields have one order
    if bits.golomb():
        raise StrangeError  # groups of slices
    bits.golomb()
    bits.golomb()
    bits.take(3)
    for _ in range(3):
        bits.golomb()
    bits.take(2)
    bits.expect(0)  # no pictures twice
    return number


def _messages(unit: bytes) -> set[int]:
    """The kinds of messages (SEI) in a unit."""
    content, position, kinds = unit.replace(b"\0\0\3", b"\0\0"), 0, set()
    while position + 1 < len(content):  # the last byte ends the unit
        numbers = []
        for _ in range(2):
            number = 0
            while position < len(content) and content[position] == 255:
                number, position = number + 255, position + 1
            if position >= len(content):
                raise StrangeError
            numbers.append(number + content[position])
            position += 1
        kinds.add(numbers[0])
        position += numbers[1]
    if not kinds <= _HARMLESS:
        raise StrangeError
    return kinds
