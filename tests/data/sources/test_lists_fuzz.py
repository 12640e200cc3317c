"""Random lists, written in random ways, against what was written."""

import csv
import io
import os

import numpy as np
import pytest

from flaxvid.data.sources.open import open_source

WORDS = (
    "run",
    "a b",
    "x,y",
    "Ünal",
    "跳",
    "look left",
    "it's",
    "a;b",
    "100%",
    "#1",
    "two  blanks",
    "né(2)",
    "v1.5",
    "-x",
)
SUFFIXES = (".mp4", ".avi", ".MOV", ".webm", "")
HEADINGS = {
    "path": ("path", "Path", "file_name", "Video Path", "filename", "video"),
    "label": ("label", "Label", "class", "CLASS_NAME", "category", "action"),
    "index": ("", "Unnamed: 0", "index", "id"),
    "fps": ("fps", "num_frames", "Duration"),
}


def draw_list(rng, root):
    """Rows (path, class name), and the bytes of a list of them; the videos are made below `root`."""
    count, classes = int(rng.integers(3, 12)), int(rng.integers(2, 5))
    names = [
        str(name) for name in rng.choice([word for word in WORDS if word not in ("a;b", "x,y")], classes, replace=False)
    ]
    kind = rng.choice(["names", "zero", "one", "float"])
    if rng.random() < 0.3 and kind == "names":
        names[0] = str(rng.choice(["a;b", "x,y"]))
    labels = rng.permutation([*range(classes), *rng.integers(0, classes, count)])
    paths, base = [], rng.choice(["", "sub/", "a b/", "c,d/", "Ünal/"])
    for number in range(len(labels)):
        path = f"{base}{rng.choice(WORDS)}{number}{rng.choice(SUFFIXES)}"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).mkdir() if "." not in path.rpartition("/")[2][-5:] else (root / path).touch()
        paths.append(path)
    cells = [{"names": names[k], "zero": str(k), "one": str(k + 1), "float": f"{k}.0"}[kind] for k in labels]
    expected = cells if kind != "float" else [cell[:-2] for cell in cells]
    written = [path if rng.random() < 0.7 else f"./{path}" for path in paths]
    style = rng.choice(["comma", "tab", "semicolon", "spaces"])
    heading = rng.random() < 0.6
    end = str(rng.choice(["\n", "\r\n"]))
    if style == "spaces":
        if kind == "names":  # a name without blanks ends the line
            short = [name.replace(" ", "_") for name in names]
            cells = expected = [short[k] for k in labels]
        lines = [f"{path}{rng.choice([' ', '  ', chr(9)])}{cell}" for path, cell in zip(written, cells, strict=True)]
        lines = ["path label", *lines] if heading else lines
        text = end.join(lines) + end
    else:
        columns = {"path": written, "label": cells}
        if heading and rng.random() < 0.5:
            columns["index"] = [str(number) for number in range(len(cells))]
        if heading and rng.random() < 0.5:
            columns["fps"] = [str(rng.choice([24, 25.0, 30])) for _ in cells]
        order = [str(name) for name in rng.permutation(list(columns))] if heading else ["path", "label"]
        file = io.StringIO()
        separator = {"comma": ",", "tab": "\t", "semicolon": ";"}[str(style)]
        quoting = csv.QUOTE_ALL if rng.random() < 0.3 else csv.QUOTE_MINIMAL
        writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)
        if heading:
            writer.writerow([rng.choice(HEADINGS[name]) for name in order])
        writer.writerows(zip(*(columns[name] for name in order), strict=True))
        text = file.getvalue()
    if rng.random() < 0.3:
        text = f"# a comment{end}{text}{end}"
    encoding = str(rng.choice(["utf-8", "utf-8-sig", "utf-16", "gb18030"]))
    return list(zip(paths, expected, strict=True)), text.encode(encoding), encoding


def check(seed, root):
    """Reads one random list."""
    rng = np.random.default_rng(seed)
    rows, data, encoding = draw_list(rng, root)
    name = str(rng.choice(["train.csv", "train.txt", "Training.tsv", "train_list.txt"]))
    (root / name).write_bytes(data)
    hidden = encoding == "gb18030" and not data.isascii() and all(path.isascii() for path, _ in rows)
    if hidden:  # no name on disk tells which encoding it is
        with pytest.raises(ValueError, match="in an unknown encoding"):
            open_source("list", root)
        return
    source = open_source("list", root)
    items = [source[i] for i in range(len(source))]
    assert [(item["id"], source.classes[item["label"]]) for item in items] == rows
    assert os.path.exists(items[0]["video"])


@pytest.mark.parametrize("part", range(10))
def test_random_lists(tmp_path, part):
    for seed in range(20 * part, 20 * part + 20):
        root = tmp_path / str(seed)
        root.mkdir()
        check(seed, root)


@pytest.mark.parametrize("part", range(5))
def test_damaged_lists(tmp_path, part):
    """Whatever becomes of a list: it is read, or one of two errors says why not."""
    for seed in range(20 * part, 20 * part + 20):
        root = tmp_path / str(seed)
        root.mkdir()
        rng = np.random.default_rng(seed)
        _, data, _ = draw_list(rng, root)
        for _ in range(5):
            damaged = bytearray(data)
            for _ in range(int(rng.integers(1, 6))):
                at = int(rng.integers(len(damaged)))
                kind = rng.integers(3)
                if kind == 0:
                    damaged[at] = int(rng.integers(256))
                elif kind == 1:
                    del damaged[at : at + int(rng.integers(1, 9))]
                else:
                    damaged[at:at] = rng.choice([b'"', b",", b"\n", b"\0", b";", b"\xff", b" ", b"\r", b"NaN", b"-1"])
                if not damaged:
                    break
            (root / "train.csv").write_bytes(damaged)
            try:
                source = open_source("list", root, missing="keep")
            except (ValueError, FileNotFoundError) as error:
                text = str(error)
                assert "expected" in text
            else:
                assert len(source.classes) > 1
