"""The loss of masked pre-training (VideoMAE, arXiv 2203.12602)."""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

Patch = tuple[int, int, int]
Cubes = Float[Array, "b n d 3"]


def cut_cubes(video: Float[Array, "b t h w 3"], patch: Patch) -> Cubes:
    """Cuts video into its patches: (b, patches along t, h and w, pixels along t, h and w, 3).

    Args:
        video: whose sizes are multiples of the patch's.
        patch: frames, height and width.
    """
    p, q, r = patch
    return rearrange(video, "b (t p) (h q) (w r) c -> b (t h w) (p q r) c", p=p, q=q, r=r)


def join_cubes(cubes: Cubes, patch: Patch, grid: tuple[int, int, int]) -> Float[Array, "b t h w 3"]:
    """The video of such patches, `cut_cubes` backwards; `grid` has their number along t, h and w."""
    (p, q, r), (t, h, w) = patch, grid
    sizes = {"p": p, "q": q, "r": r, "t": t, "h": h, "w": w}
    return rearrange(cubes, "b (t h w) (p q r) c -> b (t p) (h q) (w r) c", **sizes)


def cube_statistics(cubes: Cubes) -> tuple[Float[Array, "b n 1 3"], Float[Array, "b n 1 3"]]:
    """Mean and deviation of each colour of each cube. The deviation is that of a sample (n - 1), plus 1e-6."""
    return cubes.mean(axis=2, keepdims=True), cubes.std(axis=2, keepdims=True, ddof=1) + 1e-6


def reconstruction_errors(
    predictions: Float[Array, "b m p"],
    video: Float[Array, "b t h w 3"],
    hidden: Int[Array, "b m"],
    patch: Patch,
    by_cube: bool = True,
) -> Float[Array, " b"]:
    """The mean squared error of each clip's masked cubes; that of visible ones does not count.

    What is to be predicted of a cube is each colour minus its mean in the cube, over its deviation there: to predict
    the mean, which gives 0 everywhere, has an error of about 1.

    Args:
        predictions: of the masked cubes, pixels along t, h, w and colour.
        video: colours in [0, 1].
        hidden: which cubes are masked, counted along t, h and w, in the order of `predictions`.
        patch: frames, height and width of a cube.
        by_cube: False predicts the numbers of `video` as they are.
    """
    cubes = cut_cubes(video, patch)
    if by_cube:
        mean, deviation = cube_statistics(cubes)
        cubes = (cubes - mean) / deviation
    targets = jnp.take_along_axis(cubes.reshape(*cubes.shape[:2], -1), hidden[..., None], axis=1)
    return jnp.square(predictions - targets).mean(axis=(1, 2))
