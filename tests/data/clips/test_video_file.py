"""A file is only ever read as a file, and the stream that is meant is read, or there is one error."""

import functools
import http.server
import os
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from flaxvid.data.clips.decode import VideoError, count_frames, decode
from flaxvid.data.prepare.examine import examine

UNREAD = "expected a video, got an empty or damaged file or one of a format that is not read"
PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile v.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nv.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1"><BaseURL>v.mp4</BaseURL></Representation></AdaptationSet></Period>'
    "</MPD>",
    "ffmetadata": ";FFMETADATA1\ntitle=v.mp4\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_text_opens_no_other_file(tmp_path, write_video, kind, monkeypatch):
    write_video(tmp_path / "v.mp4")
    monkeypatch.chdir(tmp_path)
    for name in ("list.mp4", "list.m3u8", "list.sdp", "list.txt"):
        Path(name).write_text(PLAYLISTS[kind])
        with pytest.raises(VideoError, match=f"^{name}: {UNREAD}"):
            decode(name, [0])
        with pytest.raises(VideoError, match=UNREAD):
            count_frames(Path(name).read_bytes())


@pytest.mark.parametrize(
    "name",
    [
        "12:30.mp4",
        "file:a.mp4",
        "concat:a.mp4|b.mp4",
        "http:a.mp4",
        "data:a.mp4",
        "pipe:0",
        "-",
        "a%03d.mp4",
        "[a]*.mp4",
    ],
)
def test_any_name_is_a_files(tmp_path, write_video, frame_numbers, name, monkeypatch, frame_times):
    write_video(tmp_path / "v.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for video in (name, Path(name)):
        assert frame_numbers(decode(video, [3])) == [3]
        assert count_frames(video) == len(frame_times(video)) - 1 == 20
        assert not examine({"video": video, "id": "v", "label": 0}, 1, None)[0].problem


def test_names_that_are_no_utf8(tmp_path, write_video):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.mp4")
    write_video(tmp_path / "v.mp4").rename(name)
    assert decode(name, [3]).shape == decode(Path(name), [3]).shape == (1, 32, 48, 3)
    Path(name).write_bytes(b"no video")
    with pytest.raises(VideoError) as caught:
        decode(name, [3])
    assert r"\xff\xe9.mp4: expected a video" in str(caught.value)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", "/dev/zero"):
        with pytest.raises(VideoError, match="expected a video, got no regular file"):
            decode(path, [0])
    for path in ("a\0b.mp4", "a" * 5000):
        with pytest.raises(VideoError, match="expected a video, got a file that cannot be opened"):
            decode(path, [0])


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_url_only_where_it_was_asked_for(tmp_path, write_video, frame_numbers):
    write_video(tmp_path / "v.mp4")
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile v.mp4\n")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert frame_numbers(decode(f"{url}/v.mp4", [7])) == [7]
            assert count_frames(f"{url}/v.mp4") == 20
            with pytest.raises(VideoError, match="no such file"):
                decode(Path(f"{url}/v.mp4"), [7])
            with pytest.raises(VideoError, match=UNREAD):
                decode(f"{url}/list.mp4", [7])
        finally:
            server.shutdown()
    with pytest.raises(VideoError, match=f"^rtsp://127.0.0.1:1/a: {UNREAD}"):
        decode("rtsp://127.0.0.1:1/a", [0])


def write_streams(path, *kinds):
    """A file of several streams: (encoder, frames, side, level of grey, disposition)."""
    with av.open(str(path), "w") as container:
        streams = []
        for encoder, _, side, _, disposition in kinds:
            stream = container.add_stream(encoder, rate=48000 if encoder == "aac" else 10)
            if encoder == "aac":
                stream.layout = "mono"
            else:
                stream.width = stream.height = side
                stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(encoder, "yuv420p")
            stream.disposition = disposition
            streams.append(stream)
        for stream, (encoder, count, side, level, _) in zip(streams, kinds, strict=True):
            for i in range(count):
                if encoder == "aac":
                    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                    frame.sample_rate, frame.pts = 48000, i * 1024
                else:
                    frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), level, np.uint8))
                    frame.pts, frame.time_base = i, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


NONE, DEFAULT, COVER = 0, av.stream.Disposition.default, av.stream.Disposition.attached_pic


