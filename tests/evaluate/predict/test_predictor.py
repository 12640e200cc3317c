import shutil

import jax
import numpy as np
import pytest

from flaxvid.data.clips.cut import ClipConfig
from flaxvid.data.clips.decode import VideoError, decode
from flaxvid.data.pipeline import eval_batches
from flaxvid.data.sources.open import FileSource
from flaxvid.data.sources.search import collect_scenes, collect_videos
from flaxvid.evaluate.predictor import Predictor


def test_a_video_is_seen_as_in_evaluation(predictor, videos, network):
    model, variables = network
    source = FileSource("one", str(videos), ("a.mp4",), (0,), predictor.classes[""])
    (batch,) = eval_batches(source, ClipConfig((4,), 32, 32), 1)
    expected = jax.nn.softmax(jax.jit(model.apply)(variables, batch["video"][4][0]))[0]
    (prediction,) = predictor.predict(videos / "a.mp4", 4)
    assert (prediction.start, prediction.end) == (None, None)
    np.testing.assert_allclose(prediction.probabilities[""], expected, rtol=1e-5)
    (from_bytes,) = predictor.predict((videos / "a.mp4").read_bytes(), 4)
    np.testing.assert_array_equal(from_bytes.probabilities[""], prediction.probabilities[""])


def test_views_and_dense_sampling_are_those_of_the_recipe(videos, network):
    model, variables = network
    clips = ClipConfig((4,), 32, 36, sampling="dense", interval=2, clips=2, crops=3)
    dense = Predictor(model, lambda _: variables, ("first", "second", "third"), clips)
    source = FileSource("one", str(videos), ("a.mp4",), (0,), dense.classes[""])
    (batch,) = eval_batches(source, clips, 1)
    (prediction,) = dense.predict(videos / "a.mp4", 4)
    np.testing.assert_allclose(prediction.probabilities[""], dense(batch["video"][4])[""][0], rtol=1e-5)
    first, _ = dense.predict(videos / "a.mp4", 4, window=2)
    clip = decode(videos / "a.mp4", [6, 8, 10, 12], size=36)[:, 2:34, 11:43]
    np.testing.assert_allclose(first.probabilities[""], dense(clip[None, None])[""][0], rtol=1e-5)


def test_even_sampling_is_that_of_the_recipe(videos, network):
    model, variables = network
    even = Predictor(
        model, lambda _: variables, ("first", "second", "third"), ClipConfig((4,), 32, 32, sampling="even")
    )
    first, _ = even.predict(videos / "a.mp4", 4, window=2)
    clip = decode(videos / "a.mp4", [0, 6, 12, 19], size=32)[:, :, 8:40]
    np.testing.assert_allclose(first.probabilities[""], even(clip[None, None])[""][0], rtol=1e-5)


