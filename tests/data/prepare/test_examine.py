import io
import os
import shutil
import threading

import av
import numpy as np
import pytest

from flaxvid.data.clips.decode import count_frames, decode
from flaxvid.data.prepare.examine import Encoding, encode, examine, stamp


def item(video, name="v"):
    return {"video": video if isinstance(video, bytes) else str(video), "label": 3, "id": name}


def test_a_good_video(tmp_path, write_video):
    path = write_video(tmp_path / "v.mp4", frames=20)
    finding, content = examine(item(path), 20, None)
    assert (finding.id, finding.label, finding.frames, finding.problem) == ("v", 3, 20, "")
    assert content == path.read_bytes()
    signature = np.frombuffer(bytes.fromhex(finding.signature), np.uint8).reshape(4, 8, 8)
    middles = decode(path, [2, 7, 12, 17]).mean(-1)  # of four parts of 20 frames
    expected = middles.reshape(4, 8, 4, 8, 6).mean(axis=(2, 4))
    np.testing.assert_allclose(signature, expected, atol=12)  # the edge between the halves is blurred
    np.testing.assert_allclose(signature[:, :, [0, -1]], expected[:, :, [0, -1]], atol=3)
    assert examine(item(content), 1, None)[0].digest == finding.digest


def test_bad_videos(tmp_path, write_video):
    good = write_video(tmp_path / "v.mp4", frames=5)
    cut, empty, gone = tmp_path / "cut.mp4", tmp_path / "empty.mp4", tmp_path / "gone.mp4"
    cut.write_bytes(good.read_bytes()[:400])
    noise = write_video(tmp_path / "noise.avi", frames=20, noise=True)
    (tmp_path / "half.avi").write_bytes(noise.read_bytes()[: noise.stat().st_size // 2])
    empty.touch()
    for path, problem, words in (
        (cut, "unreadable", "fetch it again or drop it"),
        (empty, "unreadable", "expected a video, got an empty"),
        (gone, "missing", "no file"),
        (tmp_path / "half.avi", "unreadable", "expected 20 frames, got 9: cut off"),
        (tmp_path, "unreadable", "expected a video or a folder of"),
        (write_video(tmp_path / "sound.mp4", audio_only=True), "unreadable", "expected a video stream, got audio"),
    ):
        finding, content = examine(item(path, path.name), 1, None)
        assert (finding.problem, finding.signature, content) == (problem, "", b"")
        assert words in finding.reason
    short, content = examine(item(good), 6, None)
    assert (short.problem, short.reason, short.frames, content) == ("short", "5 frames, fewer than 6", 5, b"")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize("name", ["v.mp4", "v/1.png"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    """Whoever opens it waits until somebody writes; here somebody waits for a reader."""
    pipe = tmp_path / name
    pipe.parent.mkdir(exist_ok=True)
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"",), daemon=True)
    writer.start()
    finding, _ = examine(item(pipe if name == "v.mp4" else pipe.parent), 1, None)
    assert (finding.problem, "got no regular file" in finding.reason) == ("unreadable", True)
    writer.join(0.2)
    assert writer.is_alive()
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer.join()
    os.close(reader)


def test_a_stamp_tells_whether_a_file_changed(tmp_path):
    path = tmp_path / "v.mp4"
    assert stamp(path) == stamp(b"") == ""
    path.write_bytes(b"1")
    first = stamp(path)
    path.write_bytes(b"12")
    assert stamp(path) != first != ""


@pytest.mark.parametrize("in_memory", [False, True])
def test_encoding_anew(tmp_path, write_video, in_memory):
    path = write_video(tmp_path / "v.mp4", frames=20, height=66, width=98)
    video = path.read_bytes() if in_memory else path
    content = encode(video, Encoding(short_side=32, key_frames=5, crf=1), "v")
    assert count_frames(content) == 20
    pictures = decode(content, range(20))
    assert pictures.shape == (20, 32, 48, 3)  # 32 x 47.5, with even sides
    expected = decode(path, range(20), size=(32, 48))  # 6 grey levels from frame to frame
    assert np.abs(pictures.astype(int) - expected).mean(axis=(1, 2, 3)).max() < 2
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        keys = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 10)
    gaps = np.diff([*np.flatnonzero(keys), len(keys)])
    assert gaps.max() <= 5
    assert decode(encode(path, Encoding(short_side=400), "v"), [0]).shape == (1, 66, 98, 3)  # never enlarged


def test_a_folder_of_frames(tmp_path, frame_numbers, write_video):
    video = decode(write_video(tmp_path / "v.mp4", frames=6), range(6))
    for i, picture in enumerate(video):
        with av.open(str(tmp_path / f"{i:05d}.jpg"), "w", format="image2") as container:
            stream = container.add_stream("mjpeg", rate=1)
            stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuvj420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    (tmp_path / "v.mp4").unlink()
    finding, content = examine(item(tmp_path), 1, None)
    assert (finding.frames, finding.problem) == (6, "")
    np.testing.assert_array_equal(frame_numbers(decode(content, range(6))), range(6))
    small, content = examine(item(tmp_path), 1, Encoding(short_side=16))
    assert small == finding
    expected = decode(tmp_path, range(6), size=(16, 24))
    assert np.abs(decode(content, range(6)).astype(int) - expected).mean(axis=(1, 2, 3)).max() < 2
    shutil.copy(tmp_path / "00000.jpg", tmp_path / "00006.png")
    assert "expected frames of one kind, got PNG and JPEG" in examine(item(tmp_path), 1, None)[0].reason


def test_rotated_and_broken_real_videos(shared_data):
    upright = examine(item(shared_data / "decode" / "rotation_90.mov"), 1, Encoding(short_side=64))
    assert (upright[0].frames, decode(upright[1], [0]).shape) == (3, (1, 114, 64, 3))
    finding, _ = examine(item(shared_data / "decode" / "h264_corrupted_after_28.mp4", "c"), 1, None)
    assert finding.problem == "unreadable"
    assert "28" in finding.reason


def test_options_that_make_no_sense():
    with pytest.raises(ValueError, match="expected an even short_side, key_frames of at least 1 and crf"):
        Encoding(short_side=33)
