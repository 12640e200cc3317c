"""Numbered images are frames in the order of their numbers, wherever they are read."""

import av
import numpy as np
import pytest

from flaxvid.data.clips.decode import VideoError, count_frames, decode
from flaxvid.data.clips.images import list_images
from flaxvid.data.prepare.examine import _read_bytes, examine


def write(folder, names, side=16):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        picture = av.VideoFrame.from_ndarray(np.full((side, side, 3), 10 * i, np.uint8))
        if name.lower().endswith("png"):
            picture.save(str(folder / "new.png"))
            (folder / "new.png").rename(folder / name)
        else:
            with av.open(str(folder / name), "w", format="image2") as container:
                stream = container.add_stream("mjpeg", rate=1, options={"qscale": "1"})
                stream.width = stream.height = side
                stream.pix_fmt = "yuvj444p"
                container.mux(stream.encode(picture))
                container.mux(stream.encode())
    return folder


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(1, 13)],
        [f"frame{i}.jpg" for i in range(8, 13)],
        [f"img_{i:04d}.png" for i in range(9997, 10004)],
        [f"shot2_{i}.png" for i in (1, 2, 10, 100)] + [f"shot10_{i}.png" for i in (1, 3, 20)],
        ["a-1.PNG", "a-02.png", "a-3.png", "a-010.png"],
        ["7.jpg", "8.jpeg", "9.JPG", "10.jpg"],
        ["IMG_1.jpg", "img_2.jpg", "Img_3.jpg", "img_10.jpg"],
        ["-10.png", "-9.png", "-1.png", "0.png", "1.png", "10.png"],
        ["shot-1.png", "shot-2.png", "shot-10.png"],
        ["img (1).jpg", "img (2).jpg", "img (10).jpg"],
        ["frame  8.png", "frame 10.png", "frame100.png"],
        ["0.0.png", "0.04.png", "0.12.png", "0.2.png", "1.0.png"],
        ["t0.05.jpg", "t0.1.jpg", "t0.15.jpg", "t10.0.jpg"],
        ["shot1.1.png", "shot1.9.png", "shot1.10.png", "shot2.1.png"],
        ["\N{FULLWIDTH DIGIT ONE}.png", "\N{FULLWIDTH DIGIT TWO}.png", "\N{FULLWIDTH DIGIT ONE}0.png"],
        ["\N{SUPERSCRIPT TWO}1.png", "\N{SUPERSCRIPT TWO}2.png", "\N{SUPERSCRIPT TWO}10.png"],
    ],
)
def test_the_order_of_numbers(tmp_path, names, ask):
    folder = write(tmp_path / "frames", names)
    (folder / "._1.png").write_bytes(b"of a file system that has no place for it")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "5.png").mkdir() if "5.png" not in names else None
    (folder / "notes.txt").write_text("no frame")
    assert [path.name for path in list_images(folder)] == names
    assert count_frames(folder) == len(names)
    levels = decode(folder, range(len(names)))[:, 0, 0, 0] // 10
    np.testing.assert_allclose(levels, range(len(names)), atol=1)
    np.testing.assert_array_equal(ask(_read_bytes(folder), range)[:, 0, 0, 0] // 10, levels)
    finding, content = examine({"video": str(folder), "id": "v", "label": 0}, 1, None)
    assert (finding.frames, finding.problem) == (len(names), "")
    np.testing.assert_array_equal(ask(content, range)[:, 0, 0, 0] // 10, levels)


def test_images_that_would_not_make_a_video_of_as_many_frames(tmp_path, ask):
    """A JPEG that is named .png; and files that hold two pictures, of which the second is a preview."""
    folder = write(tmp_path / "frames", ["1.png", "2.png", "new.jpg"])
    (folder / "new.jpg").rename(folder / "3.png")
    assert ask(folder, range).shape[0] == 3
    finding, _ = examine({"video": str(folder), "id": "v", "label": 0}, 1, None)
    assert "expected frames of one kind, got PNG and JPEG: encode them anew" in finding.reason
    folder = write(tmp_path / "more", ["1.jpg", "2.jpg"])
    (folder / "2.jpg").write_bytes((folder / "2.jpg").read_bytes() + (folder / "1.jpg").read_bytes())
    finding, _ = examine({"video": str(folder), "id": "v", "label": 0}, 1, None)
    assert finding.reason == "expected images of one picture each, got some of several: encode them anew"


@pytest.mark.parametrize("names", [("1.jpg", "1.png"), ("01.png", "1.png"), ("a7.jpg", "a007.JPEG")])
def test_two_images_of_one_number(tmp_path, names):
    folder = write(tmp_path / "frames", ["0.png", *names])
    with pytest.raises(
        VideoError, match=r"frames: expected one image of each number, got a?0*. and|got .* and .*: rem"
    ):
        decode(folder, [0])
    finding, _ = examine({"video": str(folder), "id": "v", "label": 0}, 1, None)
    assert finding.problem == "unreadable"
    assert "expected one image of each number" in finding.reason


def test_images_of_several_sizes_are_as_large_as_the_first(tmp_path):
    write(tmp_path / "frames", ["1.png"], side=16)
    write(tmp_path / "frames", ["2.png"], side=24)
    assert decode(tmp_path / "frames", [0, 1]).shape == (2, 16, 16, 3)
    assert decode(tmp_path / "frames", [1, 0], size=8).shape == (2, 8, 8, 3)
    assert decode(_read_bytes(tmp_path / "frames"), [0, 1]).shape == (2, 16, 16, 3)


def test_a_link_that_leads_nowhere_is_a_missing_frame(tmp_path):
    folder = write(tmp_path / "frames", ["1.png", "3.png"])
    (folder / "2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(VideoError, match=r"2\.png: no such file"):
        decode(folder, [1])
