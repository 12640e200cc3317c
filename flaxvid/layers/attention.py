"""Attention of tokens to each other, and between the cameras of one scene."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Bool, Float

from flaxvid.layers.blocks import FrameMask, Grid, fit_mask
from flaxvid.layers.lowering import is_direct

Cameras = Float[Array, "b v t h w c"]
Present = Bool[Array, "b v"]
Tokens = Float[Array, "*batch n c"]
KeyMask = Bool[Array, "*batch n"] | None
Bias = Literal["qkv", "qv", "none"]

_capability: ContextVar[float | None] = ContextVar("compute capability", default=None)


class Attention(nn.Module):
    """Every token attends to all tokens of its row (arXiv 1706.03762).

    Queries, keys and values come from one kernel, packed as torch packs them: all queries, then all keys, then all
    values, each head by head. The softmax is float32 whatever the compute type.

    Attributes:
        num_heads: divides the channels.
        bias: "qkv", one bias beside the kernel; "qv", `q_bias` and `v_bias`, for a bias on the keys moves all scores of
            a query alike and so changes nothing; or "none".
        dtype: compute type.
    """

    num_heads: int
    bias: Bias = "qkv"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, keys: KeyMask = None) -> Tokens:
        """Tokens to tokens.

        Args:
            x: (..., n, c); tokens of different rows do not see each other.
            keys: (..., n), False for tokens that no other attends to; None for all. The leading axes are those of `x`,
                or 1 where a mask is for all.

        Raises:
            ValueError: `num_heads` does not divide the channels.
        """
        *lead, n, c = x.shape
        if c % self.num_heads:
            raise ValueError(f"num_heads must divide the {c} channels of the tokens, got {self.num_heads}")
        y = PackedDense(self.num_heads, self.bias == "qkv", self.dtype, name="qkv")(x)
        if self.bias == "qv":
            zeros = nn.initializers.zeros
            q_bias, v_bias = self.param("q_bias", zeros, (c,)), self.param("v_bias", zeros, (c,))
            y += jnp.concatenate([q_bias, jnp.zeros(c), v_bias]).astype(y.dtype).reshape(y.shape[-3:])
        q, k, v = jnp.moveaxis(y.reshape(-1, *y.shape[-4:]), 2, 0)
        if keys is not None:
            keys = jnp.broadcast_to(keys, (*lead, n)).reshape(-1, n)
        dense = nn.Dense(c, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name="project")
        return dense(attend(q, k, v, keys).reshape(x.shape))


class PackedDense(nn.Module):
    """A dense layer from c to 3c channels, as queries, keys and values of each head.

    The kernel is shaped, and not what comes out of it: where the heads are divided over devices
    (`flaxvid.train.sharding`), the kernel is moved for that, and no activation.

    Attributes:
        num_heads: divides c.
        use_bias: whether there is a bias.
        dtype: compute type.
    """

    num_heads: int
    use_bias: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Float[Array, "*batch n 3 heads d"]:
        """Tokens (..., n, c) to (..., n, 3, heads, c / heads)."""
        c = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (c, 3 * c))
        bias = self.param("bias", nn.initializers.zeros, (3 * c,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        x, kernel = self.operands(x, kernel)
        shape = 3, self.num_heads, c // self.num_heads
        y = jnp.tensordot(x, kernel.reshape(c, *shape), 1)
        return y if bias is None else y + bias.reshape(shape)

    def operands(self, x: Tokens, kernel: Array) -> tuple[Tokens, Array]:
        """What is multiplied; `int8_form` rounds both here."""
        return x, kernel


_LONG = 128
"""Keys of a row above which other programs than the plain one pay."""


def attend(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    keys: KeyMask = None,
    scores: Float[Array, "b heads n m"] | None = None,
) -> Float[Array, "b n heads d"]:
    """`jax.nn.dot_product_attention`, lowered for long rows to the fastest equal program of each platform.

    GPUs that have a fused kernel take it: no matrix of scores in memory. A CPU takes one head after the other.

    Args:
        q, k, v: queries, keys and values.
        keys: (b, m), False for keys that no query attends to.
        scores: added to the products of queries and keys.
    """
    # Several CPUs share the rows, and a loop over the rows would give each of them all.
    shared = jax.default_backend() == "cpu" and jax.device_count() > 1
    if k.shape[1] <= _LONG or shared or is_direct():
        return _plain(q, k, v, keys, scores)
    # The backward pass computes the float32 scores again, for they are larger than all else that it needs. Without the
    # checkpoints, each platform's program would also save what the others need (as zeros).
    by_head = jax.checkpoint(_by_head, prevent_cse=False)  # pyright: ignore[reportPrivateImportUsage]
    plain = jax.checkpoint(_plain)  # pyright: ignore[reportPrivateImportUsage]
    if keys is not None or scores is not None or not _is_fused(k):  # the kernel takes a mask as a matrix of scores
        return jax.lax.platform_dependent(q, k, v, keys, scores, cpu=by_head, default=plain)
    return jax.lax.platform_dependent(q, k, v, cpu=by_head, cuda=attend_fused, default=plain)


def _plain(q, k, v, keys=None, scores=None):
    mask = None if keys is None else keys[:, None, None]
    return jax.nn.dot_product_attention(q, k, v, bias=scores, mask=mask, implementation="xla")


def attend_fused(
    q: Float[Array, "b n heads d"], k: Float[Array, "b m heads d"], v: Float[Array, "b m heads d"]
) -> Float[Array, "b n heads d"]:
    """cuDNN's kernel. It trains on even lengths only, so odd ones, as with a class token, get a row that does not
    count."""
    b, n, m = len(q), q.shape[1], k.shape[1]
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    if n % 2 == m % 2 == 0:
        return attention(q, k, v)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    y = attention(q, k, v, query_seq_lengths=jnp.full(b, n, jnp.int32), key_value_seq_lengths=jnp.full(b, m, jnp.int32))
    return y[:, :n]


def _by_head(q, k, v, keys=None, scores=None):
    """One head of one row after the other. XLA's CPU backend multiplies two matrices several times faster than two
    stacks of them, and the scores of one head stay in the cache; they are computed again in the backward pass."""
    b, _, heads, _ = q.shape
    q, k, v = (rearrange(x, "b n heads d -> (b heads) n d") for x in (q, k, v))
    keys = None if keys is None else repeat(keys, "b m -> (b heads) m", heads=heads)
    scores = None if scores is None else rearrange(scores, "b heads n m -> (b heads) n m")

    def one(row):
        q, k, v, keys, more = row
        scores = jnp.matmul(q, k.T, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        scores = scores if more is None else scores + more
        scores = scores if keys is None else jnp.where(keys, scores, jnp.finfo(scores.dtype).min)
        return jax.nn.softmax(scores).astype(v.dtype) @ v

    one = jax.checkpoint(one, prevent_cse=False)  # pyright: ignore[reportPrivateImportUsage]
    return rearrange(jax.lax.map(one, (q, k, v, keys, scores)), "(b heads) n d -> b n heads d", b=b)


@contextmanager
def compute_capability(capability: float) -> Iterator[None]:
    """Traces attention as for GPUs of this compute capability, though the process has none. It acts while tracing."""
    before = _capability.set(capability)
    try:
        yield
    finally:
        _capability.reset(before)


def _is_fused(k: Float[Array, "b m heads d"]) -> bool:
    """Whether the GPU has a fused kernel for such keys: NVIDIA's from Ampere on, of compute capability 8."""
    d = k.shape[-1]
    if k.dtype != jnp.bfloat16 or d % 8 or d > 128:
        return False
    capability = _capability.get()
    if capability is None:
        own = jax.local_devices()[0] if jax.default_backend() == "gpu" else None
        text = str(getattr(own, "compute_capability", ""))  # AMD's is a name
        capability = float(text) if text[:1].isdigit() else 0.0
    return capability >= 8


