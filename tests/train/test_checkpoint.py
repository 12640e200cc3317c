import errno
import functools
import json
import shutil
import string
import subprocess
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxvid.train import checkpoint
from flaxvid.train.checkpoint import Checkpoints, find_checkpoint, restore_variables
from flaxvid.train.state import TrainState


def make_state(width=3, seed=0, optimizer=None):
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    norm = {"scale": jax.random.normal(next(keys), (width,)), "bias": jnp.zeros(width, jnp.bfloat16)}
    variables = {
        "params": {"body": {"layer1_0": {"conv1": {"kernel": jax.random.normal(next(keys), (1, 1, 4, width))}}}},
        "params_4f": {"body": {"layer1_0": {"norm1": norm}}},
        "batch_stats_4f": {"body": {"layer1_0": {"norm1": {"mean": jax.random.normal(next(keys), (width,))}}}},
    }
    trained = {name: tree for name, tree in variables.items() if name.startswith("params")}
    momentum = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    transforms = {"slow": momentum, "fixed": optax.set_to_zero()}
    sgd = optax.multi_transform(transforms, {"params": "slow", "params_4f": "fixed"})
    return TrainState(jnp.asarray(7 + seed, jnp.int32), variables, (optimizer or sgd).init(trained))


def make_data():
    numbers = grain.MapDataset.range(10).seed(3).shuffle().repeat().random_map(lambda x, rng: (x, rng.integers(1000)))
    return iter(numbers.batch(3).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), a, b)


def test_state_and_data_in_the_middle_of_an_epoch_come_back_bit_for_bit(tmp_path):
    state, data = make_state(), make_data()
    for _ in range(2):
        next(data)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(7, state, data)
        following = [next(data) for _ in range(4)]  # the save is asynchronous, its position in the data is not
    resumed = make_data()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(make_state), resumed)
    assert_same(restored, state)
    for expected in following:
        np.testing.assert_array_equal(np.asarray(next(resumed)), np.asarray(expected))


def test_a_step_may_donate_the_state_while_it_is_saved(tmp_path):
    state = TrainState(jnp.int32(0), {"params": {"w": jnp.ones((512, 2048))}}, ())
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 5, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(5):
            state = overwrite(state)
    assert (restore_variables(tmp_path)["params"]["w"] == 1).all()


def test_restores_onto_the_shardings_asked_for(tmp_path):
    mesh = jax.make_mesh((1,), ("data",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)
        restored = checkpoints.restore(wanted)
    assert all(leaf.sharding == replicated for leaf in jax.tree.leaves(restored))
    assert_same(restored, state)


@pytest.mark.parametrize("where", [".", "checkpoints", "checkpoints/2"])
def test_variables_alone_are_plain_numpy(tmp_path, where):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, make_state(seed=1))
        checkpoints.save(2, make_state(seed=2))
    variables = restore_variables(tmp_path / where)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))
    assert_same(variables, make_state(seed=2).variables)
    assert_same(restore_variables(tmp_path, 1), make_state(seed=1).variables)


def test_keeps_the_latest_and_every_so_many(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(2, 14, 2):
            checkpoints.save(step, TrainState(jnp.int32(step), {"params": {"w": jnp.ones(2)}}, ()))
        checkpoints.wait()
        assert checkpoints.latest_step() == 12
        checkpoints.save(12, make_state())  # the loop's last save may fall on the periodic one
        with pytest.raises(ValueError, match="after 12"):
            checkpoints.save(5, make_state())
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [4, 8, 10, 12]


def test_missing_and_empty_folders_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        restore_variables(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="without checkpoints"):
        restore_variables(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match="without checkpoints"):
            checkpoints.restore(make_state())
        checkpoints.save(3, make_state())
        checkpoints.wait()
        with pytest.raises(FileNotFoundError, match="without `data`"):
            checkpoints.restore(make_state(), make_data())


def test_another_number_of_processes_is_said(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(), make_data())
        checkpoints.wait()
        (tmp_path / "3" / "data" / "process_0-of-1.json").rename(tmp_path / "3" / "data" / "process_0-of-2.json")
        with pytest.raises(ValueError, match=r"expected 2 processes, with which .*/3 was saved, got 1: start as many"):
            checkpoints.restore(make_state(), make_data())


def test_another_model_is_one_error_with_every_difference(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state())
        with pytest.raises(ValueError) as wrong:
            checkpoints.restore(make_state(width=5))
        assert "layer1_0/conv1/kernel: saved float32[1, 1, 4, 3], expected float32[1, 1, 4, 5]" in str(wrong.value)
        other = make_state(optimizer=optax.adam(0.1))
        other.variables["params"]["head"] = {"bias": jnp.zeros(2)}
        del other.variables["params_4f"]
        with pytest.raises(ValueError) as wrong:
            checkpoints.restore(other)
    message = str(wrong.value)
    assert "variables/params/head/bias: expected, but not saved" in message
    assert "training/opt_state/0/mu/" in message
    assert message.count("\n") <= 15


def test_more_differences_than_fit_are_counted(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, TrainState(jnp.int32(1), {"params": {str(i): jnp.ones(2) for i in range(30)}}, ()))
        with pytest.raises(ValueError, match=r"30 differences(.|\n)*18 more"):
            checkpoints.restore(TrainState(jnp.int32(1), {"params": {str(i): jnp.ones(3) for i in range(30)}}, ()))


def test_the_latest_the_best_and_every_so_many_stay(tmp_path):
    scores = {1: 0.1, 2: 0.9, 3: None, 4: 0.3, 5: 0.2, 6: None, 7: 0.4, 8: None}
    with Checkpoints(tmp_path, keep=2, keep_every=5) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, make_state())
            if score is not None:
                checkpoints.set_score(step, score)
    assert find_checkpoint(tmp_path, "best").name == "2"
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 5, 7, 8]