@pytest.mark.parametrize(("window", "edges"), [(1, [0, 10, 20, 30, 40]), (1.5, [0, 15, 30, 40]), (60, [0, 40])])
def test_windows_begin_at_multiples_each_a_video_of_its_own(predictor, videos, window, edges):
    predictions = list(predictor.predict(videos / "a.mp4", 2, window))
    assert [p.start for p in predictions] == [i * window for i in range(len(edges) - 1)]
    assert [p.end for p in predictions] == [pytest.approx(edge / 10) for edge in edges[1:]]
    for prediction, begin, end in zip(predictions, edges[:-1], edges[1:], strict=True):
        centres = [begin + (end - begin) // 4, begin + int((end - begin) * 0.75)]
        clip = decode(videos / "a.mp4", centres, size=32)[:, :, 8:40]
        np.testing.assert_allclose(prediction.probabilities[""], predictor(clip[None, None])[""][0], rtol=1e-5)


def test_a_video_shorter_than_the_clip_repeats_frames(predictor, videos):
    (prediction,) = predictor.predict(videos / "deep" / "b.mp4", 8, window=5)
    assert prediction.probabilities[""].sum() == pytest.approx(1, abs=1e-5)
    assert prediction.end == pytest.approx(0.3)


def test_top_classes_come_first(predictor):
    assert predictor.top({"": np.array([0.2, 0.5, 0.3])}, 2)[""] == [("second", 0.5), ("third", 0.3)]
    assert len(predictor.top({"": np.array([0.2, 0.5, 0.3])}, 9)[""]) == 3


def test_what_cannot_be_predicted_says_why(predictor, videos, clip):
    with pytest.raises(ValueError, match="takes uint8 video, got float32"):
        predictor(clip(1, 1, 2, 32, 32) / np.float32(255))
    with pytest.raises(ValueError, match="expected video of"):
        predictor(clip(1, 2, 32, 32))
    with pytest.raises(ValueError, match="expected a window of at least"):
        list(predictor.predict(videos / "a.mp4", 2, window=0))
    with pytest.raises(VideoError, match=r"none\.mp4: no such file"):
        list(predictor.predict(videos / "none.mp4", 2, window=2))


def test_a_file_that_ends_early_has_fewer_windows(predictor, videos):
    data = (videos / "a.avi").read_bytes()
    begin, end = data.index(b"movi"), data.rindex(b"idx1")
    cut = data[: begin + (end - begin) // 2]
    predictions = list(predictor.predict(cut, 2, window=0.5))
    assert [prediction.start for prediction in predictions] == [i / 2 for i in range(len(predictions))]
    assert 1 < len(predictions) < 7
    whole = list(predictor.predict(data, 2, window=0.5))
    assert len(whole) == 8
    np.testing.assert_array_equal(predictions[0].probabilities[""], whole[0].probabilities[""])


def test_a_folder_of_images_is_a_video(predictor, tmp_path):
    from matplotlib.image import imsave

    for number in range(3):
        imsave(tmp_path / f"{number}.png", np.full((40, 40, 3), 60 * number, np.uint8))
    assert collect_videos([tmp_path]) == [tmp_path]
    (prediction,) = predictor.predict(tmp_path, 2)
    assert prediction.probabilities[""].shape == (3,)
    with pytest.raises(VideoError, match="expected a video whose frames have times"):
        list(predictor.predict(tmp_path, 2, window=1))


def test_videos_are_found_in_folders_and_by_patterns(videos, tmp_path):
    both = [videos / "a.avi", videos / "a.mp4", videos / "deep" / "b.mp4"]
    assert collect_videos([videos]) == both
    assert collect_videos([f"{videos}/**/*.mp4", videos / "a.mp4"]) == both[1:]
    assert collect_videos([videos / "none.mp4"]) == [videos / "none.mp4"]
    for place in (f"{videos}/*.webm", tmp_path):
        with pytest.raises(FileNotFoundError, match="expected videos"):
            collect_videos([place])


def test_scenes_of_files_and_of_numbered_images(videos, tmp_path):
    for camera in ("front", "left"):
        (tmp_path / "images" / camera).mkdir(parents=True)
        (tmp_path / "images" / camera / "0001.png").touch()
        (tmp_path / "files" / camera).mkdir(parents=True)
        shutil.copy(videos / "a.mp4", tmp_path / "files" / camera)
    images = {camera: tmp_path / "images" / camera for camera in ("front", "left")}
    assert collect_scenes([tmp_path / "images"], ("front", "left", "rear")) == {str(tmp_path / "images"): images}
    files = {camera: tmp_path / "files" / camera / "a.mp4" for camera in ("front", "left")}
    assert collect_scenes([tmp_path / "files"], ("front", "left")) == {str(tmp_path / "files" / "a"): files}
    shutil.copy(videos / "a.avi", tmp_path / "files" / "left")
    with pytest.raises(ValueError, match=r"one video of .*/files/a in each camera, got .*a.avi and .*a.mp4"):
        collect_scenes([tmp_path / "files"], ("front", "left"))


def test_windows_of_a_video_whose_title_is_no_utf_8(predictor, videos):
    encoded = (videos / "a.mp4").read_bytes()
    assert encoded.count(b"isomiso2") == 1  # a brand of the header, which FFmpeg hands on as a text
    broken = encoded.replace(b"isomiso2", b"isom\xe9\xff\xfe2")
    assert [prediction.end for prediction in predictor.predict(broken, 2, window=2)] == [2, 4]
