"""The demonstration page: a server on this machine shows what a network says of a video, window by window.

It is for the user of this machine alone: it listens on 127.0.0.1, answers no page of another site, and keeps no video.
"""

import errno
import importlib.resources
import json
import math
import secrets
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jax
import jinja2

from flaxvid.data.clips.decode import VideoError
from flaxvid.data.clips.windows import SHORTEST
from flaxvid.evaluate.predictor import Predictor
from flaxvid.models.video_model import VideoModel
from flaxvid.types import Variables


class DemoServer(ThreadingHTTPServer):
    """Serves the page of one network; `serve_forever` runs it, `url` is its address.

    Args:
        predictor: the network, of one camera.
        title: what the page calls it.
        counts: the frame counts that the page offers.
        start: the one that it begins with.
        accuracies: what was measured at a count, as text such as "93.5 %"; a count may lack it.
        port: of 127.0.0.1; 0 is any free one.
        largest: bytes that a video may have.

    Raises:
        OSError: the port is taken.
        ValueError: there is no such port.
    """

    daemon_threads = True

    def __init__(
        self,
        predictor: Predictor,
        title: str,
        counts: Sequence[int],
        start: int,
        accuracies: Mapping[int, str],
        port: int = 0,
        largest: int = 200_000_000,
    ):
        if not 0 <= port < 2**16:
            raise ValueError(
                f"expected a port of at most {2**16 - 1}, got {port}: give --port another, or 0 for any free one"
            )
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise OSError(f"port {port} is taken: give --port another, or 0 for any free one") from error
        self.predictor, self.counts, self.largest = predictor, tuple(counts), largest
        self.facts = {
            "title": title,
            "counts": self.counts,
            "start": self.counts.index(start),
            "accuracies": accuracies,
            "classes": predictor.classes,
            "largest": largest,
        }
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.turn = threading.Lock()  # one computation at a time, or times would mean nothing

    def page(self, nonce: str) -> str:
        """The page; its style and its script have the nonce that `Content-Security-Policy` allows."""
        template = importlib.resources.files("flaxvid.evaluate").joinpath("demo.html").read_text(encoding="utf-8")
        return jinja2.Environment(autoescape=True).from_string(template).render(facts=self.facts, nonce=nonce)


class _Refused(Exception):
    """A request that is not answered: the status and a sentence."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: DemoServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = 60  # seconds that a silent browser is waited for

    def do_GET(self) -> None:
        """The page, and the cost of a frame count."""
        self._answer({"/": self._page, "/cost": self._cost})

    def do_POST(self) -> None:
        """What the network says of the video in the body."""
        self._answer({"/predict": self._predict})

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _answer(self, places: Mapping[str, Any]) -> None:
        place, _, query = self.path.partition("?")
        self.asked = dict(urllib.parse.parse_qsl(query))
        try:
            self._check_sender()
            if place not in places:
                raise _Refused(404, f"there is nothing at {place}")
            places[place]()
        except _Refused as refused:
            self._send(str(refused).encode(), "text/plain; charset=utf-8", refused.status)
        except OSError:  # the browser has gone, or asked for something else
            self.close_connection = True

    def _check_sender(self) -> None:
        """Refuses other sites, which the browser would ask in the user's name, and names that lead here by a trick."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host.rpartition(":")[0] not in ("127.0.0.1", "localhost"):  # any port: an SSH tunnel may have another
            raise _Refused(403, f"expected the host 127.0.0.1 or localhost, got {host}")
        if origin not in (None, f"http://{host}"):
            raise _Refused(403, f"expected a request of this page, got one of {origin}")

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(self.server.page(nonce).encode(), "text/html; charset=utf-8", policy=policy)

    def _cost(self) -> None:
        count = self._count()
        try:
            with self.server.turn:
                measured = self.server.predictor.milliseconds(count)
        except RuntimeError as error:  # out of memory
            raise _Refused(500, str(error)) from error
        self._send(json.dumps({"frames": count, "milliseconds": measured}).encode(), "application/json")

    def _predict(self) -> None:
        """Sends a line of JSON for each window as it comes; an error is the last line."""
        count, window, video = self._count(), self._window(), self._body()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        with self.server.turn:
            try:
                for one in self.server.predictor.predict(video, count, window):
                    shares = {target: own.round(4).tolist() for target, own in one.probabilities.items()}
                    self._write_line({"start": one.start, "end": one.end, "probabilities": shares})
            except (VideoError, ValueError, RuntimeError) as error:  # RuntimeError: out of memory
                self._write_line({"error": str(error)})

    def _write_line(self, value: Any) -> None:
        self.wfile.write(json.dumps(value).encode() + b"\n")

    def _count(self) -> int:
        asked, counts = self.asked.get("frames", ""), self.server.counts
        if asked not in map(str, counts):
            raise _Refused(400, f"expected frames of {', '.join(map(str, counts))}, got {asked or 'none'}")
        return int(asked)

    def _window(self) -> float:
        try:
            window = float(self.asked.get("window", ""))
        except ValueError:
            window = math.nan
        if not SHORTEST <= window < math.inf:
            raise _Refused(400, f"expected a window of at least {SHORTEST} seconds, got {self.asked.get('window')}")
        return window

    def _body(self) -> bytes:
        length, largest = self.headers.get("Content-Length", ""), self.server.largest
        if not (length.isascii() and length.isdecimal() and len(length) < 20):
            raise _Refused(411, "expected a video whose size is given")
        if int(length) > largest:
            raise _Refused(413, f"expected a video of at most {largest / 1e6:g} MB, got {int(length) / 1e6:.1f} MB")
        return self.rfile.read(int(length))

    def _send(self, body: bytes, kind: str, status: int = 200, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def offered_counts(model: VideoModel, variables: Variables, trained: Sequence[int]) -> list[int]:
    """The frame counts that a page offers for a network that is not frame-flexible: its own, and powers of two.

    Only those that the network takes, up to twice its own.

    Args:
        model: the ordinary model.
        variables: its variables.
        trained: the counts that it was trained at.
    """
    own, size = max(trained), model.clip.image_size

    def takes(count: int) -> bool:
        video = jax.ShapeDtypeStruct((1, count, size, size, 3), "uint8")
        try:
            jax.eval_shape(model.apply, variables, video)
        except Exception:  # a network may refuse a count in many ways
            return False
        return True

    powers = {2**power for power in range(own.bit_length() + 1) if 2**power <= 2 * own}
    return sorted({*trained, *filter(takes, powers)})
