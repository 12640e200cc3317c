import json
from html.parser import HTMLParser

import numpy as np
import pytest


class Page(HTMLParser):
    """Checks that tags nest and collects what a page consists of."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="session")
def parse_page():
    return Page


@pytest.fixture
def evaluation():
    """An evaluation.json of three classes at two frame counts."""

    def row(frames, top1):
        bins = {"count": [0, 3, 7], "confidence": [None, 0.5, 0.9], "accuracy": [None, 2 / 3, 0.5]}
        costs = {"gflops": 4.1 * frames, "milliseconds": 2.5 * frames}
        scores = {"frames": frames, "top1": top1, "top5": 1.0, "mean_class": 0.45, "calibration_error": 0.125}
        confusion = [[0, 0, 4], [1, 0, 3], [1, 1, 1], [2, 1, 2]]
        return {**scores, **costs, "clips": 10, "confusion": confusion, "reliability": bins}

    return {
        "protocol": {"name": "accurate", "views": "2 clips x 3 crops, full resolution", "size": 256},
        "data": {
            "name": "ucf101 test1",
            "videos": 12,
            "evaluated": 10,
            "missing": 1,
            "unreadable": 1,
            "faults": [
                {"id": "gone.avi", "missing": True, "reason": "no such file"},
                {"id": "torn.avi", "missing": False, "reason": "broken data"},
            ],
        },
        "device": "CPU with 2 cores",
        "classes": ["<b>bold", "$run$", "jump"],
        "frames": [row(4, 0.5), row(8, 0.6)],
        "examples": [
            {"id": "a.avi", "label": 0, "guesses": {"4": [1, 0.4], "8": [0, 0.8]}, "strip": "strips/00.jpg"},
            {"id": "b.avi", "label": 2, "guesses": {"4": [2, 0.6], "8": [1, 0.9]}, "strip": "strips/01.jpg"},
        ],
    }


@pytest.fixture
def evaluated(tmp_path, evaluation):
    """A run's folder with nothing but an evaluation and its strips."""
    from matplotlib.image import imsave

    folder = tmp_path / "evaluated"
    (folder / "strips").mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    for number in range(2):
        imsave(folder / "strips" / f"0{number}.jpg", np.full((8, 64, 3), 99 * number, np.uint8))
    return folder