class CrossViewAttention(nn.Module):
    """Temporal-spatial cross-view attention: cameras look at each other at each moment, then along time, and are
    joined.

    Cameras of a scene share the time and nothing else: which place of one shows the same as a place of another must be
    learnt. So at each moment every place of every camera attends to all places of all cameras. Then each place attends
    to its own past and future. Last, a gate (softmax over the cameras) weighs the cameras in a sum.

    "To the right" is another direction in each camera, so each camera first has a projection of its own. At the start
    the projections are the identity, both attentions give zero, and the gate is even: the output is the cameras' mean.

    A camera that is not present is no key of the attention and has no weight in the gate: its values change nothing.

    Attributes:
        heads: of both attentions; divides their channels.
        width: channels of queries, keys and values, at most; narrower grids keep their own.
        dtype: compute type; softmaxes and the gate are float32.
        norm_epsilon: of both norms.
    """

    heads: int = 4
    width: int = 512
    dtype: jnp.dtype = jnp.float32
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Cameras, present: Present, frame_mask: FrameMask = None) -> Grid:
        """The cameras' grids to one; no size is built in, but the number of cameras is."""
        _, v, t, h, w, c = x.shape
        attend = functools.partial(
            nn.MultiHeadDotProductAttention,
            self.heads,
            dtype=self.dtype,
            qkv_features=min(c, self.width),
            out_kernel_init=nn.initializers.zeros,
            use_bias=False,
            force_fp32_for_softmax=True,
        )
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        own = self.param("own", lambda _key, shape: jnp.broadcast_to(jnp.eye(c), shape), (v, c, c))
        which = self.param("which", nn.initializers.normal(0.02), (v, c))
        x, own, which = promote_dtype(x, own, which, dtype=self.dtype)
        x = jnp.einsum("bvthwc,vcd->bvthwd", x, own) + which[:, None, None, None]

        y = rearrange(norm(name="norm_views")(x), "b v t h w c -> b t (v h w) c")
        keys = repeat(present, "b v -> b 1 1 1 (v h w)", h=h, w=w)  # (b, t, heads, queries, keys)
        y = attend(name="between_views")(y, mask=keys)
        x = x + rearrange(y, "b t (v h w) c -> b v t h w c", v=v, h=h)

        y = rearrange(norm(name="norm_time")(x), "b v t h w c -> b (v h w) t c")
        mask = fit_mask(frame_mask, t)
        y = attend(name="along_time")(y, mask=None if mask is None else mask[:, None, None, None])
        x = x + rearrange(y, "b (v h w) t c -> b v t h w c", v=v, h=h)

        score = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros, name="gate")(x.astype(jnp.float32))
        weight = jax.nn.softmax(score, axis=1, where=present[:, :, None, None, None, None])
        return (weight * x).sum(axis=1).astype(self.dtype)  # (b, t, h, w, c)
