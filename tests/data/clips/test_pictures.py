"""All eight orientations, of display matrices and of EXIF, as players show them."""

import struct
from itertools import pairwise

import av
import numpy as np
import pytest

from flaxvid.data.clips.decode import decode, open_video
from flaxvid.data.prepare.examine import _read_bytes

PICTURE = np.zeros((48, 64, 3), np.uint8)
PICTURE[:24, :32], PICTURE[:24, 32:], PICTURE[24:, :32], PICTURE[24:, 32:] = 40, 100, 160, 220
# How a picture is to be shown, by its EXIF orientation: (a, b, c, d) of x' = ax + cy, y' = bx + dy; and numpy's way.
ORIENTATIONS = {
    1: ((1, 0, 0, 1), lambda p: p),
    2: ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
    3: ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
    4: ((1, 0, 0, -1), lambda p: p[::-1]),
    5: ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
    6: ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    7: ((0, -1, -1, 0), lambda p: np.rot90(p, -1)[::-1]),
    8: ((0, -1, 1, 0), lambda p: np.rot90(p)),
}


def write_mp4(path, matrix):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(PICTURE)))
        container.mux(stream.encode())
    content = path.read_bytes()
    a, b, c, d = (round(entry * 65536) for entry in matrix)
    place = content.index(b"tkhd") + 44
    path.write_bytes(content[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[place + 36 :])
    return path


def write_jpeg(path, orientation, picture=PICTURE):
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("mjpeg", rate=1, options={"qscale": "1"})
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuvj444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture))))
        container.mux(stream.encode())
    content = path.read_bytes()
    tiff = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1" + struct.pack(">HH", orientation, 0) + bytes(4)
    exif = b"Exif\0\0" + tiff
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:])
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_display_matrices(tmp_path, orientation, frame_times):
    matrix, turn = ORIENTATIONS[orientation]
    path, expected = write_mp4(tmp_path / "v.mp4", matrix), turn(PICTURE)
    with open_video(path) as opened:
        assert opened.shape == expected.shape[:2]
        video = opened.frames([0, 2])
    assert np.abs(video.astype(int) - expected).mean() < 3
    short = decode(path, [1], size=24)[0]
    assert short.shape[:2] == (24, 32) if expected.shape[0] == 48 else (32, 24)
    assert np.abs(short.astype(int) - expected[::2, ::2]).mean() < 8
    assert len(frame_times(path)) == 4


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif(tmp_path, orientation):
    expected = ORIENTATIONS[orientation][1](PICTURE)
    write_jpeg(tmp_path / "1.jpg", orientation)
    assert np.abs(decode(tmp_path, [0])[0].astype(int) - expected).mean() < 3
    assert np.abs(decode(_read_bytes(tmp_path), [0])[0].astype(int) - expected).mean() < 3


def test_each_image_is_turned_by_its_own(tmp_path):
    """A camera that was turned on the way: every picture is upright, as large as the first."""
    back = {1: PICTURE, 2: PICTURE[:, ::-1], 6: np.rot90(PICTURE), 8: np.rot90(PICTURE, -1)}
    for i, (orientation, stored) in enumerate(back.items()):
        write_jpeg(tmp_path / f"{i}.jpg", orientation, stored)
    for video in (tmp_path, _read_bytes(tmp_path)):
        pictures = decode(video, range(4)).astype(int)
        assert pictures.shape == (4, 48, 64, 3)
        for one, other in pairwise(pictures):
            assert np.abs(one - other).mean() < 4


@pytest.mark.parametrize(("degrees", "orientation"), [(1, 1), (40, 1), (50, 6), (88, 6), (179, 3), (-91, 8), (-45, 1)])
def test_odd_angles_are_the_nearest_right_ones(tmp_path, degrees, orientation):
    sine, cosine = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    path = write_mp4(tmp_path / "v.mp4", (cosine, sine, -sine, cosine))
    assert np.abs(decode(path, [0])[0].astype(int) - ORIENTATIONS[orientation][1](PICTURE)).mean() < 3


def test_a_matrix_of_zeros_turns_nothing(tmp_path):
    assert decode(write_mp4(tmp_path / "v.mp4", (0, 0, 0, 0)), [0]).shape == (1, 48, 64, 3)
