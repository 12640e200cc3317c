"""Exported programs on a CPU, in float32 and in int8: onnxruntime and OpenVINO against JAX, and against torch where it
has the network."""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from timing import Rows, Timing, count_cores, interleaved, print_rows, ready

import flaxvid
from flaxvid.adapt.statistics import reestimate_statistics
from flaxvid.compress.quantise import calibrate, quantise
from flaxvid.evaluate.runtimes import RUNTIMES, is_installed, open_program
from flaxvid.export.onnx import export_onnx
from flaxvid.models.video_model import blank_video, init_variables
from flaxvid.writing import read_json

try:
    from torch_peers import TorchTrainer, has_reference
except ModuleNotFoundError:
    TorchTrainer = None


def compare_runtimes(names: Sequence[str], batch: int, scale: float, timing: Timing) -> Rows:
    """Milliseconds of a batch of clips in each runtime, with as many threads as this process has cores.

    In int8, too, calibrated on the same random clips. Differences are from JAX, in int8 from its rounded network.

    Args:
        names: of models.
        batch: clips at once.
        scale: of the clips' sides, for a trial.
        timing: repeats and clock.
    """
    rows: Rows = {}
    for name in names:
        clip = flaxvid.create_model(name).clip
        size = clip.image_size if scale == 1 else round(clip.image_size * scale / 16) * 16
        model = flaxvid.create_model(name, num_classes=400, image_size=size)
        rng = np.random.default_rng(0)
        variables = jax.tree.map(
            functools.partial(_vary, rng), init_variables(model, jax.random.key(0), blank_video(model))
        )
        video: Any = model.for_cameras(rng.integers(0, 256, (batch, clip.num_frames, size, size, 3), np.uint8))
        apply = jax.jit(model.apply).lower(variables, video).compile()
        if not np.isfinite(apply(variables, video)).all():  # non-local blocks explode with norms that do not fit
            variables = reestimate_statistics(model, variables, [video])
        rounded = quantise(model, calibrate(model, variables, [video]))
        runs: dict[str, Callable[[], Any]] = {"JAX": ready(apply, variables, video)}
        threads = count_cores()
        notes: dict[str, dict[str, float]] = {"difference": {}, "MB": {}}
        for kind, network in (("", model), (" int8", rounded)):
            with tempfile.TemporaryDirectory() as folder:
                (file,) = export_onnx(flaxvid.Trained(network, variables), folder).values()
                for runtime in filter(is_installed, RUNTIMES):
                    runs[runtime + kind] = functools.partial(open_program(file, runtime, threads), video)
                (program,) = read_json(pathlib.Path(folder) / "bundle.json", dict)["programs"]
                notes["difference"] |= {runtime + kind: found for runtime, found in program["difference"].items()}
                notes["MB"][f"ONNX{kind}"] = file.stat().st_size / 1e6
        if TorchTrainer is not None and has_reference(name):
            runs["torch"] = TorchTrainer(name, (clip.num_frames,), batch, size, "float32", "cpu").forward
        seconds = interleaved(runs, timing, seconds=60)
        key = f"{name}, {f'{len(model.cameras)} x ' * bool(model.cameras)}{clip.num_frames} x {size}"
        rows[key] = {runtime: 1000 * spent for runtime, spent in seconds.items()}
        print_rows({f"{key}, ms": rows[key]})
        for note, values in notes.items():
            rows[f"{key}, {note}"] = values
            print(f"  {note}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items()), flush=True)
    return rows


def _vary(rng: np.random.Generator, leaf: Any) -> Any:
    """Random numbers near what a fresh network has: else norms would be nothing to fold, and new heads zeros."""
    noise = rng.uniform(-0.1, 0.1, leaf.shape).astype(np.float32)
    return np.asarray(leaf) + np.abs(noise) if leaf.ndim == 1 else np.asarray(leaf) + noise / 10
