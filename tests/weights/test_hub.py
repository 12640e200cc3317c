"""Files of the Hugging Face Hub: a stand-in for huggingface_hub shows what is asked; itself, it asks a local server."""

import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
import types

import pytest
from safetensors.numpy import save_file

import flaxvid
from flaxvid.models.registry import create_tiny, get_spec
from flaxvid.weights.hub import fetch_from_hub, read_labels
from flaxvid.weights.known import KNOWN, KnownFile
from flaxvid.weights.torch import to_torch

TINY = {option: value for option, value in get_spec("slow_r50").tiny.items() if option != "num_classes"}
LABELS = {str(number): f"label {number}" for number in range(5)}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A library that has the files of a folder, and notes what it is asked for."""

    def hf_hub_download(repo, file, *, revision=None):
        asked.append((repo, file, revision))
        if not (tmp_path / file).is_file():
            raise RuntimeError("no such\nfile")
        return str(tmp_path / file)

    asked = []
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    return asked


def test_addresses(hub, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "model.bin").touch()
    assert fetch_from_hub("hf://owner/repo/deep/model.bin") == tmp_path / "deep" / "model.bin"
    fetch_from_hub("hf://owner/repo@1a2b/deep/model.bin")
    fetch_from_hub("hf:/owner/repo/deep/model.bin")  # as pathlib writes it
    assert hub == [("owner/repo", "deep/model.bin", revision) for revision in (None, "1a2b", None)]
    for wrong in ("hf://owner/repo", "hf://model.bin", "hf:///", "hf://owner/re@po@1/x", "hf://owner/repo/"):
        with pytest.raises(ValueError, match=r"expected hf://OWNER/REPO/FILE or"):
            fetch_from_hub(wrong)


def test_what_goes_wrong_there_is_one_line(hub, monkeypatch):
    message = (
        r"^could not fetch https://huggingface.co/a/b/resolve/main/c \(RuntimeError: no such file\): fetch it where "
        r"there is a network, and pass the path of the file$"
    )
    with pytest.raises(ConnectionError, match=message):
        flaxvid.load_model("slow_r50", "hf://a/b/c")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'hf://a/b/c needs huggingface_hub: pip install "flaxvid\[hub\]"'):
        flaxvid.load_model("slow_r50", "hf://a/b/c")


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"id2label": {"1": "b", "0": "a"}}, ("a", "b")),
        ({"id2label": {"0": "a", "2": "b"}}, None),
        ({"id2label": {"0": 1}}, None),
        ({"id2label": ["a"]}, None),
        ({"id2label": 3}, None),
        ({}, None),
        ([], None),
    ],
)
def test_labels_beside_a_file(hub, tmp_path, config, labels):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_labels("hf://a/b@c/model.safetensors") == labels
    assert hub == [("a/b", "config.json", "c")]


def test_without_labels(hub, tmp_path):
    assert read_labels("hf://a/b/model.safetensors") is None
    for damaged in ("{", "[" * 100_000):
        (tmp_path / "config.json").write_text(damaged)
        assert read_labels("hf://a/b/model.safetensors") is None


@pytest.fixture
def tiny_file(random_variables, tmp_path):
    variables = random_variables(create_tiny("slow_r50"))
    save_file(to_torch("slow_r50", variables), tmp_path / "model.safetensors")
    return variables


def test_a_network_with_its_labels(hub, tiny_file, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"id2label": LABELS}))
    address = "hf://a/b/model.safetensors"
    assert flaxvid.load(address, model="slow_r50", overrides=TINY).classes == tuple(LABELS.values())
    monkeypatch.setitem(KNOWN, "slow_r50/test/mine", KnownFile(address, options=TINY))
    assert flaxvid.load("slow_r50/test/mine").classes == tuple(LABELS.values())
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert flaxvid.load("slow_r50/test/mine").classes[0] == "class 0"  # those are not of this head


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")
def test_the_library_itself(tiny_file, tmp_path):
    """It asks a local server in the Hub's place."""
    (tmp_path / "config.json").write_text(json.dumps({"id2label": LABELS}))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            content = (tmp_path / self.path.rpartition("/")[-1]).read_bytes()
            assert self.path.startswith("/a/b/resolve/main/")
            self.send_response(200)
            self.send_header("ETag", f'"{len(content)}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return content

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    program = (
        "import flaxvid; trained = flaxvid.load('hf://a/b/model.safetensors', model='slow_r50', "
        f"overrides={TINY!r}); print(trained.classes)"
    )
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    told = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, text=True
    )
    server.shutdown()
    server.server_close()
    assert told.stdout == f"{tuple(LABELS.values())}\n", told.stderr
