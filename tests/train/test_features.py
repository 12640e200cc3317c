"""Real runs that train a head on the kept features of a frozen network, beside the same runs without."""

import dataclasses
import shutil
import threading
import time
from importlib import metadata
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import flaxvid
from flaxvid import trees
from flaxvid.data.clips import cut
from flaxvid.data.clips.cut import ClipConfig, cut_views, draw_clips
from flaxvid.layers import norm
from flaxvid.models.registry import create_tiny
from flaxvid.report.run import read_metrics
from flaxvid.tasks.frame_flexible import FfnRecipe
from flaxvid.train import session
from flaxvid.train.checkpoint import restore_variables
from flaxvid.train.features import OnFeatures, _key, _only_one, _trace, check_features
from flaxvid.train.limits import check
from flaxvid.train.recipe import ModelRecipe
from flaxvid.train.setup import find_shapes


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of this module's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FLAXVID_CACHE", str(folder))
        yield folder / "features"


@pytest.fixture(scope="module")
def recipe(colour_recipe, colour_run, coloured_videos, tmp_path_factory):
    """Trains a new head, with dropout, on a trained body; one of the videos is broken."""
    root = tmp_path_factory.mktemp("videos")
    shutil.copytree(coloured_videos, root, dirs_exist_ok=True)
    (root / "red" / "3.mp4").write_bytes(b"no video")
    clips = dataclasses.replace(colour_recipe.data.clips, fixed=True)
    return dataclasses.replace(
        colour_recipe,
        model=dataclasses.replace(colour_recipe.model, weights=str(colour_run), dropout=0.3),
        data=dataclasses.replace(colour_recipe.data, root=str(root), clips=clips, max_broken=0.2),
        optimizer=dataclasses.replace(colour_recipe.optimizer, ema=0.9),
        freeze=("stem", "body"),
        epochs=3,
        log_every=1,
    )


@pytest.fixture(scope="module")
def cached(recipe, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cached"
    flaxvid.run(dataclasses.replace(recipe, feature_cache=0.1), folder)
    return folder


def losses(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [(row["step"], row["train/loss"], row["train/accuracy"]) for row in rows if "train/loss" in row]


def test_the_head_gets_the_same_training_as_without(recipe, cached, tmp_path):
    flaxvid.run(recipe, tmp_path / "plain")
    plain, kept = restore_variables(tmp_path / "plain"), restore_variables(cached)
    chex.assert_trees_all_close(kept, plain, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(losses(cached), losses(tmp_path / "plain"), rtol=1e-5, atol=1e-6)
    start = restore_variables(recipe.model.weights)
    for part in ("stem", "body"):
        chex.assert_trees_all_equal(kept["params"][part], start["params"][part])
        chex.assert_trees_all_equal(kept["batch_stats"][part], start["batch_stats"][part])
    for path, leaf in trees.flatten(kept["params"]["head"]).items():
        assert np.any(leaf != trees.flatten(start["params"]["head"])[path])


def test_a_body_in_int8_gives_rounded_features(recipe, tmp_path, monkeypatch):
    pytest.importorskip("qwix")
    monkeypatch.setenv("FLAXVID_CACHE", str(tmp_path / "cache"))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, int8_training=True), epochs=1)
    flaxvid.run(recipe, tmp_path / "plain")
    flaxvid.run(dataclasses.replace(recipe, feature_cache=0.1), tmp_path / "kept")
    np.testing.assert_allclose(losses(tmp_path / "kept"), losses(tmp_path / "plain"), rtol=1e-5, atol=1e-6)


def test_a_run_that_was_cut_short_ends_the_same(recipe, cached, cache, tmp_path, monkeypatch, capfd):
    kept = dataclasses.replace(recipe, feature_cache=0.1)

    def fail(self, step, state):
        if step:
            raise RuntimeError("cut short")

    with monkeypatch.context() as patched:
        patched.setattr(
            session.Session, "evaluate_if_due", lambda self, step, state: step >= 3 and fail(self, step, state)
        )
        with pytest.raises(RuntimeError, match="cut short"):
            flaxvid.run(kept, tmp_path / "run")
    capfd.readouterr()
    flaxvid.run(kept, tmp_path / "run")
    videos = len([*cache.glob("*/[0-9a-f]*")])
    assert f"{videos} of {videos + 1} videos have features in {cache}" in capfd.readouterr().out.replace("\n", "")
    chex.assert_trees_all_equal(restore_variables(tmp_path / "run"), restore_variables(cached), strict=True)


def test_other_heads_take_the_same_features_and_other_clips_do_not(recipe, cached, cache, tmp_path, capfd):
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    times = [path.stat().st_mtime_ns for path in files]
    short = dataclasses.replace(recipe, feature_cache=0.1, epochs=1)
    probe = dataclasses.replace(recipe.model, options={**recipe.model.options, "head": "attention"})
    flaxvid.run(dataclasses.replace(short, model=probe), tmp_path / "probe")
    assert [path.stat().st_mtime_ns for path in files] == times
    files[0].write_bytes(files[0].read_bytes()[:-1])
    capfd.readouterr()
    flaxvid.run(short, tmp_path / "again")
    said = capfd.readouterr().out.replace("\n", "")
    assert f"1 files of kept features were damaged: {files[0]}" in said
    assert f"{len(files) - 1} of {len(files) + 1} videos have features in {folder}" in said
    assert [path.stat().st_mtime_ns for path in files[1:]] == times[1:]
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]
    other = dataclasses.replace(recipe.data.clips, test_size=48)
    flaxvid.run(dataclasses.replace(short, data=dataclasses.replace(recipe.data, clips=other)), tmp_path / "other")
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize("name", ["slowfast_r50", "vivit_base"])
def test_any_body_gives_features_that_its_head_takes(name, random_variables, clip):
    """Two grids, and a class token beside a grid."""
    model = create_tiny(name)
    variables, size = random_variables(model), model.clip.image_size
    video = clip(2, model.clip.num_frames, size, size)

    @jax.jit
    def run(variables, video):
        given = model.apply(variables, video, method="encode")
        features = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(given))}
        return OnFeatures(model, jax.tree.structure(given)).apply(variables, features), model.apply(variables, video)

    ours, whole = run(variables, video)
    chex.assert_trees_all_close(ours, whole, rtol=1e-5, atol=1e-6)


