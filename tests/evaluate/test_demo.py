"""scripts/demo.py: a real server, asked as its page asks it, and as other sites and tools might."""

import http.client
import json
import re
import shutil
import signal
import socket
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.evaluate.demo import DemoServer, offered_counts
from flaxvid.evaluate.predictor import Predictor
from flaxvid.models.registry import create_tiny

STORED = Path(__file__).parents[1] / "stored"


@pytest.fixture(scope="module")
def stored_run(tmp_path_factory):
    """A small frame-flexible run of `motion` that was tested at 2, 3 and 4 frames."""
    folder = tmp_path_factory.mktemp("runs") / "ffn"
    shutil.unpack_archive(STORED / "ffn.tar.xz", folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def server(stored_run, start_script):
    """The page of a stored run, and its port."""
    script = start_script("scripts/demo.py", "--run", stored_run, "--port", 0, "--largest", 1)
    script.wait_for(lambda: "\n" in script.out.read_text())
    script.port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+) shows .*\n", script.out.read_text())[1])
    return script


@pytest.fixture(scope="module")
def video(encode_video, tmp_path_factory):
    """Two and a half seconds at 8 frames a second."""
    pictures = np.random.default_rng(0).integers(0, 256, (20, 40, 48, 3), np.uint8)
    return encode_video(tmp_path_factory.mktemp("videos") / "a.mp4", pictures, rate=8)


