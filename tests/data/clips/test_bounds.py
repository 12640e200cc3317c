"""What a few bytes claim costs neither memory nor time: it is an error before anything is made."""

import io
import resource
import struct
import time
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest

from flaxvid.data.clips import pictures
from flaxvid.data.clips.cut import ClipConfig, cut_views, draw_clips, find_fault
from flaxvid.data.clips.decode import VideoError, count_frames, decode
from flaxvid.data.prepare.examine import examine


@pytest.fixture(autouse=True)
def bounded():
    """Fails where a test takes half a gigabyte, or ten seconds of work; others may be at work on the machine, too."""
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert time.process_time() - begin < 10


def write(path, width, height, count=4):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8))))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("width", "height"), [(8192, 2), (2, 8192)])
def test_short_sides_that_make_long_ones(tmp_path, width, height):
    path = write(tmp_path / "v.mp4", width, height)
    assert path.stat().st_size < 3000
    message = (
        r"v\.mp4: expected at most 16384 pixels a side and 4 GiB a clip, got 1[26] frames of \d+ x \d+: take fewer"
    )
    for size in (64, 224, 256, (height * 32, width * 32)):
        with pytest.raises(VideoError, match=message):
            decode(path, [0, 1, 2, 3] * 3, size=size)
    item = {"video": str(path), "label": 0, "id": "v.mp4"}
    with pytest.raises(VideoError, match=message):
        draw_clips(item, ClipConfig((16,), 224, short="repeat"), None, np.random.default_rng(0))
    assert decode(path, [0, 3], size=4).shape[0] == 2
    assert decode(path, [0, 3]).shape == (2, height, width, 3)


def test_clips_of_too_many_bytes(tmp_path, monkeypatch):
    path = write(tmp_path / "v.mp4", 64, 48)
    monkeypatch.setattr(pictures, "MAX_BYTES", 4 * 64 * 48 * 3)
    assert decode(path, [0, 1, 2, 3]).shape[0] == 4
    for indices in ([0, 1, 2, 3, 3], [0] * 5):
        with pytest.raises(VideoError, match="got 5 frames of 48 x 64: take fewer frames, a smaller size, or drop it"):
            decode(path, indices)


@pytest.mark.parametrize(("frames", "clips"), [(10**9, 1), (4, 10**9)])
def test_more_frames_than_any_clip_has(tmp_path, frames, clips):
    path = write(tmp_path / "v.mp4", 64, 48)
    rules = ClipConfig((frames,), 32, short="repeat", clips=clips)
    message = rf"v\.mp4: expected at most 1,048,576 frames in all clips, got clips={clips} of frames=\({frames},\)"
    with pytest.raises(VideoError, match=message):
        cut_views({"video": str(path), "label": 0, "id": "v.mp4"}, rules, np.random.default_rng(0))


def test_a_header_that_claims_four_billion_frames(tmp_path, ask):
    with av.open(str(tmp_path / "v.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(9):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    content = bytearray((tmp_path / "v.avi").read_bytes())
    for place in (content.index(b"avih") + 24, content.index(b"strh") + 40):
        struct.pack_into("<I", content, place, 4_000_000_000)
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.video[0].frames == 4_000_000_000
    content = bytes(content)
    assert count_frames(content) == 9
    assert ask(content, range).shape == (9, 32, 32, 3)
    item = {"video": content, "label": 0, "id": "v"}
    assert find_fault(item, ClipConfig((4,), 32)) is None
    assert examine(item, 1, None)[0].reason == "expected 4000000000 frames, got 9: cut off, fetch it again"


@pytest.mark.parametrize("fixed", [0, 1, 5000])
def test_a_table_that_claims_four_billion_samples(tmp_path, fixed, ask):
    content = bytearray(write(tmp_path / "v.mp4", 64, 48).read_bytes())
    struct.pack_into(">II", content, content.index(b"stsz") + 8, fixed, 4_000_000_000 if fixed < 2 else 100_000_000)
    with pytest.raises(VideoError):
        ask(bytes(content), lambda count: [count - 1])


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height):
    packer, row = zlib.compressobj(9), bytes(1 + width // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_of_a_billion_pixels(tmp_path):
    (tmp_path / "1.png").write_bytes(png(32_000, 32_000))
    for video in (tmp_path, tmp_path / "1.png", (tmp_path / "1.png").read_bytes()):
        with pytest.raises(VideoError):
            decode(video, [0], size=64)
    with av.open(str(tmp_path / "v.gif"), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb8"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(32, 32, "rgb8")))
        container.mux(stream.encode())
    content = bytearray((tmp_path / "v.gif").read_bytes())
    content[6:10] = b"\x40\x9c\x40\x9c"
    with pytest.raises(VideoError):
        decode(bytes(content), [0], size=64)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_texts_that_unpack_to_gigabytes(tmp_path, kind):
    """FFmpeg unpacks what a PNG says besides its picture: in images, in an animation, and in a film of them."""
    packer, zeros = zlib.compressobj(9), bytes(2**24)
    bomb = b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    path, content = tmp_path / "1.png", png(32, 32)
    path.write_bytes(content[:33] + chunk(kind, b"name\0\0" + bomb) * 2 + content[33:])
    picture = decode(content, [0])
    for video in (tmp_path, path, path.read_bytes(), path.read_bytes() * 3):
        np.testing.assert_array_equal(decode(video, [0]), picture)
    with av.open(str(tmp_path / "v.mov"), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "monob"
        for i in range(4):
            packet = av.Packet(path.read_bytes())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, i, i, Fraction(1, 10)
            container.mux(packet)
    assert count_frames(tmp_path / "v.mov") == 4
    np.testing.assert_array_equal(decode(tmp_path / "v.mov", [3]), picture)
    control = struct.pack(">IIIIIHHBB", 0, 32, 32, 0, 0, 1, 10, 0, 0)
    begin, rest = content[:33] + chunk(b"acTL", struct.pack(">II", 1, 0)), content[33:]
    (tmp_path / "v.apng").write_bytes(begin + chunk(b"fcTL", control) + chunk(kind, b"name\0\0" + bomb) + rest)
    np.testing.assert_array_equal(decode(tmp_path / "v.apng", [0]), picture)


def test_headers_that_unpack_to_gigabytes(tmp_path):
    content = write(tmp_path / "v.mov", 64, 48).read_bytes()
    place = content.index(b"moov") - 4
    header, packer, zeros = content[place:], zlib.compressobj(), bytes(2**20)
    unpacked = packer.compress(header) + b"".join(packer.compress(zeros) for _ in range(2**10)) + packer.flush()

    def box(kind, body):
        return struct.pack(">I", 8 + len(body)) + kind + body

    packed = struct.pack(">I", len(header) + 2**30) + unpacked
    packed = box(b"moov", box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", packed)))
    (tmp_path / "packed.mov").write_bytes(content[:place] + packed)
    assert (tmp_path / "packed.mov").stat().st_size < 2**21
    for video in (tmp_path / "packed.mov", (tmp_path / "packed.mov").read_bytes()):
        with pytest.raises(VideoError, match="compressed and may unpack to any size: copy it with ffmpeg"):
            count_frames(video)
