"""Networks as evaluation and prediction find them: in a run's folder, in a weights file."""

import json

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from flaxvid import trees
from flaxvid.models.registry import create_tiny
from flaxvid.train.trained import load, name_classes
from flaxvid.weights.native import WeightsInfo, save_variables
from flaxvid.weights.torch import load_torch, to_torch

CLASSES = ["jump", "run"]


@pytest.fixture(scope="module")
def folder(write_run):
    """A run's folder as training leaves it, with moving averages that are all 2."""
    return write_run(
        lambda variables: {
            name: jax.tree.map(lambda leaf: 0 * leaf + 2, tree) if name.startswith("ema_") else tree
            for name, tree in variables.items()
        }
    )


def test_a_run_gives_its_averages_at_any_count(folder):
    trained = load(folder, classes=CLASSES)
    assert (trained.classes, trained.frames, trained.folder) == (("jump", "run"), (2, 4), folder)
    kernels = trees.flatten(trained.select(3)["params"])
    np.testing.assert_array_equal(kernels["stem/conv1/kernel"], 2)
    assert kernels["head/classifier/kernel"].shape[-1] == 2
    logits = trained.model.apply(trained.select(3), np.zeros((1, 3, 32, 32, 3), np.uint8))
    assert logits.shape == (1, 2)
    assert load(folder / "checkpoints" / "3", classes=CLASSES).folder == folder


def test_a_target_may_have_any_name(random_variables, tmp_path):
    """Classifiers are found by the module's name, and a target is more than word characters."""
    targets, file = {"skill-level": 3, "a.b": 2}, tmp_path / "weights.safetensors"
    shape = {"width": 8, "depths": (1,)}
    model = create_tiny("tsm_resnet18", num_classes=targets, **shape)
    variables = random_variables(model)
    save_variables(file, variables, WeightsInfo("tsm_resnet18", {**shape, "num_classes": targets}))
    assert {target: len(names) for target, names in load(file).classes.items()} == targets
    state_dict = to_torch("tsm_resnet18", variables)
    again = load_torch("tsm_resnet18", state_dict, num_classes=targets, overrides=shape)
    chex.assert_trees_all_equal(again, variables)


def test_a_checkpoint_is_named(folder, tmp_path):
    for checkpoint in ("latest", "3", 3):
        named = {"name": str(checkpoint), "step": 3}
        assert load(folder, checkpoint, classes=CLASSES).checkpoint == named
    with pytest.raises(FileNotFoundError, match=r"expected a best checkpoint in .*, got none with a score"):
        load(folder, "best", classes=CLASSES)
    file = tmp_path / "weights.safetensors"
    file.touch()
    with pytest.raises(ValueError, match="expected a run's folder for checkpoint best, got the file"):
        load(file, "best", classes=CLASSES)


def test_class_names_come_from_the_folder_or_the_data(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"class names in .*classes\.json or in the run's data set"):
        name_classes(load(folder))
    with pytest.raises(ValueError, match=r"names of the 2 classes .* got 3 \(a, b, c"):
        load(folder, classes=["a", "b", "c"])
    (folder / "classes.json").write_text(json.dumps(["a", "b"]))
    assert load(folder).classes == ("a", "b")
    with pytest.raises(FileNotFoundError, match=r"a run's folder with recipe\.json"):
        load(tmp_path)


@pytest.mark.parametrize("frames", [None, (4, 8)])
def test_a_weights_file_says_what_it_is(random_variables, tmp_path, frames):
    model = create_tiny("tsm_resnet18", num_classes=2, image_size=32)
    variables = random_variables(model)
    overrides = {"num_classes": 2, "image_size": 32, "width": 8, "depths": (1, 1, 1, 1)}
    if frames:
        from flaxvid.frames import FrameFlexible

        variables = FrameFlexible(model, frames).specialise(variables)
    path = tmp_path / "weights.safetensors"
    save_variables(path, variables, WeightsInfo("tsm_resnet18", overrides, frames))
    trained = load(path)
    assert trained.frames == (frames or (trained.model.clip.num_frames,))
    assert trained.classes == ("class 0", "class 1")
    assert trained.recipe.model.image_size == 32
    assert trained.folder is None
    np.testing.assert_array_equal(trained.select(4)["params"]["head"]["classifier"]["bias"],
                                  variables["params"]["head"]["classifier"]["bias"])  # fmt: skip


def test_a_torch_file_needs_the_name_of_its_network(random_variables, tmp_path):
    model, path = create_tiny("tsm_resnet18", num_classes=3, depths=(1,)), tmp_path / "tsm.safetensors"
    variables = random_variables(model)
    save_file(to_torch("tsm_resnet18", variables), path)
    trained = load(path, model="tsm_resnet18", overrides={"width": 8, "depths": (1,)})
    assert (trained.model.head.num_classes, trained.named, trained.fresh) == (3, False, ())
    chex.assert_trees_all_equal(trained.select(4), variables)
    with pytest.raises(ValueError, match=r"--model tsm_resnet50.*import_torch\.py"):
        load(path)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        load(tmp_path / "none.safetensors")