def test_what_would_change_features_is_refused(recipe, colour_recipe):
    kept = dataclasses.replace(recipe, feature_cache=0.1)
    task = dataclasses.replace(recipe.task, mixup=0.2)
    with pytest.raises(
        ValueError, match=r"feature_cache=0.1 needs the same features in every step, .* got .*mixup=0.2"
    ):
        check(dataclasses.replace(kept, task=task))
    with pytest.raises(ValueError, match=r"got data.clips.fixed=False"):
        check(dataclasses.replace(kept, data=colour_recipe.data))
    with pytest.raises(ValueError, match=r"feature_cache=0.1 is for the task supervised, got ffn"):
        check(dataclasses.replace(kept, task=FfnRecipe((2, 4))))
    with pytest.raises(
        ValueError, match=r"needs a frozen stem and body, got \d+ variables that are trained, such as batch"
    ):
        check_features(dataclasses.replace(kept, freeze=("stem",)), find_shapes(kept))
    options = {"width": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "drop_path": 0.5}
    drops = dataclasses.replace(kept, model=ModelRecipe("videomae_base", num_frames=2, image_size=32, options=options))
    with pytest.raises(ValueError, match=r"drops at random in training: switch its dropout off in model.options"):
        check_features(drops, find_shapes(drops))
    options["drop_path"] = 0.0
    check_features(drops, find_shapes(drops))


def test_other_networks_weights_clips_and_code_have_other_features(random_variables, tmp_path, monkeypatch):
    model = create_tiny("tsm_resnet18", depths=(1,), num_classes=3)
    variables, clips = random_variables(model), ClipConfig((2,), 16, fixed=True)

    def key(model=model, variables=variables, clips=clips, cameras=()):
        return _key({2: _trace(model, 2)}, variables, clips, cameras)

    mine = key()
    assert mine == key()
    assert mine == key(create_tiny("tsm_resnet18", depths=(1,), num_classes=5, dropout=0.9))  # the head plays no part
    nudged = jax.tree.map(np.array, variables)
    path = next(path for path in sorted(trees.flatten(nudged)) if path.startswith("batch_stats/"))
    leaf = trees.flatten(nudged)[path]
    leaf[0] = np.nextafter(leaf[0], np.float32(9))
    keys = [
        mine,
        key(create_tiny("tsm_resnet18", depths=(1,), num_classes=3, shift_div=4)),  # of the same weights
        key(variables=nudged),
        key(clips=dataclasses.replace(clips, test_size=20)),
        key(cameras=("front",)),
    ]
    with monkeypatch.context() as patched:
        shutil.copytree(Path(cut.__file__).parent, tmp_path / "clips")
        (tmp_path / "clips" / "crops.py").open("a").write("\n")
        patched.setattr(cut, "__file__", str(tmp_path / "clips" / "cut.py"))
        keys.append(key())
    with monkeypatch.context() as patched:
        patched.setattr(norm, "_factor", lambda epsilon, variance, scale: scale / (variance + epsilon) ** 0.5)
        keys.append(key())
    with monkeypatch.context() as patched:
        patched.setattr(metadata, "version", lambda name: "0")
        keys.append(key())
    assert len({*keys}) == len(keys)
    assert mine == key()


def test_another_process_is_waited_for(tmp_path):
    said, entered = [], threading.Event()

    def second():
        with _only_one(tmp_path, said.append):
            entered.set()

    thread = threading.Thread(target=second)
    with _only_one(tmp_path, said.append):
        thread.start()
        while not said:
            time.sleep(0.01)
        assert not entered.wait(0.2)
    thread.join()
    assert entered.is_set()
    assert said == [f"waits for another process that computes features in {tmp_path}"]


def test_too_small_a_cache_is_told_before_any_work(recipe, cache, tmp_path):
    small = dataclasses.replace(recipe, feature_cache=1e-9, model=dataclasses.replace(recipe.model, weights=""))
    with pytest.raises(ValueError, match=r"feature_cache: expected room for .* of which .* are in use in"):
        flaxvid.run(small, tmp_path / "run")


def test_fixed_clips_are_those_of_a_test(make_videos, tmp_path):
    make_videos(tmp_path, {"a": "red"}, 1, 3)
    item = {"video": str(tmp_path / "a" / "0.mp4"), "label": 2, "id": "a"}
    clips = ClipConfig((2, 3), 24, short="repeat", fixed=True)
    views = cut_views(item, dataclasses.replace(clips, clips=2, crops=3), np.random.default_rng(0))
    views = cut_views(item, clips, np.random.default_rng(0)) if views else {}
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        drawn, label = draw_clips(item, dataclasses.replace(clips, clips=5, crops=3), None, rng)
        assert label == 2
        for count in (2, 3):
            np.testing.assert_array_equal(drawn[count], views[count][0])
        assert rng.random() == np.random.default_rng(seed).random()  # nothing was drawn
    with pytest.raises(ValueError, match=r"fixed: expected clips that nothing varies, got flip, repeats"):
        ClipConfig((2,), 24, fixed=True, flip=True, repeats=2)