@pytest.fixture
def ask(server):
    """Asks the server: status, headers and text."""

    def ask(method, place, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        connection.request(method, place, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()

    return ask


def test_the_page_knows_the_run(ask, stored_run):
    status, headers, page = ask("GET", "/")
    facts = json.loads(re.search(r'id="facts">(.*?)</script>', page)[1])
    assert status == 200
    assert facts["counts"] == [2, 3, 4]
    assert facts["counts"][facts["start"]] == 4
    assert facts["accuracies"] == {"2": "12.5 %", "3": "12.5 %", "4": "12.5 %"}
    assert facts["classes"] == {"": json.loads((stored_run / "classes.json").read_text())}
    (nonce,) = set(re.findall(r'nonce="(.*?)"', page))
    assert f"script-src 'nonce-{nonce}'" in headers["Content-Security-Policy"]
    assert nonce not in ask("GET", "/")[2]


@pytest.mark.parametrize("frames", [2, 4])
def test_a_video_is_answered_window_by_window(ask, video, stored_run, frames):
    status, _, text = ask("POST", f"/predict?frames={frames}&window=1", video.read_bytes())
    lines = [json.loads(line) for line in text.splitlines()]
    assert status == 200
    wanted = list(flaxvid.load(stored_run).predictor.predict(video, frames, 1.0))
    assert [(line["start"], line["end"]) for line in lines] == [(one.start, one.end) for one in wanted]
    assert len(wanted) == 3
    for line, one in zip(lines, wanted, strict=True):
        np.testing.assert_allclose(line["probabilities"][""], one.probabilities[""], atol=1e-4)


def test_the_cost_is_measured(ask):
    status, _, text = ask("GET", "/cost?frames=3")
    assert status == 200
    assert json.loads(text)["frames"] == 3
    assert 0 < json.loads(text)["milliseconds"] < 10_000


@pytest.mark.parametrize(
    ("call", "status", "reason"),
    [
        (("GET", "/cost?frames=5"), 400, "expected frames of 2, 3, 4, got 5"),
        (("GET", "/cost"), 400, "expected frames of 2, 3, 4, got none"),
        (("GET", "/etc/passwd"), 404, "there is nothing at /etc/passwd"),
        (("GET", "/predict"), 404, "there is nothing at /predict"),
        (("POST", "/predict?frames=4&window=nan", b""), 400, "expected a window of at least 0.001 seconds, got nan"),
        (("POST", "/predict?frames=4&window=inf", b""), 400, "expected a window of at least 0.001 seconds, got inf"),
        (("POST", "/predict?frames=4&window=0", b""), 400, "expected a window of at least 0.001 seconds, got 0"),
        (("POST", "/predict?frames=4", b""), 400, "expected a window of at least 0.001 seconds, got None"),
    ],
)
def test_what_cannot_be_is_one_line(ask, call, status, reason):
    got, _, text = ask(*call)
    assert (got, text) == (status, reason)


def test_an_address_that_is_none_is_one_line(ask, server):
    assert ask("GET", "http://[/", Host="localhost:1")[::2] == (404, "there is nothing at http://[/")
    assert server.err.read_text() == ""


def test_other_sites_and_names_are_refused(ask, server):
    assert ask("GET", "/", Host=f"evil.example:{server.port}")[0] == 403
    assert ask("GET", "/", Host="localhost:1")[0] == 200  # the other end of an SSH tunnel
    for origin in ("https://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        assert ask("POST", "/predict?frames=4&window=1", b"", Origin=origin)[0] == 403
    assert ask("GET", "/cost?frames=2", Origin=f"http://127.0.0.1:{server.port}")[0] == 200


def test_it_listens_at_one_address_alone(server):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=10)


def test_a_large_or_endless_video_is_refused_before_it_is_read(ask):
    status, _, text = ask("POST", "/predict?frames=4&window=1", Content_Length="1000001")
    assert (status, text) == (413, "expected a video of at most 1 MB, got 1.0 MB")
    for length in ("-1", "abc", "²", "9" * 5000):
        assert ask("POST", "/predict?frames=4&window=1", Content_Length=length.encode())[0] == 411
    assert ask("POST", "/predict?frames=4&window=1", Transfer_Encoding="chunked")[0] == 411


def test_a_file_that_is_no_video_is_an_answer(ask):
    status, _, text = ask("POST", "/predict?frames=4&window=1", b"no video")
    assert status == 200
    assert "expected a video, got an empty or damaged file" in json.loads(text)["error"]


def test_a_browser_that_leaves_does_not_end_the_server(server, ask, video):
    for sent in (b"", video.read_bytes()[:100]):
        with socket.create_connection(("127.0.0.1", server.port)) as early:
            early.sendall(
                b"POST /predict?frames=4&window=1 HTTP/1.1\r\nHost: localhost:1\r\nContent-Length: 900\r\n\r\n"
            )
            early.sendall(sent)
    assert ask("GET", "/")[0] == 200
    assert server.err.read_text() == ""


def test_a_taken_port_is_one_line_and_ctrl_c_ends_the_page(server, stored_run, start_script):
    other = start_script("scripts/demo.py", "--run", stored_run, "--port", server.port)
    _, errors = other.communicate(timeout=120)
    assert other.returncode == 1
    assert errors == f"OSError: port {server.port} is taken: give --port another, or 0 for any free one\n"
    third = start_script("scripts/demo.py", "--run", stored_run, "--port", 0)
    third.wait_for(lambda: "\n" in third.out.read_text())
    third.send_signal(signal.SIGINT)
    assert third.communicate(timeout=60)[1] == "stopped as told (SIGINT): the page is gone\n"
    assert third.returncode == 130


def test_what_has_no_page_is_one_line(call_script, stored_run, random_variables, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    causal = create_tiny("tsm_resnet18", shift="causal", num_classes=3)
    flaxvid.export_stream(flaxvid.Trained(causal, random_variables(causal)), tmp_path)
    for words, said in [
        (
            (tmp_path, "--runtime", "onnxruntime"),
            "ValueError: expected an export with programs for clips, got those for",
        ),
        ((stored_run, "--port", 70_000), "ValueError: expected a port of at most 65535, got 70000"),
    ]:
        with pytest.raises(SystemExit, match=said):
            call_script("demo.py", "--run", *words)


def test_names_from_anywhere_stay_text(random_variables):
    """A class name is data, whatever it looks like."""
    model = flaxvid.create_model("tsm_resnet18", width=8, depths=(1,), num_classes=2, image_size=32)
    variables, name = random_variables(model), "</script><img src=x onerror=alert(1)>"
    page = DemoServer(Predictor(model, lambda _: variables, (name, "b")), name, (4,), 4, {})
    page.server_close()
    text = page.page("nonce")
    assert "<img" not in text
    assert json.loads(re.search(r'id="facts">(.*?)</script>', text)[1])["classes"] == {"": [name, "b"]}


def test_a_network_is_offered_the_counts_that_it_takes():
    model = flaxvid.create_model("tsm_resnet18", width=8, depths=(1,), num_classes=2, image_size=32)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 6, 32, 32, 3), np.uint8))
    assert offered_counts(model, variables, (6,)) == [1, 2, 4, 6, 8]

    class Even(nn.Module):
        clip = model.clip

        def __call__(self, video):
            return video.reshape(1, 2, video.shape[1] // 2, -1)

    assert offered_counts(Even(), {}, (4,)) == [2, 4, 8]
