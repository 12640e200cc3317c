import contextlib
import hashlib
import http.client
import http.server
import threading
import time
import urllib.parse
import urllib.request

import pytest

from flaxvid.weights import download as download_file
from flaxvid.weights.download import KNOWN, KnownFile, cache_folder, download, resolve_weights

CONTENT = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        length = self.path.partition("?length=")[2] or str(len(CONTENT))
        if length != "none":
            self.send_header("Content-Length", length)
        if self.path.startswith("/page"):
            self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        if self.path.startswith("/endless"):
            with contextlib.suppress(ConnectionError):
                while not self.server.closing:
                    self.wfile.write(CONTENT)
            return
        if self.path.startswith("/drip"):
            with contextlib.suppress(ConnectionError):
                while not self.server.closing:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
            return
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path.startswith("/broken") else CONTENT)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.closing = [], False
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.closing = True
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_once_by_name(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path / "new" / "cache"))
    own = f"weights-{SHA256[:8]}.pth"
    monkeypatch.setitem(KNOWN, "test/weights", KnownFile(f"{server.url}/{own}", SHA256[:8]))
    first, second = resolve_weights("test/weights"), resolve_weights("test/weights")
    assert first == second == cache_folder() / own
    assert first.read_bytes() == CONTENT
    assert server.requests == [f"/{own}"]
    assert [path.name for path in cache_folder().iterdir()] == [own]


def test_files_of_one_name_have_folders_of_their_own(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path))
    names = "slow_r50/test/kinetics400", "slow_r50/test/ssv2"
    for name in names:
        monkeypatch.setitem(KNOWN, name, KnownFile(f"{server.url}/{name}/SLOW.pyth", SHA256))
    assert [resolve_weights(name) for name in names] == [tmp_path / name / "SLOW.pyth" for name in names]
    assert resolve_weights("test/ssv2", "slow_r50") == tmp_path / names[1] / "SLOW.pyth"
    assert [path.name for path in (tmp_path / names[1]).iterdir()] == ["SLOW.pyth"]


@pytest.mark.parametrize(
    ("path", "sha256", "error", "message"),
    [
        ("/weights.pth", "0" * 64, ValueError, r"must have a SHA-256 of 000.*, got"),
        ("/broken.pth", SHA256, ConnectionError, r"broke off after 1152000 of 2304000 bytes.* put it at .*w.pth"),
        ("/missing.pth", SHA256, ConnectionError, r"could not fetch http://.*/missing.pth .*404.* put it at .*w.pth"),
    ],
)
def test_a_bad_transfer_leaves_no_file(server, tmp_path, path, sha256, error, message):
    with pytest.raises(error, match=message):
        download(KnownFile(server.url + path, sha256), tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "place", ["http://[::1", "http://a..b/", "http://127.0.0.1:x/", "file:///etc/passwd", "/to//to/"]
)
def test_a_server_that_leads_nowhere_is_one_line(server, tmp_path, place):
    """The last leads on and on until urllib has enough of it, in three lines."""
    path = f"/to/{place}" if place else "/to/" * 20
    with pytest.raises(ConnectionError, match=r"^could not fetch http://.* put it at .*w\.pth$") as error:
        download(KnownFile(server.url + path, SHA256), tmp_path / "w.pth")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_offline_names_url_and_destination(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path))

    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(download_file._OPENER, "open", offline)
    message = (
        r"https://download.pytorch.org/models/resnet50-0676ba61.pth \(no network\).* put it at .*resnet50-0676ba61.pth"
    )
    with pytest.raises(ConnectionError, match=message):
        resolve_weights("torchvision/resnet50-imagenet1k-v1")
    assert list(tmp_path.iterdir()) == []


def test_a_file_put_there_by_hand_is_checked(tmp_path):
    destination = tmp_path / "w.pth"
    destination.write_bytes(CONTENT)
    assert download(KnownFile("http://127.0.0.1:9/w.pth", SHA256[:8]), destination) == destination
    destination.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"must have a SHA-256.*delete .*w.pth to fetch it again"):
        download(KnownFile("http://127.0.0.1:9/w.pth", SHA256[:8]), destination)


def test_paths_and_misspelt_names(tmp_path):
    (tmp_path / "mine.pth").touch()
    assert resolve_weights(tmp_path / "mine.pth") == tmp_path / "mine.pth"
    with pytest.raises(FileNotFoundError, match=r"did you mean torchvision/resnet50-imagenet1k-v"):
        resolve_weights("torchvision/resnet50-imagenet1k")
    with pytest.raises(FileNotFoundError, match=r"no weights file at .*known names are torchvision/resnet18"):
        resolve_weights(tmp_path / "x.y")


