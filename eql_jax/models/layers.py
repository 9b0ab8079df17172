"""Convolution with its normalisation, and the initialisers that detectron2 uses.

Shapes: B images, H W feature map, C channels; NHWC throughout.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.ops.conv import conv2d

Initializer = Callable[..., jax.Array]

# detectron2's names in brackets. kernels are [kh, kw, in, out], so 'fan_out' is kh * kw * out as in PyTorch.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # c2_msra_fill
xavier_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # c2_xavier_fill

NORMS = ("none", "frozen_batch_norm", "batch_norm", "group_norm")


def check_norm(norm: str) -> None:
    """Raises ValueError unless `norm` is one of NORMS."""
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; expected one of {', '.join(NORMS)}")


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics and a fixed affine map, as detectron2's FrozenBatchNorm2d (eps 1e-5).

    All four arrays [C] live in the 'batch_stats' collection, since none of them is a trainable parameter: the optimizer
    never sees them and weight decay cannot reach them.
    """

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., C] -> [..., C], same dtype."""
        shape = (x.shape[-1],)
        scale = self.variable("batch_stats", "scale", jnp.ones, shape, jnp.float32).value
        bias = self.variable("batch_stats", "bias", jnp.zeros, shape, jnp.float32).value
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32).value
        scale = scale / jnp.sqrt(var + self.eps)
        return x * scale.astype(x.dtype) + (bias - mean * scale).astype(x.dtype)


class Conv(nn.Module):
    """Convolution [B,H,W,C] -> [B,H',W',features] with PyTorch's symmetric padding, then `norm`.

    A bias exists only without a norm. Parameters are float32 and are cast to `dtype` to compute.

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel.
      strides: stride of both axes.
      norm: one of NORMS. 'batch_norm' takes its statistics over the global batch: under jit over a sharded batch
        the means are global by construction.
      kernel_init: initialiser of the kernel [k, k, C, features].
      dtype: compute type.
    """

    features: int
    kernel_size: int = 1
    strides: int = 1
    norm: str = "none"
    kernel_init: Initializer = kaiming_normal
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        check_norm(self.norm)
        k = self.kernel_size
        kernel = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features), jnp.float32)
        x = conv2d(x.astype(self.dtype), kernel.astype(self.dtype), strides=self.strides, padding=(k - 1) // 2)
        if self.norm == "none":
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            return x + bias.astype(self.dtype)
        if self.norm == "frozen_batch_norm":
            return FrozenBatchNorm(name="norm")(x)
        if self.norm == "batch_norm":
            norm = nn.BatchNorm(
                use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="norm"
            )
            return norm(x)
        groups = 32
        while self.features % groups:  # narrow layers: the largest power of two that divides the channels
            groups //= 2
        return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=self.dtype, name="norm")(x)
