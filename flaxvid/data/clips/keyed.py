"""Proves by the bits of VP9, AV1 and Motion JPEG that each packet shows one picture, and where decoding can begin.

See `bitstream`. A key frame of these streams resets the decoder.
"""

from collections.abc import Mapping

from flaxvid.data.clips.bitstream import Bits, InOrder, StrangeError


class VP9(InOrder):
    """VP9: a hidden picture shares its packet with a shown one. A packet that shows none or several is strange."""

    def _is_start(self, content: bytes) -> bool:
        heads = [_vp9_head(frame) for frame in _vp9_frames(content)]
        if [is_shown for _, is_shown in heads] != [False] * (len(heads) - 1) + [True]:
            raise StrangeError
        return heads[0][0] and len(heads) == 1


def _vp9_frames(content: bytes) -> list[bytes]:
    """The frames of a packet, by the index of sizes at its end."""
    mark = content[-1]
    if mark & 0xE0 != 0xC0:
        return [content]
    count, width = (mark & 7) + 1, (mark >> 3 & 3) + 1
    index = content[-(2 + count * width) :]
    if index[0] != mark or len(index) < 2 + count * width:
        raise StrangeError
    frames, position = [], 0
    for i in range(count):
        size = int.from_bytes(index[1 + i * width : 1 + (i + 1) * width], "little")
        if not size or position + size > len(content) - len(index):
            raise StrangeError
        frames.append(content[position : position + size])
        position += size
    if position != len(content) - len(index):
        raise StrangeError
    return frames


def _vp9_head(frame: bytes) -> tuple[bool, bool]:
    """Whether a frame is a key frame, and whether it is shown."""
    bits = Bits(frame[:4])
    bits.expect(1, 0)
    if bits.take(2) == 3:
        bits.expect(0)
    if bits.take(1):  # one that was decoded before
        return False, True
    is_key = not bits.take(1)
    return is_key, bool(bits.take(1))


_SEQUENCE, _HEADER, _FRAME = 1, 3, 6


class AV1(InOrder):
    """AV1 with one sequence header and no layers. A packet that shows no picture or several is strange."""

    sequence = b""

    def _is_start(self, content: bytes) -> bool:
        position, heads, has_sequence = 0, [], False
        while position < len(content):
            head = content[position]
            if head & 0x87 != 2:  # an extension names a layer; units without a size cannot be told apart
                raise StrangeError
            size, position = _leb128(content, position + 1)
            unit, kind = content[position : position + size], head >> 3
            position += size
            if position > len(content) or (kind == _SEQUENCE and not size):
                raise StrangeError
            if kind == _SEQUENCE:
                self.sequence, has_sequence = self.sequence or unit, True
                if unit != self.sequence or unit[0] & 0x18:  # still pictures
                    raise StrangeError
            elif kind in (_HEADER, _FRAME):
                bits = Bits(unit[:2])
                is_old = bits.take(1)
                heads.append((False, True) if is_old else (bits.take(2) == 0, bool(bits.take(1))))
        if [is_shown for _, is_shown in heads].count(True) != 1:
            raise StrangeError
        return has_sequence and heads[0] == (True, True)


def _leb128(content: bytes, position: int) -> tuple[int, int]:
    """A number of up to four bytes, and where it ends."""
    number = 0
    for i in range(4):
        if position + i >= len(content):
            break
        number |= (content[position + i] & 127) << 7 * i
        if content[position + i] < 128:
            return number, position + i + 1
    raise StrangeError


class MJPEG(InOrder):
    """Motion JPEG whose pictures have one size and need no tables of other pictures.

    These are strange: two fields in a packet, several scans, and comments or application data that differ, because the
    decoder remembers some of them.
    """

    is_needed = False
    rest: Mapping[int, bytes] = {}

    def _is_start(self, content: bytes) -> bool:
        position = 2
        tables, quantisers, needed, rest, kind = set(), set(), set(), {}, 0
        if content[:2] != b"\xff\xd8":
            raise StrangeError
        try:
            while kind != 0xDA:
                mark, kind = content[position : position + 2]
                end = position + 2 + int.from_bytes(content[position + 2 : position + 4])
                body, position = content[position + 4 : end], end
                if mark != 255 or end > len(content):
                    raise StrangeError
                i = 0
                if kind == 0xDB:
                    while i < len(body):
                        quantisers.add(body[i] & 15)
                        i += 129 if body[i] >> 4 else 65
                elif kind == 0xC4:
                    while i < len(body):
                        tables.add(body[i])
                        i += 17 + sum(body[i + 1 : i + 17])
                elif kind == 0xC0:
                    rest[kind] = body  # size and sampling
                    needed |= {body[8 + 3 * i] for i in range(body[5])}
                elif kind == 0xDA:
                    used = [body[2 + 2 * i] for i in range(body[0])]
                    if not {one >> 4 for one in used} | {16 | (one & 15) for one in used} <= tables:
                        raise StrangeError
                elif kind in rest or b"AVI1" in body:
                    raise StrangeError
                else:
                    rest[kind] = body
        except (IndexError, ValueError) as error:
            raise StrangeError from error
        scan = content[position:]
        if 0xC0 not in rest or not needed <= quantisers or b"\xff\xd8" in scan or b"\xff\xda" in scan:
            raise StrangeError
        self.rest = self.rest or rest
        if rest != self.rest:
            raise StrangeError
        return True