def test_known_hashes_are_the_digits_in_torchvisions_file_names():
    twins = {"slow_r50/mmaction2/kinetics400-imagenet", "slow_nln_r50/mmaction2/kinetics400"}
    assert {KNOWN[name].sha256 for name in twins} == {""}  # mmaction2 publishes one digest for both, so one is wrong
    assert len({KNOWN[name].file_name.rpartition("-")[2] for name in twins}) == 1
    for name, known in KNOWN.items():
        if {"torchvision", "mmaction2"} & set(name.split("/")) and name not in twins:
            assert len(known.sha256) == 8
            assert known.file_name.endswith(f"-{known.sha256}.pth")


@pytest.mark.parametrize("length", ["none", "abc", "-5", "1e6", "0x10", "9" * 40, "²"])
def test_a_length_that_says_nothing_is_no_length(server, tmp_path, length):
    """The hash decides; HTTP's own reader reads to the end of the connection, too."""
    known = KnownFile(f"{server.url}/w.pth?length={urllib.parse.quote(length)}", SHA256)
    assert download(known, tmp_path / "w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/w.pth?length=3000000", r"broke off after 2304000 of 3000000 bytes"),
        ("/w.pth?length=99999999999", r"expected at most 4000000 bytes, the server announces 99999999999"),
        ("/endless.pth?length=none", r"expected at most 4000000 bytes, and the server sends more"),
        ("/endless.pth?length=abc", r"expected at most 4000000 bytes, and the server sends more"),
        ("/drip.pth?length=none", r"the transfer stands still: \d+ bytes in 2 s"),
        ("/to/file:///etc/hostname", r"file:///etc/hostname' is not allowed"),
        ("/to//to/", r"infinite loop|302"),
    ],
)
def test_what_a_server_sends_is_bounded(server, tmp_path, monkeypatch, path, message):
    monkeypatch.setattr(download_file, "_PATIENCE", 2.0 if "drip" in path else 30.0)
    with pytest.raises(ConnectionError, match=rf"(?s)could not fetch {server.url}.*{message}.* put it at .*w.pth"):
        download(KnownFile(server.url + path, SHA256, largest=4_000_000), tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_length_too_small_is_found_by_the_hash(server, tmp_path):
    with pytest.raises(ValueError, match="must have a SHA-256"):
        download(KnownFile(f"{server.url}/w.pth?length=1000", SHA256), tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []


class PlainHttps(urllib.request.HTTPSHandler):
    """Speaks plain HTTP to https://, so that the test's server can answer."""

    def https_open(self, request):
        return self.do_open(http.client.HTTPConnection, request)


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_what_was_asked_by_https_comes_by_https(server, tmp_path, monkeypatch, scheme):
    """Such as a hotel's page for logging in. Nothing is asked of the other place."""
    opener = urllib.request.build_opener(download_file._Redirects, PlainHttps)
    monkeypatch.setattr(download_file, "_OPENER", opener)
    address = server.url.removeprefix("http")
    known = KnownFile(f"https{address}/to/{scheme}{address}/w.pth", SHA256)
    with pytest.raises(ConnectionError, match=rf"redirected to {scheme}://127.0.0.1:.*put it at"):
        download(known, tmp_path / "w.pth")
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []
    known = KnownFile(f"https{address}/to/https{address}/w.pth", SHA256)
    assert download(known, tmp_path / "w.pth").read_bytes() == CONTENT


def test_from_http_a_redirect_leads_to_http_alone(server, tmp_path):
    known = KnownFile(f"{server.url}/to/{server.url}/w.pth", SHA256)
    assert download(known, tmp_path / "w.pth").read_bytes() == CONTENT
    with pytest.raises(ConnectionError, match=r"redirected to ftp://127.0.0.1:1/w.pth, which is not https"):
        download(KnownFile(f"{server.url}/to/ftp://127.0.0.1:1/w.pth", SHA256), tmp_path / "other.pth")


def test_without_a_hash_the_length_must_be_known(server, tmp_path):
    with pytest.raises(ConnectionError, match="does not say how many bytes it sends, and no hash is known"):
        download(KnownFile(f"{server.url}/w.pth?length=none"), tmp_path / "w.pth")
    with pytest.raises(ConnectionError, match="broke off after 1152000 of 2304000 bytes"):
        download(KnownFile(f"{server.url}/broken.pth"), tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []
    assert download(KnownFile(f"{server.url}/w.pth"), tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_web_page_is_no_file(server, tmp_path):
    with pytest.raises(ConnectionError, match="sends a web page, such as one for logging in"):
        download(KnownFile(f"{server.url}/page.pth"), tmp_path / "w.pth")
    assert list(tmp_path.iterdir()) == []


def test_progress_is_not_among_the_answers(server, tmp_path, capsys):
    download(KnownFile(f"{server.url}/w.pth", SHA256), tmp_path / "w.pth")
    out, err = capsys.readouterr()
    assert out == ""
    assert "w.pth" in err
