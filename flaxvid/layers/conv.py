"""The one convolution layer of the library: the parameters and numbers of `nn.Conv`, fast on every platform."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from flaxvid.layers.lowering import Padding, convolve

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """Convolution over the trailing spatial axes, the same layer as `nn.Conv` but for padding and speed on CPU.

    The default padding is torch's symmetric (k - 1) // 2, never 'SAME', which shifts strided layers by a pixel.
    There is no bias by default, for a norm nearly always follows. Parameters are float32.

    Attributes:
        features: channels out.
        kernel_size: (h, w) or (t, h, w); its length says how many axes are spatial, those before them are batch, so
            a 2-D layer on (b, t, h, w, c) works on every frame.
        strides: one for all axes, or one an axis.
        padding: one for all axes, one an axis, or (before, after) pairs; None is (k - 1) // 2.
        groups: `feature_group_count`, a divisor of the channels in and out.
        use_bias: add a bias.
        dtype: of the computation; None takes that of input and parameters.
        kernel_init: the default is that of torchvision's ResNets, normal with variance 2 / fan out.
    """

    features: int
    kernel_size: Sequence[int]
    strides: int | Sequence[int] = 1
    padding: Padding = None
    groups: int = 1
    use_bias: bool = False
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Float[Array, "*batch cin"]) -> Float[Array, "*batch cout"]:
        """Convolve.

        Raises:
            ValueError: channels that `groups` does not divide, or strides or padding of the wrong length.
        """
        cin = x.shape[-1]
        if cin % self.groups or self.features % self.groups:
            raise ValueError(f"groups: expected a divisor of channels {cin} and {self.features}, got {self.groups}.")
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, cin // self.groups, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        x, kernel = self.operands(x, kernel)
        y = convolve(x, kernel, strides=self.strides, padding=self.padding, groups=self.groups)
        return y if bias is None else y + bias

    def operands(self, x: Float[Array, "*batch cin"], kernel: Array) -> tuple[Float[Array, "*batch cin"], Array]:
        """What is convolved; `int8_form` rounds both here."""
        return x, kernel