def files_of(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with the checkpoints of steps 7 and 8, and their states."""
    folder = tmp_path_factory.mktemp("two")
    data, states = make_data(), {7: make_state(seed=0), 8: make_state(seed=1)}
    with Checkpoints(folder) as checkpoints:
        for step, state in states.items():
            next(data)
            checkpoints.save(step, state, data)
    return folder, states


def test_whichever_file_of_the_newest_checkpoint_is_cut_off_the_run_goes_on(two_steps, tmp_path, capsys):
    original, states = two_steps
    went_back = []
    for number, file in enumerate(files_of(original / "8")):
        folder = tmp_path / str(number)
        shutil.copytree(original, folder)
        content = (folder / "8" / file).read_bytes()
        (folder / "8" / file).write_bytes(content[: len(content) // 2] if number % 3 else b"")
        with Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore(jax.eval_shape(make_state), make_data())
            step = int(restored.step)  # a file that nothing is read from may be cut without harm
            assert_same(restored, states[step])
            if step == 7:
                assert "step 8 is damaged" in capsys.readouterr().out
                assert (folder / "damaged-8").is_dir()
                checkpoints.save(8, restored)  # its name is free again
        went_back.append(step == 7)
    assert sum(went_back) >= 4


def test_no_readable_checkpoint_is_said(two_steps, tmp_path):
    shutil.copytree(two_steps[0] / "8", tmp_path / "8")
    for file in (tmp_path / "8" / "variables").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read .the first, of step 8: "):
        Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"/8 cannot be read: .* give the folder of another step") as error:
        restore_variables(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_full_disk_is_said_and_the_checkpoint_before_stands(small_disk):
    small, large = make_state(), make_state(width=600_000)
    checkpoints = Checkpoints(small_disk / "checkpoints")
    checkpoints.save(1, small)
    checkpoints.wait()

    def save():
        checkpoints.save(2, large)
        checkpoints.wait()

    with pytest.raises(OSError, match=r"the disk of .* is full .* goes on after step 1") as full:
        save()
    assert full.value.errno == errno.ENOSPC
    with Checkpoints(small_disk / "checkpoints") as again:
        restored = again.restore(jax.eval_shape(make_state))
    assert_same(restored, small)


@pytest.mark.parametrize(
    "name",
    [
        "tsm [lr=0.01]",
        "[!a]",
        "a*b",
        "a?b",
        "**",
        "a\\b",
        "a\\",
        "gs:/bucket",
        "s3/x",
        "caf\udce9",
        "naïve é 映 ~",
        "".join(sorted(set(string.punctuation) - set("/"))),
        "new\nline",
        "link/../up",
    ],
)
def test_whatever_the_folder_is_called_what_is_saved_comes_back(tmp_path, name):
    """Orbax and TensorStore take some names for patterns and addresses; others of such a pattern stay out of it."""
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "down")
    states = {1: make_state(seed=1), 2: make_state(seed=2)}
    with Checkpoints(tmp_path / "aXb") as neighbour:
        neighbour.save(2, make_state(width=5))
    with Checkpoints(tmp_path / name) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
    found = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("variables")}
    top = "deep" if name.startswith("link") else name.split("/")[0]
    assert found == {"aXb", top}
    assert_same(restore_variables(tmp_path / name), states[2].variables)
    with Checkpoints(tmp_path / name) as checkpoints:
        assert_same(checkpoints.restore(jax.eval_shape(make_state)), states[2])
    assert_same(restore_variables(tmp_path / name, 1), states[1].variables)


def test_a_checkpoint_is_named_by_its_step_or_as_the_best(tmp_path):
    run = tmp_path / "run"
    with Checkpoints(run / "checkpoints", keep=None) as checkpoints:
        for step in (5, 10, 15):
            checkpoints.save(step, make_state(seed=step))
        checkpoints.wait()
        with pytest.raises(FileNotFoundError, match=r"got none with a score: .* or one of the steps 5, 10, 15"):
            find_checkpoint(run, "best")
        checkpoints.set_score(10, 0.5)
        checkpoints.set_score(15, 0.25)
    for wanted, step in {"latest": 15, "best": 10, 5: 5, "5": 5}.items():
        assert find_checkpoint(run, wanted) == run / "checkpoints" / str(step)
        assert_same(restore_variables(run, wanted), make_state(seed=step).variables)
    assert find_checkpoint(run / "checkpoints" / "5").name == find_checkpoint(run / "checkpoints" / "5", 5).name == "5"
    with pytest.raises(FileNotFoundError, match="expected a run's folder for checkpoint best, got that of one step"):
        find_checkpoint(run / "checkpoints" / "5", "best")
    with pytest.raises(FileNotFoundError, match=r"expected one of the steps 5, 10, 15 in .*, got 7"):
        find_checkpoint(run, 7)
    with pytest.raises(ValueError, match='expected checkpoint "latest", "best" or a step such as 1500, got \'bset\''):
        find_checkpoint(run, "bset")


def test_a_disk_that_loses_data_shows_at_the_second_save(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state())
        checkpoints._manager.wait_until_finished()
        shutil.rmtree(tmp_path / "1" / "variables" / "d")
        with pytest.raises(OSError, match=r"step 1 was saved in .* and cannot be read back \("):
            checkpoints.save(2, make_state())
    assert (tmp_path / "1").exists()


def test_a_damaged_checkpoint_pushes_no_other_aside(two_steps, tmp_path, capsys):
    shutil.copytree(two_steps[0], tmp_path / "run")
    (tmp_path / "run" / "damaged-8").mkdir()
    (tmp_path / "run" / "damaged-8" / "mine").touch()
    (tmp_path / "run" / "8" / "metrics" / "metrics").write_text("{")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 7
    assert (tmp_path / "run" / "damaged-8" / "mine").exists()
    assert (tmp_path / "run" / "damaged-8-again" / "variables").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]", b"[" * 100_000])
@pytest.mark.parametrize("file", ["metrics/metrics", "extra/metadata", "_CHECKPOINT_METADATA"])
def test_a_note_that_is_no_object_is_damage_that_names_it(two_steps, tmp_path, capsys, file, content):
    shutil.copytree(two_steps[0], tmp_path / "run")
    (tmp_path / "run" / "8" / file).write_bytes(content)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.latest_step() == 7
    assert "the checkpoint of step 8 is damaged (" in capsys.readouterr().out


@pytest.mark.parametrize("score", ["x", None, [1]])
def test_a_score_that_is_no_number_is_none(two_steps, tmp_path, score):
    shutil.copytree(two_steps[0], tmp_path / "run")
    (tmp_path / "run" / "8" / "metrics" / "metrics").write_text(json.dumps({"score": score}))
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert not checkpoints.has_score(8)
    with pytest.raises(FileNotFoundError, match="got none with a score"):
        find_checkpoint(tmp_path / "run", "best")


def test_what_cannot_be_read_just_now_is_not_called_damaged(two_steps, tmp_path, monkeypatch):
    shutil.copytree(two_steps[0], tmp_path / "run")

    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(checkpoint, "_read_numpy", refuse)
    with pytest.raises(PermissionError):
        Checkpoints(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["7", "8"]


def test_where_nothing_is_whole_nothing_is_touched(two_steps, tmp_path):
    shutil.copytree(two_steps[0], tmp_path / "run")
    for step in "78":
        (tmp_path / "run" / step / "extra" / "metadata").write_bytes(b"")
    with pytest.raises(ValueError, match=r"the first, of step 7: .*nothing was changed in this one") as error:
        Checkpoints(tmp_path / "run")
    assert "delete" not in str(error.value)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["7", "8"]


def test_a_folder_that_cannot_be_written_is_said_at_once(two_steps, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two_steps[0], folder)
    for command in (["mount", "--bind", folder, folder], ["mount", "-o", "remount,bind,ro", folder]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no right to mount a folder that is read-only: {done.stderr.strip()}")
    began = time.monotonic()
    try:
        with pytest.raises(OSError, match=r"no checkpoint can be written .Read-only file system.") as error:
            Checkpoints(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
    assert error.value.errno == errno.EROFS
    assert time.monotonic() - began < 60  # Orbax would try for five minutes
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="File exists"):
        Checkpoints(tmp_path / "file")
