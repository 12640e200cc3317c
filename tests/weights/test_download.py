import hashlib
import http.server
import threading

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
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path.startswith("/broken") else CONTENT)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_download_once_by_name(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path / "new" / "cache"))
    monkeypatch.setitem(KNOWN, "test/weights", KnownFile(f"{server.url}/weights-1.pth", SHA256[:8]))
    first, second = resolve_weights("test/weights"), resolve_weights("test/weights")
    assert first == second == cache_folder() / "weights-1.pth"
    assert first.read_bytes() == CONTENT
    assert server.requests == ["/weights-1.pth"]
    assert [path.name for path in cache_folder().iterdir()] == ["weights-1.pth"]


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


def test_offline_names_url_and_destination(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path))

    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(download_file.urllib.request, "urlopen", offline)
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
    for known in KNOWN.values():
        assert len(known.sha256) == 8
        assert known.file_name.endswith(f"-{known.sha256}.pth")
