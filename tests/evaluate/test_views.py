import jax
import numpy as np
import pytest

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.evaluate.views import PROTOCOLS, Protocol, average_views, describe_views
from flaxvid.models.registry import create_tiny


def test_views_in_words():
    words = [describe_views(PROTOCOLS[name].passes(ClipConfig(image_size=224), (8,))[0]) for name in PROTOCOLS]
    assert words == ["1 clip x 1 crop", "2 clips x 3 crops", "10 clips x 3 crops, a frame in 8"]


@pytest.mark.parametrize(("protocol", "views", "size"), [("efficient", (1, 1), 224), ("accurate", (2, 3), 256)])
def test_one_pass_serves_all_frame_counts(protocol, views, size):
    (clips,) = PROTOCOLS[protocol].passes(ClipConfig(image_size=224, short="repeat"), (4, 8))
    assert (clips.frames, clips.clips, clips.crops) == ((4, 8), *views)
    assert (clips.image_size, clips.test_size, clips.sampling, clips.short) == (size, 256, "segment", "repeat")


def test_dense_clips_of_every_frame_count_span_as_much():
    passes = PROTOCOLS["dense"].passes(ClipConfig(image_size=224), (8, 16))
    assert [(clips.frames, clips.interval) for clips in passes] == [((8,), 8), ((16,), 4)]
    assert {(clips.clips, clips.crops, clips.image_size, clips.sampling) for clips in passes} == {(10, 3, 256, "dense")}


def test_full_resolution_is_the_size_that_test_videos_have():
    (clips,) = Protocol(full=True).passes(ClipConfig(image_size=40, test_size=40), (4,))
    assert (clips.image_size, clips.test_size) == (40, 40)


def test_cameras_of_a_scene_are_seen_together(clip, random_variables):
    """Clips and crops of a scene are averaged; its cameras go into the model, those that are there."""
    model = create_tiny("ts_cva", fusion="late", backbone_options={"width": 8, "depths": (1,)})
    variables = random_variables(model)
    video = {camera: clip(2, 3, 4, 32, 32, seed=number) for number, camera in enumerate(("front", "right"))}
    each = [model.apply(variables, {camera: clips[:, view] for camera, clips in video.items()}) for view in range(3)]
    expected = sum(jax.nn.softmax(logits) for logits in each) / 3
    np.testing.assert_allclose(average_views(model, variables, video)[""], expected, atol=1e-5)
    with pytest.raises(ValueError, match="takes uint8 video, got float32"):
        average_views(model, variables, {**video, "right": video["right"] / np.float32(255)})
