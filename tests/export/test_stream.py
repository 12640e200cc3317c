"""Programs for streams: frame by frame they give what the network gives for the clip."""

import jax
import numpy as np
import pytest

import flaxvid
from flaxvid.evaluate.streams import open_stream
from flaxvid.models.registry import create_tiny

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(random_variables, tmp_path_factory):
    model = create_tiny("tsm_resnet18", shift="causal", num_classes={"action": 3, "actor": 2})
    variables = random_variables(model)
    (file,) = flaxvid.export_stream(flaxvid.Trained(model, variables), tmp_path_factory.mktemp("bundle")).values()
    return model, variables, file


def test_frame_by_frame_equals_the_clip(exported, clip):
    model, variables, file = exported
    assert file.name == "4_frames.stream.onnx"
    stream = open_stream(file, "onnxruntime")
    for batch in (1, 2):  # any batch, and any number of frames
        stream.reset()
        video = clip(batch, 7, 32, 32, seed=batch)
        logits = [stream(video[:, index]) for index in range(7)]
        wanted = jax.jit(model.apply)(variables, video)
        for target, own in wanted.items():
            mean = np.mean([frame[target] for frame in logits], axis=0)
            assert np.abs(mean - own).max() < 1e-5 * np.abs(own).max()


def test_an_answer_rests_on_frames_before_and_none_behind(exported, clip):
    stream = open_stream(exported[2], "onnxruntime")
    video = clip(1, 3, 32, 32)
    first, second, _ = (stream(video[:, index])["action"] for index in range(3))
    stream.reset()
    np.testing.assert_array_equal(stream(video[:, 0])["action"], first)
    stream.reset()
    assert not np.allclose(stream(video[:, 1])["action"], second)


def test_wrong_frames_and_networks_are_one_error(exported, clip, random_variables, tmp_path):
    stream = open_stream(exported[2], "onnxruntime")
    stream(clip(1, 1, 32, 32)[:, 0])
    with pytest.raises(ValueError, match=r"expected frames of uint8 \(1, 32, 32, 3\), got uint8 \(2, 32, 32, 3\)"):
        stream(clip(2, 1, 32, 32)[:, 0])
    with pytest.raises(ValueError, match=r"expected frames of uint8 \(1, 32, 32, 3\), got float32 \(1, 32, 32, 3\)"):
        stream(clip(1, 1, 32, 32)[:, 0].astype(np.float32))
    for name in ("tsm_resnet18", "slow_r50"):
        model = create_tiny(name)
        with pytest.raises(ValueError, match="expected a network that sees no frames to come, got another"):
            flaxvid.export_stream(flaxvid.Trained(model, random_variables(model)), tmp_path)
    assert list(tmp_path.iterdir()) == []