@pytest.mark.parametrize(
    "kinds",
    [
        [("mjpeg", 1, 64, 200, DEFAULT), ("libx264", 20, 32, 90, DEFAULT)],  # a cover that is not called one
        [("mjpeg", 1, 64, 200, COVER), ("libx264", 20, 32, 90, DEFAULT)],
        [("libx264", 20, 32, 90, DEFAULT), ("mjpeg", 1, 64, 200, COVER)],
        [("mjpeg", 1, 64, 200, DEFAULT), ("libx264", 20, 32, 90, NONE)],  # nor is the video called the default
        [("mjpeg", 1, 64, 200, NONE), ("mjpeg", 1, 16, 200, NONE), ("libx264", 20, 32, 90, NONE)],
        [("mjpeg", 1, 64, 200, DEFAULT), ("mjpeg", 20, 32, 90, NONE), ("aac", 9, 0, 0, DEFAULT)],
        [("libx264", 20, 16, 200, NONE), ("libx264", 20, 32, 90, DEFAULT)],  # a preview
        [("mjpeg", 20, 64, 200, DEFAULT), ("libx264", 20, 32, 90, DEFAULT)],
        [("libx264", 20, 32, 90, NONE), ("mjpeg", 20, 64, 200, NONE)],
        [("aac", 9, 0, 0, DEFAULT), ("libx264", 20, 32, 90, DEFAULT)],
    ],
)
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov"])
def test_the_stream_that_is_meant(tmp_path, kinds, suffix, frame_times):
    path = write_streams(tmp_path / f"v.{suffix}", *kinds)
    assert count_frames(path) == len(frame_times(path)) - 1 == 20
    video = decode(path, [0, 19])
    assert video.shape == (2, 32, 32, 3)
    assert abs(video.astype(int) - 90).max() < 4
    finding, _ = examine({"video": str(path), "id": "v", "label": 0}, 1, None)
    assert (finding.frames, finding.problem) == (20, "")


@pytest.mark.parametrize("disposition", [COVER, NONE, DEFAULT])
@pytest.mark.parametrize(("encoder", "suffix"), [("mjpeg", "mp4"), ("mjpeg", "mkv"), ("png", "mp4")])
def test_covers_alone_are_no_video(tmp_path, encoder, disposition, suffix):
    """Whether they are called covers or not; a picture by itself is a video of one frame."""
    cover = encoder, 1, 32, 90, disposition
    path = write_streams(tmp_path / f"v.{suffix}", ("aac", 20, 0, 0, DEFAULT), cover)
    with pytest.raises(VideoError, match=r"v\.m..: expected a video stream, got a cover, audio: drop the file"):
        decode(path, [0])
    assert decode(write_streams(tmp_path / f"w.{suffix}", (*cover[:4], NONE)), [0]).shape == (1, 32, 32, 3)


def test_a_codec_that_nobody_knows(tmp_path, write_video):
    """Protected videos (`encv`) and those of tomorrow."""
    content = write_video(tmp_path / "v.mp4").read_bytes()
    assert content.count(b"avc1") == 2  # a brand and the sample's description
    with pytest.raises(
        VideoError, match="expected a video that can be decoded, got one that is cut off, or of an unkn"
    ):
        decode(content.replace(b"avc1", b"xyz9"), [0])
    finding, _ = examine({"video": content.replace(b"avc1", b"encv"), "id": "v", "label": 0}, 1, None)
    assert finding.problem == "unreadable" or finding.frames == 20
    assert "Error" not in finding.reason


def checksum(table):
    """CRC-32 of MPEG's tables."""
    crc = 0xFFFFFFFF
    for byte in table:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 1 << 31 else 0)) & 0xFFFFFFFF
    return crc.to_bytes(4, "big")


def test_a_stream_that_begins_midway(tmp_path, ask):
    """A transport stream goes on under another number, as where two recordings were joined."""
    content = write_streams(tmp_path / "v.ts", ("libx264", 400, 32, 90, DEFAULT)).read_bytes()
    units = [bytearray(content[i : i + 188]) for i in range(0, len(content), 188)]
    for unit in units[len(units) * 3 // 4 :]:
        number = unit[1] & 31, unit[2]
        if number == (1, 0):  # the video
            unit[2] = 1
        if number == (16, 0):  # the table of the programme
            length = 3 + ((unit[6] & 15) << 8 | unit[7])
            assert checksum(unit[5 : 5 + length - 4]) == unit[5 + length - 4 : 5 + length]
            place = unit.index(b"\x1b\xe1\0") + 2
            unit[place] = 1
            unit[5 + length - 4 : 5 + length] = checksum(unit[5 : 5 + length - 4])
    changed = b"".join(units)
    count = count_frames(changed)
    assert 250 < count < 350
    assert ask(changed, lambda count: [0, count - 1]).shape == (2, 32, 32, 3)
