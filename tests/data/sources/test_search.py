"""What is found below a folder: real files, links and what systems leave behind."""

import os

import av
import numpy as np
import pytest
from matplotlib.image import imsave

from flaxvid.data.clips.decode import decode
from flaxvid.data.sources.search import VIDEO_SUFFIXES, find_videos, search

APPLE_DOUBLE = b"\0\5\x16\7" + bytes(100)


def encode(path, kind="mp4", codec="libx264"):
    """A real video of two frames, in a container that the path need not tell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = {"gif": "rgb8", "rawvideo": "yuv420p", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for _ in range(3 if kind == "mpegts" else 2):
            picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def frames(folder, names, size=8):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        imsave(folder / name, np.zeros((size, size, 3), np.uint8))


def names(root):
    return [path.relative_to(root).as_posix() for path in find_videos(root)]


CONTAINERS = [
    ("mp4", "libx264"),
    ("mov", "mpeg4"),
    ("matroska", "libx264"),
    ("webm", "libvpx-vp9"),
    ("avi", "mpeg4"),
    ("flv", "flv"),
    ("mpegts", "libx264"),
    ("mpeg", "mpeg1video"),
    ("vob", "mpeg2video"),
    ("mpeg1video", "mpeg1video"),
    ("asf", "msmpeg4v3"),
    ("mxf", "mpeg2video"),
    ("gif", "gif"),
    ("ivf", "libvpx-vp9"),
    ("yuv4mpegpipe", "rawvideo"),
    ("h264", "libx264"),
]


@pytest.mark.parametrize(("kind", "codec"), CONTAINERS)
def test_content_tells_where_names_do_not(tmp_path, kind, codec):
    encode(tmp_path / "video", kind, codec)
    encode(tmp_path / "take 12.30", kind, codec)
    encode(tmp_path / "typed.ts", kind, codec)
    assert names(tmp_path) == ["take 12.30", "typed.ts", "video"]
    assert decode(tmp_path / "video", [0]).shape == (1, 32, 32, 3)


def test_files_that_only_seem_to_be_videos(tmp_path, touch):
    touch(tmp_path, "code.ts", "module.mts", content=b"export const frames = [4, 8, 16];\n" * 80)
    touch(tmp_path, "strings.ts", content="<?xml version='1.0'?><TS>ä</TS>".encode("utf-16"))
    touch(tmp_path, "LICENSE", "notes", "a.txt", "b.py", "c.json", content=b"Some words about GIF8 and ftyp.\n")
    touch(tmp_path, "song.mp3", "sound.wav", content=b"RIFF\0\0\0\0WAVEfmt ")
    touch(tmp_path, "half.mp4.part", "half.crdownload", "data.npy", content=b"\0\0\0\x20ftypisom")
    os.mkfifo(tmp_path / "pipe.mp4")
    found = search(tmp_path)
    assert found.videos == ()
    assert dict(found.others) == {
        **{".ts": 2, ".mts": 1, "no suffix": 2, ".txt": 1, ".py": 1, ".json": 1, ".mp3": 1, ".wav": 1, ".part": 1},
        **{".crdownload": 1, ".npy": 1, "no plain file": 1},
    }


def test_an_empty_or_damaged_video_is_one(tmp_path, touch):
    """It is found, so that whoever reads it can say what is wrong with it."""
    touch(tmp_path, "empty.ts", "a.mp4")
    touch(tmp_path, "damaged.ts", content=bytes(300))
    assert names(tmp_path) == ["a.mp4", "damaged.ts", "empty.ts"]


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_suffix_in_any_case(tmp_path, suffix, touch):
    touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}", content=bytes(8))
    assert names(tmp_path) == [f"a{suffix}", f"b{suffix.upper()}"]


def test_what_systems_leave_is_no_video(tmp_path, touch):
    touch(tmp_path, "a.mp4")
    touch(tmp_path, "._a.mp4", "__MACOSX/._a.mp4", "__MACOSX/b.mp4", ".trash/c.mp4", "@eaDir/a.mp4/SYNO.mp4")
    touch(tmp_path, "$RECYCLE.BIN/d.mp4", "lost+found/e.mp4", "Thumbs.db", ".DS_Store", "desktop.ini", ".hidden.mp4")
    touch(tmp_path, "System Volume Information/f.mp4", "#recycle/g.mp4")
    found = search(tmp_path)
    assert (found.videos, found.notes, dict(found.others)) == (("a.mp4",), (), {})


def test_folders_of_frames(tmp_path, touch):
    frames(tmp_path / "run" / "v1", [f"{i:05d}.png" for i in range(1, 4)])
    touch(tmp_path / "run" / "v1", "._00001.png", "Thumbs.db", content=APPLE_DOUBLE)
    frames(tmp_path / "run" / "v2.avi", ["img_1.jpg", "img_10.jpg"])
    touch(tmp_path, "run/a.mp4")
    frames(tmp_path / "run", ["a1.jpg"])  # a picture beside a video is its thumbnail
    frames(tmp_path / "jump" / "v3", ["cover.jpg"])  # without a number
    assert names(tmp_path) == ["run/a.mp4", "run/v1", "run/v2.avi"]
    assert dict(search(tmp_path).others) == {".jpg": 2}
    assert find_videos(tmp_path / "run" / "v1") == [tmp_path / "run" / "v1"]


def test_frames_beside_folders(tmp_path, touch):
    frames(tmp_path / "a", ["1.png", "2.png"])
    (tmp_path / "a" / "notes").mkdir()
    frames(tmp_path / "b", ["1.png"])
    touch(tmp_path, "b/below/c.mp4")
    found = search(tmp_path)
    assert found.videos == ("a", "b/below/c.mp4")
    assert found.notes == ("b has images beside folders of videos: the images are left out",)


def test_links_are_followed_once(tmp_path, touch):
    root = tmp_path / "root"
    touch(tmp_path, "store/1.mp4", "store/deep/2.mp4", "root/a/here/3.mp4", "root/b/4.mp4")
    (root / "a" / "an_alias").symlink_to("here")  # sorts before it, and does not take its place
    (root / "a" / "there").symlink_to(tmp_path / "store", target_is_directory=True)
    (tmp_path / "store" / "back").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "up").symlink_to(root)
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "one.mp4").symlink_to(tmp_path / "store" / "1.mp4")
    (root / "a" / "gone.mp4").symlink_to("nowhere")
    (root / "a" / "self.mp4").symlink_to("self.mp4")
    found = search(root / "a")
    assert found.videos == ("here/3.mp4", "one.mp4", "there/1.mp4", "there/deep/2.mp4")
    assert found.notes == (
        "an_alias is not followed: it leads to a folder that is read already",
        "up is not followed: it leads to a folder above it",
        "there/back is not followed: it leads to a folder that is read already",
        "there/up is not followed: it leads to a folder above it",
        "links that lead nowhere are left out: gone.mp4, self.mp4",
    )
    assert find_videos(tmp_path / "none") == []


def test_names_that_are_no_text(tmp_path, touch):
    touch(tmp_path, os.fsdecode(b"caf\xe9.mp4"), "new\nline.mp4")
    assert [os.fsencode(path.name) for path in find_videos(tmp_path)] == [b"caf\xe9.mp4", b"new\nline.mp4"]
