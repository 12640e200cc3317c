"""Downloads that break off and go on, and two at once, against a server that knows ranges."""

import contextlib
import hashlib
import http.server
import re
import subprocess
import sys
import threading
import time

import pytest

from flaxvid.weights.download import download
from flaxvid.weights.known import KnownFile

CONTENT = hashlib.shake_256(b"weights").digest(3 << 20)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content` under `server.etag`, by ranges as RFC 9110 has them; the second half as `gate` opens."""

    def do_GET(self):
        server = self.server
        asked = self.headers["Range"]
        server.requests.append((asked, self.headers["If-Range"]))
        content, start = server.content, 0
        if asked and server.ranges and self.headers["If-Range"] == server.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            first = start + server.shift
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.page:
            self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client was killed
            self.wfile.write(content[start:HALF])
            assert server.gate.wait(300)
            self.wfile.write(content[max(start, HALF) : server.breaks_at])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.content, server.etag = [], CONTENT, '"one"'
    server.ranges, server.shift, server.breaks_at, server.gate = True, 0, len(CONTENT), threading.Event()
    server.gate.set()
    server.page = False
    server.known = KnownFile(f"http://127.0.0.1:{server.server_port}/w.pth", SHA256)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def start(server, tmp_path):
    """Starts a download in a process of its own."""
    processes = []

    def start():
        program = (
            "from pathlib import Path; from flaxvid.weights import download as module; "
            "from flaxvid.weights.known import KnownFile; "
            "module._PATIENCE = 300.0; "  # the gate is closed until another process has begun
            f"print(module.download(KnownFile({server.known.url!r}, {SHA256!r}), Path({str(tmp_path / 'w.pth')!r})))"
        )
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(happened):
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def break_off(server, folder):
    """Leaves half of the file."""
    server.breaks_at = HALF
    with pytest.raises(
        ConnectionError, match=rf"broke off after {HALF} of {len(CONTENT)} bytes\): call again to go on"
    ):
        download(server.known, folder / "w.pth")
    assert files(folder) == ["w.pth.part", "w.pth.part.etag"]
    assert (folder / "w.pth.part").read_bytes() == CONTENT[:HALF]
    server.breaks_at = len(CONTENT)


def test_goes_on_where_it_broke_off(server, tmp_path):
    break_off(server, tmp_path)
    assert download(server.known, tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.requests == [(None, None), (f"bytes={HALF}-", '"one"')]
    assert files(tmp_path) == ["w.pth"]


def test_breaks_off_again_and_again(server, tmp_path):
    break_off(server, tmp_path)
    server.breaks_at = HALF + 1000
    with pytest.raises(ConnectionError, match=f"broke off after {HALF + 1000} of {len(CONTENT)} bytes"):
        download(server.known, tmp_path / "w.pth")
    server.breaks_at = len(CONTENT)
    assert download(server.known, tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.requests[-1] == (f"bytes={HALF + 1000}-", '"one"')


def test_goes_on_after_a_kill(server, start, tmp_path):
    server.gate.clear()
    process, part = start(), tmp_path / "w.pth.part"
    wait_for(lambda: part.is_file() and part.stat().st_size > 1 << 19)
    process.kill()
    process.communicate()
    assert not (tmp_path / "w.pth").exists()
    there = part.stat().st_size
    server.gate.set()
    assert download(server.known, tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.requests[-1] == (f"bytes={there}-", '"one"')
    assert files(tmp_path) == ["w.pth"]


def test_never_splices_two_files(server, tmp_path):
    """The server's file has changed meanwhile: all of it is fetched, and it is not the one that the name stands for."""
    break_off(server, tmp_path)
    server.content, server.etag = CONTENT[::-1], '"two"'
    with pytest.raises(ValueError, match="must have a SHA-256"):
        download(server.known, tmp_path / "w.pth")
    assert files(tmp_path) == []
    break_off_again = KnownFile(server.known.url)  # without a hash nothing but the ETag could tell
    server.content, server.etag, server.breaks_at = CONTENT, '"one"', HALF
    with pytest.raises(ConnectionError):
        download(break_off_again, tmp_path / "w.pth")
    server.content, server.etag, server.breaks_at = CONTENT[::-1], '"two"', len(CONTENT)
    assert download(break_off_again, tmp_path / "w.pth").read_bytes() == CONTENT[::-1]


def test_a_web_page_costs_nothing(server, tmp_path):
    """Such as a hotel's: what was there stays there."""
    break_off(server, tmp_path)
    server.ranges, server.page = False, True
    with pytest.raises(ConnectionError, match=r"web page, such as one for logging in\): call again to go on"):
        download(server.known, tmp_path / "w.pth")
    server.ranges, server.page = True, False
    assert download(server.known, tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.requests[-1] == (f"bytes={HALF}-", '"one"')


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    break_off(server, tmp_path)
    server.ranges = False
    assert download(server.known, tmp_path / "w.pth").read_bytes() == CONTENT


def test_other_bytes_than_were_asked_are_refused(server, tmp_path):
    break_off(server, tmp_path)
    server.shift = 1
    with pytest.raises(ConnectionError, match=f"asked for the bytes from {HALF}, the server sends others"):
        download(server.known, tmp_path / "w.pth")
    assert files(tmp_path) == []


@pytest.mark.parametrize("etag", [None, 'W/"weak"', "bare"])
def test_without_a_strong_etag_nothing_is_kept(server, tmp_path, etag):
    server.etag, server.breaks_at = etag, HALF
    with pytest.raises(ConnectionError, match=r"broke off after \d+ of \d+ bytes\): fetch it where"):
        download(server.known, tmp_path / "w.pth")
    assert files(tmp_path) == []


@pytest.mark.parametrize("etag", [b"", b"\xff\xfe", b'"one"\r\nX: y', b'"one'])
def test_a_damaged_etag_begins_anew(server, tmp_path, etag):
    break_off(server, tmp_path)
    (tmp_path / "w.pth.part.etag").write_bytes(etag)
    assert download(server.known, tmp_path / "w.pth").read_bytes() == CONTENT
    assert server.requests[-1] == (None, None)


def test_damaged_bytes_are_found_by_the_hash(server, tmp_path):
    break_off(server, tmp_path)
    (tmp_path / "w.pth.part").write_bytes(bytes(HALF))
    with pytest.raises(ValueError, match="must have a SHA-256"):
        download(server.known, tmp_path / "w.pth")
    assert files(tmp_path) == []


def test_a_part_that_is_whole_gets_its_name(server, tmp_path):
    """The process was killed behind the last byte."""
    break_off(server, tmp_path)
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    assert download(server.known, tmp_path / "w.pth").read_bytes() == CONTENT
    assert files(tmp_path) == ["w.pth"]


def test_a_part_that_is_too_long_is_given_up(server, tmp_path):
    break_off(server, tmp_path)
    (tmp_path / "w.pth.part").write_bytes(CONTENT + b"x")
    with pytest.raises(ConnectionError, match="416"):
        download(server.known, tmp_path / "w.pth")
    assert files(tmp_path) == []


def test_of_two_at_once_one_waits(server, start, tmp_path):
    server.gate.clear()
    first = start()
    wait_for(lambda: server.requests)
    second = start()
    assert "waits" in second.stderr.readline()
    server.gate.set()
    outs, errors = zip(*(process.communicate(timeout=300) for process in (first, second)), strict=True)
    assert outs == (f"{tmp_path / 'w.pth'}\n",) * 2
    assert "waits" not in errors[0]
    assert len(server.requests) == 1
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert files(tmp_path) == ["w.pth"]


def test_who_waits_goes_on_where_the_other_was_killed(server, start, tmp_path):
    server.gate.clear()
    first, part = start(), tmp_path / "w.pth.part"
    wait_for(lambda: part.is_file() and part.stat().st_size > 1 << 19)
    second = start()
    assert "waits" in second.stderr.readline()
    first.kill()
    server.gate.set()
    assert second.communicate(timeout=300)[0] == f"{tmp_path / 'w.pth'}\n"
    assert len(server.requests) == 2
    assert server.requests[1][1] == '"one"'
    assert files(tmp_path) == ["w.pth"]


def test_many_at_once_in_one_process(server, tmp_path):
    """Of eight threads that fetch a file that is not the right one, each is told, and none leaves anything."""
    wrong, found = KnownFile(server.known.url, "0" * 64), []

    def fetch(known):
        try:
            found.append(download(known, tmp_path / "w.pth").read_bytes() == CONTENT)
        except ValueError:
            found.append("refused")

    for known, expected in ((wrong, "refused"), (server.known, True)):
        found.clear()
        threads = [threading.Thread(target=fetch, args=(known,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 8
    assert files(tmp_path) == ["w.pth"]
    assert len(server.requests) == 9
