"""Answers as lines: columns for people, JSON for programs."""

import json
import re
from collections.abc import Mapping

from flaxvid.evaluate.predictor import Prediction

Top = Mapping[str, list[tuple[str, float]]]
"""The likeliest classes of each target and their probabilities, as `Predictor.top` gives them."""


def json_line(video: str, answer: Prediction, top: Top, num_frames: int) -> str:
    """{"video", "start", "end", "frames", "top": [{"class", "probability"}, ...]}; seconds, null for a whole video.

    Of several targets, "top" is {"action": [...], "actor": [...]}.
    """
    targets = {
        target: [{"class": name, "probability": round(probability, 6)} for name, probability in own]
        for target, own in top.items()
    }
    classes = targets.get("", targets)
    seconds = {name: value and round(value, 3) for name, value in (("start", answer.start), ("end", answer.end))}
    return json.dumps({"video": video, **seconds, "frames": num_frames, "top": classes}, ensure_ascii=False)


def text_line(video: str, answer: Prediction, top: Top, widths: tuple[int, int]) -> str:
    """Name, times and the classes of each target, in percent; `widths` are those of names and of classes."""
    times = "" if answer.start is None else f"  {_clock(answer.start)} - {_clock(answer.end or 0.0)}"
    targets = []
    for target, own in top.items():
        columns = [f"{100 * probability:5.1f} {name.ljust(widths[1])}" for name, probability in own]
        targets.append("  ".join([f"{target}:"] * bool(target) + columns))
    return f"{printable(video).ljust(widths[0])}{times}  {'  '.join(targets)}".rstrip()


def printable(text: str) -> str:
    """Text on one line: escapes line breaks, terminal commands, and bytes that are not UTF-8."""
    return re.sub(r"[\0-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: match[0].encode("unicode_escape").decode(), text)


def _clock(seconds: float) -> str:
    """Seconds as 1:02:03.4."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{int(minutes) // 60}:{int(minutes) % 60:02d}:{rest:04.1f}"
