"""Causal networks on streams: in JAX, from files and URLs, and by `predict.py --stream`."""

import functools
import http.server
import json
import threading

import jax
import numpy as np
import pytest
from scipy.special import softmax

import flaxvid
from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.clips.decode import VideoError, decode
from flaxvid.data.clips.live import live_frames
from flaxvid.evaluate.streams import answer_stream
from flaxvid.models.registry import create_tiny

CLASSES = ("jump", "run", "walk")
CLIPS = ClipConfig(image_size=32)


@pytest.fixture(scope="module")
def trained(random_variables):
    model = create_tiny("tsm_resnet18", shift="causal", num_classes=3)
    return flaxvid.Trained(model, random_variables(model), classes=CLASSES)


@pytest.fixture(scope="module")
def video(encode_video, tmp_path_factory):
    """30 frames, 10 a second."""
    pictures = np.random.default_rng(0).integers(0, 256, (30, 5, 6, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    return encode_video(tmp_path_factory.mktemp("videos") / "a.mp4", pictures, rate=10)


@pytest.fixture
def server(video):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(video.parent))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_frame_by_frame_equals_the_clip_in_jax(trained, clip):
    stream, frames = trained.stream(), clip(2, 7, 32, 32)
    logits = np.mean([stream(frames[:, index])[""] for index in range(7)], axis=0)
    np.testing.assert_allclose(logits, trained.model.apply(trained.variables, frames), rtol=1e-4, atol=1e-5)


def test_frames_come_with_their_times_and_the_crop_of_a_test(video):
    times, pictures = zip(*live_frames(str(video), CLIPS), strict=True)
    np.testing.assert_allclose(times, np.arange(30) / 10, atol=1e-3)
    whole = decode(video, range(30), size=round(32 * 256 / 224))
    top, left = (whole.shape[1] - 32) // 2, (whole.shape[2] - 32) // 2
    np.testing.assert_array_equal(np.stack(pictures), whole[:, top : top + 32, left : left + 32])


@pytest.mark.parametrize(
    ("rate", "wanted"), [(5, np.arange(0, 30, 2)), (1, [0, 10, 20]), (4, [0, 3, 5, 8, 10, 13]), (100, np.arange(30))]
)
def test_a_rate_skips_frames_evenly(video, rate, wanted):
    times = [time for time, _ in live_frames(str(video), CLIPS, rate)]
    np.testing.assert_allclose(times[: len(wanted)], np.asarray(wanted) / 10, atol=1e-3)
    assert len(times) == len(wanted) or rate == 4


def test_an_answer_is_the_mean_of_its_seconds_and_pauses_have_none(trained):
    frames = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8)
    stream = trained.stream()
    logits = [stream(frame[None])[""][0] for frame in frames]
    stream.reset()
    answers = list(answer_stream(stream, zip((0.0, 0.5, 3.2, 4.0), frames, strict=True), 1.0))
    assert [(one.start, one.end) for one in answers] == [(0, 1), (3, 4), (4, 4)]
    wanted = [softmax(np.mean(logits[:2], axis=0)), softmax(logits[2]), softmax(logits[3])]
    for answer, probabilities in zip(answers, wanted, strict=True):
        np.testing.assert_allclose(answer.probabilities[""], probabilities, rtol=1e-5)


@pytest.mark.parametrize("runtime", ["jax", "onnxruntime"])
def test_the_script_answers_to_a_url_second_by_second(trained, server, video, call_script, capsys, tmp_path, runtime):
    if runtime == "jax":
        flaxvid.save(trained, tmp_path / "tiny.safetensors")
        run = tmp_path / "tiny.safetensors"
    else:
        pytest.importorskip("onnx")
        pytest.importorskip(runtime)
        run = tmp_path / "bundle"
        flaxvid.export_stream(trained, run)
    with pytest.raises(SystemExit) as end:
        call_script("predict.py", "--run", run, "--runtime", runtime, "--stream", "--json", f"{server}/a.mp4")
    assert end.value.code == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["start"], line["end"]) for line in lines] == [(0, 1), (1, 2), (2, 2.9)]
    frames = np.stack([picture for _, picture in live_frames(video, CLIPS)])
    logits = jax.jit(trained.model.apply)(trained.variables, frames[None, :10])
    wanted = dict(zip(CLASSES, softmax(logits[0]), strict=True))
    assert {one["class"]: one["probability"] for one in lines[0]["top"]} == pytest.approx(wanted, abs=1e-5)


def test_what_cannot_be_streamed_is_one_error(trained, random_variables, call_script, capsys, tmp_path):
    flaxvid.save(trained, tmp_path / "causal.safetensors")
    plain = create_tiny("tsm_resnet18", num_classes=3)
    flaxvid.save(flaxvid.Trained(plain, random_variables(plain)), tmp_path / "plain.safetensors")
    for words, said in [
        (("causal", "--stream", "http://127.0.0.1:1/a"), "unreadable: http://127.0.0.1:1/a"),
        (("causal", "--stream", "/dev/video987"), "unreadable: /dev/video987"),
        (("plain", "--stream", "a.mp4"), "expected a network that sees no frames to come"),
        (("causal", "--stream", "a.mp4", "b.mp4"), "expected one video"),
        (("causal", "--rate", "5", "a.mp4"), "expected --rate with --stream"),
    ]:
        name, *rest = words
        with pytest.raises(SystemExit) as end:
            call_script("predict.py", "--run", tmp_path / f"{name}.safetensors", *rest)
        assert end.value.code != 0
        assert said in str(end.value.code) + capsys.readouterr().err
    with pytest.raises(VideoError, match="expected a video"):
        next(live_frames(b"no video", CLIPS))
