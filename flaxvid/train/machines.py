"""Machines that a training step can be compiled for on any computer, and what they can do."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
from jax.experimental import topologies

from flaxvid.layers.attention import compute_capability


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, by its maker's figures.

    Attributes:
        name: what it is called.
        platform: "cuda" or "tpu".
        memory: bytes that a program may use.
        arithmetic: bfloat16 operations a second.
        bandwidth: bytes a second between its memory and its cores.
        links: bytes a second that it sends to others of its machine or slice.
        topology: what XLA's compiler must know of it; "" where it knows it by name.
    """

    name: str
    platform: str
    memory: int
    arithmetic: float
    bandwidth: float
    links: float
    topology: str = ""


# What XLA prints of such a device.
_H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

CHIPS = {
    "h100": Chip("NVIDIA H100", "cuda", 84_942_979_072, 989e12, 3.35e12, 450e9, _H100),
    "v5e": Chip("TPU v5e", "tpu", 16_911_433_728, 197e12, 819e9, 200e9),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine: `count` chips of a kind, as "h100:8", or a slice of them, as "v5e:4x4"."""

    name: str
    chip: Chip
    count: int


def read_target(text: str) -> Target:
    """A target by its name.

    Raises:
        ValueError: it names no chip of `CHIPS`, or says its size otherwise.
    """
    kind, _, size = text.partition(":")
    chip = CHIPS.get(kind)
    pattern = r"[1-9]\d*" if chip and chip.platform == "cuda" else r"[1-9]\d*x[1-9]\d*"
    if chip is None or not re.fullmatch(pattern, size):
        raise ValueError(f"expected a target such as h100:8 or v5e:4x4, got {text!r}")
    sides = [int(side) for side in size.split("x")]
    return Target(text, chip, sides[0] * sides[-1] if len(sides) > 1 else sides[0])


def find_devices(target: Target) -> list[Any]:
    """The target's devices, to compile for; they cannot compute.

    Raises:
        RuntimeError: its compiler is missing, and the message says what to install; or there is no such slice.
    """
    _check_compiler(target.chip)
    # Read when the compiler is loaded: no CUDA is needed, no cloud is asked what machine this is, and a TPU that
    # another process holds is left alone.
    for name in ("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    jax.devices()  # registers the compilers
    chip, options = target.chip, {}
    if chip.topology:
        options = {"topology": f"1x1x{target.count}", "target_config": chip.topology}
    try:
        described: Any = topologies.get_topology_desc(target.name, chip.platform, **options)
    except Exception as error:  # each compiler has errors of its own
        raise RuntimeError(f"{target.name} cannot be compiled for: {str(error).splitlines()[0]}") from error
    return list(described.devices)


def _check_compiler(chip: Chip) -> None:
    """Says what to install where the compiler is missing; it is large, and no dependency of the library."""
    version = jax.__version__
    if chip.platform == "cuda":
        found = any(_is_installed(f"jax_plugins.xla_cuda{major}") for major in (12, 13))
        needed = f"--no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version}"
    else:
        found = "TPU_LIBRARY_PATH" in os.environ or _is_installed("libtpu")
        needs = importlib.metadata.requires("jax") or []
        needed = next(one.partition(";")[0] for one in needs if one.startswith("libtpu"))
    if not found:
        raise RuntimeError(f"the compiler for {chip.name} is missing: pip install {needed}")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def traced_for(target: Target) -> Iterator[None]:
    """Inside, a program is traced as on the target, where tracing looks at the devices."""
    if target.chip.platform != "cuda":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as fused

    # JAX asks the process's own GPU and cuDNN whether there is a fused attention.
    with (
        compute_capability(9.0),
        mock.patch.object(fused, "check_cudnn_version", return_value=90800),
        mock.patch.object(fused, "check_compute_capability", return_value=True),
    ):
        yield


def compiler_options(target: Target) -> dict[str, Any]:
    """Options of XLA: without the device no kernels can be tried out, and Triton's need that."""
    return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False} if target.chip.platform == "cuda" else {}
