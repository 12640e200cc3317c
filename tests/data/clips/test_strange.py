"""Streams that are rare but real: what the library says of them is what their full decode says."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from flaxvid.data.clips.bitstream import _time_bits
from flaxvid.data.clips.decode import VideoError, count_frames, decode
from flaxvid.data.clips.sampling import segment_indices
from flaxvid.data.prepare.examine import examine


def packets_of(path):
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def remux(path, other, packets, **options):
    """A file with these packets, each (bytes, pts, dts, is_key)."""
    with av.open(str(path)) as source, av.open(str(other), "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for content, pts, dts, is_key in packets:
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, source.streams.video[0].time_base
            packet.pts, packet.dts, packet.is_keyframe = pts, dts, is_key
            target.mux(packet)
    return other


def facts(packet):
    return bytes(packet), packet.pts, packet.dts, packet.is_keyframe


@pytest.fixture
def check(streams, ask):
    """Compares a file with its full decode, and gives that; says how it was read."""

    def same(path, kind=None):
        truth, whole = streams.full_decode(path)
        assert whole
        assert truth
        used, fault = streams.compare(path, np.random.default_rng(0), draws=9)
        assert not fault
        assert kind in (None, used)
        for n in (1, 2, 4, 8):
            got = ask(path, lambda length, n=n: segment_indices(length, n, short="repeat")[0])
            np.testing.assert_array_equal(got, [truth[i] for i in segment_indices(len(truth), n, short="repeat")[0]])
        finding, _ = examine({"video": str(path), "id": "v", "label": 0}, 1, None)
        assert (finding.problem, finding.frames) == ("", len(truth))
        return truth

    return same


@pytest.mark.parametrize(
    ("suffix", "encoder", "pixel"),
    [
        ("avi", "rawvideo", "pal8"),
        ("mov", "rawvideo", "pal8"),
        ("nut", "rawvideo", "pal8"),
        ("mov", "png", "pal8"),
        ("mov", "qtrle", "rgb24"),
        ("gif", "gif", "pal8"),
        ("avi", "rawvideo", "gray"),
    ],
)
def test_palettes_come_once(tmp_path, check, suffix, encoder, pixel, write_texture):
    truth = check(write_texture(tmp_path / f"v.{suffix}", encoder, 12, pixel))
    assert np.stack(truth).std() > 20  # not black


def box(kind, *parts):
    content = b"".join(parts)
    return struct.pack(">I4s", len(content) + 8, kind) + content


def rewrite(boxes, change, path=()):
    """Boxes after `change(path, content)` of all that hold no others."""
    made, position = [], 0
    while position < len(boxes):
        size, kind = struct.unpack_from(">I4s", boxes, position)
        content, here = boxes[position + 8 : position + size], (*path, kind)
        nested = kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl")
        made.append(box(kind, rewrite(content, change, here) if nested else change(kind, content)))
        position += size
    return b"".join(made)


def entry(path):
    """The sample description of an MP4 file."""
    found = []
    rewrite(
        path.read_bytes(), lambda kind, content: found.append(content[8:]) or content if kind == b"stsd" else content
    )
    return found[0]


@pytest.mark.parametrize(
    ("encoder", "first", "second"),
    [
        ("libx264", {"x264-params": "cabac=1:bframes=2"}, {"x264-params": "cabac=0:bframes=0:8x8dct=0"}),
        ("libx264", {"qp": "20"}, {"qp": "35", "x264-params": "chroma-qp-offset=5"}),
        ("mpeg4", {}, {"flags": "+qpel"}),
        ("mpeg4", {"mpeg_quant": "1"}, {}),
    ],
)
def test_two_sample_descriptions(tmp_path, check, encoder, first, second, write_texture):
    """As editors join files without encoding them: from some packet on the parameters are others."""
    one, two = (write_texture(tmp_path / f"{i}.mp4", encoder, 20, seed=i, **o) for i, o in enumerate((first, second)))
    packets = [facts(packet) for packet in packets_of(one)]
    end = 20 * packets_of(one)[0].duration
    packets += [(content, pts + end, dts + end, key) for content, pts, dts, key in map(facts, packets_of(two))]
    joined = remux(one, tmp_path / "joined.mp4", packets)
    sizes = [len(content) for content, *_ in packets]
    begin = joined.read_bytes().index(packets[0][0])

    def change(kind, content):
        if kind == b"stsd":
            return content[:4] + struct.pack(">I", 2) + content[8:] + entry(two)
        if kind == b"stsc":  # a chunk for each sample
            return content[:4] + struct.pack(">7I", 2, 1, 1, 1, 21, 1, 2)
        if kind == b"stco":
            places = begin + np.cumsum([0, *sizes[:-1]])
            return content[:4] + struct.pack(f">{len(places) + 1}I", len(places), *places)
        return content

    joined.write_bytes(rewrite(joined.read_bytes(), change))
    truth = check(joined, "full")
    if encoder == "libx264":  # FFmpeg knows no new parameters of MPEG-4
        np.testing.assert_array_equal(truth[20:], decode(two, range(20)))


@pytest.mark.parametrize(("encoder", "kind"), [("libx264", b"avc1"), ("mpeg4", b"mp4v")])
def test_protected_videos(tmp_path, encoder, kind, frame_times, write_texture):
    """What common encryption leaves in the clear is enough to decode noise."""
    path = write_texture(tmp_path / "v.mp4", encoder, g="10")
    key = box(b"schi", box(b"tenc", bytes(4) + b"\0\0\1\x08" + bytes(range(16))))
    scheme = box(b"schm", bytes(4) + b"cenc" + struct.pack(">I", 1 << 16))

    def change(name, content):
        if name != b"stsd":
            return content
        return content[:8] + box(b"encv", entry(path)[8:], box(b"sinf", box(b"frma", kind), scheme, key))

    path.write_bytes(rewrite(path.read_bytes(), change))
    for reader in (count_frames, frame_times, lambda video: decode(video, [3])):
        with pytest.raises(VideoError, match=r"v\.mp4: expected 40 frames, got 0 and then broken data \(encrypted"):
            reader(path)
    finding, _ = examine({"video": str(path), "id": "v", "label": 0}, 1, None)
    assert finding.problem == "unreadable"


@pytest.mark.parametrize("encoder", ["mpeg4", "libx264"])
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_no_list_of_key_frames(tmp_path, check, encoder, suffix, write_texture):
    """MP4 calls every packet a key frame then."""
    path = write_texture(tmp_path / f"v.{suffix}", encoder, g="250")
    content = path.read_bytes()
    assert b"stss" in content
    path.write_bytes(content.replace(b"stss", b"free"))
    assert encoder == "libx264" or all(packet.is_keyframe for packet in packets_of(path))
    check(path, "sparse")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("bframes", [1, 3])
def test_presentation_times_that_are_those_of_decoding(tmp_path, check, suffix, bframes, write_texture):
    params = f"bframes={bframes}:b-adapt=0:keyint=20:b-pyramid=normal"
    path = write_texture(tmp_path / f"v.{suffix}", **{"x264-params": params})
    packets = packets_of(path)
    times = sorted(packet.pts for packet in packets)
    packets = [(bytes(packet), time, time, packet.is_keyframe) for packet, time in zip(packets, times, strict=True)]
    check(remux(path, tmp_path / f"w.{suffix}", packets))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(("encoder", "options"), [("libx264", {"bf": "3", "g": "12"}), ("mpeg4", {"g": "12"})])
def test_lost_packets(tmp_path, check, suffix, encoder, options, write_texture):
    path = write_texture(tmp_path / f"v.{suffix}", encoder, **options)
    packets = [facts(packet) for packet in packets_of(path)]
    for i, lost in enumerate([{0}, {5}, {5, 6, 20}, {12}, {39}, set(range(1, 40, 7))]):
        check(remux(path, tmp_path / f"{i}.{suffix}", [p for n, p in enumerate(packets) if n not in lost]))


@pytest.mark.parametrize("frames", [3, 5])
def test_times_of_sorted_pictures_where_the_file_has_none(tmp_path, frames, frame_times, write_texture):
    """AVI says in which order pictures are decoded, and nothing else."""
    params = f"bframes={frames}:b-pyramid=normal:b-adapt=0:keyint=30"
    path = write_texture(tmp_path / "v.avi", **{"x264-params": params})
    np.testing.assert_allclose(frame_times(path), np.arange(41) / 25, atol=1e-6)
    packets = [(bytes(packet), None, packet.dts + 100 * (i > 20), i == 0) for i, packet in enumerate(packets_of(path))]
    remux(path, tmp_path / "pause.avi", packets)
    expected = [(i + 100 * (i > 20)) / 25 for i in range(40)]
    np.testing.assert_allclose(frame_times(tmp_path / "pause.avi")[:-1], expected, atol=1e-6)


@pytest.mark.parametrize("padding", [0, 12, 40, 300])
def test_packed_bitstreams(tmp_path, check, padding, write_texture):
    """DivX in AVI: two pictures in a packet, then a packet that stands for nothing, of any size."""
    path = write_texture(tmp_path / "v.avi", "mpeg4", bf="1", g="12", b_strategy="0")
    packets = [bytes(packet) for packet in packets_of(path)]
    bits = _time_bits(packets[0])
    nothing = int("010" + "1" + "0" * bits + "10" + "1" * (16 - 6 - bits), 2).to_bytes(2, "big")
    header, _, picture = packets[0].partition(b"\0\0\1\xb2")
    packed, i = [header + b"\0\0\1\xb2DivX503b1393p" + picture[picture.index(b"\0\0\1") :]], 1
    while i < len(packets):
        pair = packets[i : i + 2]
        is_pair = len(pair) == 2 and pair[1][pair[1].index(b"\0\0\1\xb6") + 4] >> 6 == 2
        packed += [b"".join(pair), b"\0\0\1\xb6" + nothing + bytes(padding)] if is_pair else pair[:1]
        i += 1 + is_pair
    with av.open(str(tmp_path / "w.avi"), "w") as target, av.open(str(path)) as source:
        stream = target.add_stream_from_template(source.streams.video[0])
        for i, content in enumerate(packed):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 25), i, i
            target.mux(packet)
    assert len(check(tmp_path / "w.avi", "full")) >= 38


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize(("shown", "options"), [(13, {"bf": "2"}), (30, {"bf": "0", "g": "20"}), (39, {"bf": "3"})])
def test_cuts_hide_packets_by_an_edit_list(tmp_path, check, suffix, shown, options, frame_times, write_texture):
    """As `ffmpeg -ss T -i long.mp4 -c copy cut.mp4` writes them."""
    path = write_texture(tmp_path / f"v.{suffix}", **options)
    packets = packets_of(path)
    begin = sorted(packet.pts for packet in packets)[40 - shown]
    cut = remux(
        path,
        tmp_path / f"cut.{suffix}",
        [(content, pts - begin, dts - begin, key) for content, pts, dts, key in map(facts, packets)],
    )
    assert b"elst" in cut.read_bytes()
    truth = check(cut)
    assert len(truth) == count_frames(cut) == shown
    np.testing.assert_allclose(frame_times(cut), np.arange(shown + 1) / 25, atol=1e-6)
    np.testing.assert_array_equal(truth, decode(path, range(40 - shown, 40)))


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_files_cut_off_are_said_to_be_so(tmp_path, suffix, write_texture):
    whole = write_texture(tmp_path / f"v.{suffix}", "mpeg4", g="12")
    path = remux(whole, tmp_path / f"w.{suffix}", map(facts, packets_of(whole)), movflags="faststart")
    content = path.read_bytes()
    finding, _ = examine({"video": content[: len(content) // 2], "id": "v", "label": 0}, 1, None)
    assert finding.problem == "unreadable"
    assert "fetch" in finding.reason


def test_a_change_of_size_midway(tmp_path, check, ask, write_texture):
    one, two = (write_texture(tmp_path / f"{i}.ts", count=9, size=size) for i, size in enumerate([(48, 64), (64, 32)]))
    (tmp_path / "v.ts").write_bytes(one.read_bytes() + two.read_bytes())
    assert count_frames(tmp_path / "v.ts") == 18
    assert ask(tmp_path / "v.ts", range).shape == (18, 48, 64, 3)
    assert decode(tmp_path / "v.ts", [17, 16], size=16).shape == (2, 32, 16, 3)
