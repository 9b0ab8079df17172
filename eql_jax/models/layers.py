"""Convolution with its normalisation, plain and deformable, and the initialisers that detectron2 uses.

Shapes: B images, H W feature map, C channels; NHWC throughout.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.ops.conv import add_bias, conv2d
from eql_jax.ops.deform_conv import deform_conv2d

Initializer = Callable[..., jax.Array]

# detectron2's names in brackets. kernels are [kh, kw, in, out], so 'fan_out' is kh * kw * out as in PyTorch.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # c2_msra_fill
xavier_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # c2_xavier_fill

NORMS = ("none", "frozen_batch_norm", "batch_norm", "group_norm")


def check_norm(norm: str) -> None:
    """Raises ValueError unless `norm` is one of NORMS."""
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; expected one of {', '.join(NORMS)}")


def rematerialised(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """The class of a block, called as (x, train), whose gradient computes its inside anew where `remat` says so."""
    return nn.remat(block, static_argnums=(2,)) if remat else block


class FrozenBatchNorm(nn.Module):
    """BatchNorm with fixed statistics and a fixed affine map, as detectron2's FrozenBatchNorm2d (eps 1e-5).

    All four arrays [C] live in the 'batch_stats' collection, since none of them is a trainable parameter: the optimizer
    never sees them and weight decay cannot reach them.
    """

    features: int
    eps: float = 1e-5

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """The map as it is: factor and offset, float32 [features] each."""
        shape = (self.features,)
        scale = self.variable("batch_stats", "scale", jnp.ones, shape, jnp.float32).value
        bias = self.variable("batch_stats", "bias", jnp.zeros, shape, jnp.float32).value
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32).value
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32).value
        scale = scale / jnp.sqrt(var + self.eps)
        return scale, bias - mean * scale


def _normalize(module: nn.Module, x: jax.Array, norm: str, dtype: jnp.dtype, train: bool) -> jax.Array:
    """A live `norm` of x [B,H,W,C] as the child 'norm' of `module`, or the module's own bias where there is none."""
    features = x.shape[-1]
    if norm == "none":
        bias = module.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        return add_bias(x, bias)
    if norm == "batch_norm":
        batch_norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name="norm")
        return batch_norm(x)
    groups = 32
    while features % groups:  # narrow layers: the largest power of two that divides the channels
        groups //= 2
    return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=dtype, name="norm")(x)


class Conv(nn.Module):
    """Convolution [B,H,W,C] -> [B,H',W',features] with PyTorch's symmetric padding, then `norm`.

    A bias exists only without a norm. Parameters are float32 and are cast to `dtype` to compute.

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel.
      strides: stride of both axes.
      norm: one of NORMS. 'batch_norm' takes its statistics over the global batch: under jit over a sharded batch
        the means are global by construction.
      kernel_init: initialiser of the kernel [k, k, C / groups, features].
      dtype: compute type.
      groups: groups of channels that do not mix; divides C and `features`.
    """

    features: int
    kernel_size: int = 1
    strides: int = 1
    norm: str = "none"
    kernel_init: Initializer = kaiming_normal
    dtype: jnp.dtype = jnp.float32
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return self.convolve(conv2d, x, train=train)

    def convolve(self, operation: Callable[..., jax.Array], x: jax.Array, *more: jax.Array, train: bool) -> jax.Array:
        """operation(x, *more, kernel, options) and the norm; inside the compact method."""
        check_norm(self.norm)
        k = self.kernel_size
        shape = (k, k, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        options = dict(strides=self.strides, padding=(k - 1) // 2, groups=self.groups)
        frozen = self.norm == "frozen_batch_norm"
        if frozen:
            # The factor goes into the kernel. On the map it would be a pass of its own in the gradient: at the end of a
            # block the convolution needs the gradient with the factor, the shortcut without.
            scale, offset = FrozenBatchNorm(self.features, name="norm")()
            kernel = kernel * scale
        x = operation(x.astype(self.dtype), *more, kernel.astype(self.dtype), **options)
        return x + offset.astype(self.dtype) if frozen else _normalize(self, x, self.norm, self.dtype, train)


class DeformConv(Conv):
    """Deformable convolution (see ops.deform_conv) with the parameters of a `Conv`, then `norm`.

    The offsets come from outside, so that a block's `conv2` has the same parameters deformable or not.

    Attributes: as of `Conv`; deform_groups: groups of channels with offsets of their own.
    """

    deform_groups: int = 1

    @nn.compact
    def __call__(
        self, x: jax.Array, offsets: jax.Array, modulation: jax.Array | None, *, train: bool = False
    ) -> jax.Array:
        """x [B,H,W,C], offsets [B,H',W',2*k*k*deform_groups], modulation [B,H',W',k*k*deform_groups] or None."""
        operation = functools.partial(deform_conv2d, modulation=modulation, deform_groups=self.deform_groups)
        return self.convolve(operation, x, offsets, train=train)
