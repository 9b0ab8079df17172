"""Mask head: convolutions, one 2x upsampling and a 1x1 predictor of which only the RoI's class is computed.

Shapes: R RoIs, S pooled side (the mask has 2S), C channels, K foreground classes.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.models.layers import Conv, kaiming_normal
from eql_jax.ops.conv import add_bias, conv_transpose_2x2
from eql_jax.ops.masks import class_conv_1x1


class MaskHead(nn.Module):
    """pooled [R,S,S,C], classes [R] -> mask logits [R,2S,2S] of each RoI's class, float32.

    Taking the class's row of the predictor before the product keeps time and memory free of K: with 1203 classes and
    300 detections all the maps would be 1.1 GB. The convolutions (detectron2's MaskRCNNConvUpsampleHead) have `norm`
    in place of a bias where it is not 'none'; upsampling and predictor have none.
    """

    num_classes: int
    num_convs: int = 4
    channels: int = 256
    norm: str = "none"
    class_agnostic: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pooled: jax.Array, classes: jax.Array, *, train: bool = False) -> jax.Array:
        x = pooled.astype(self.dtype)
        for i in range(self.num_convs):
            conv = Conv(self.channels, 3, 1, self.norm, kaiming_normal, self.dtype, name=f"conv{i + 1}")
            x = nn.relu(conv(x, train=train))
        x = nn.relu(Upsample(self.channels, self.dtype, name="deconv")(x))
        maps = 1 if self.class_agnostic else self.num_classes
        if self.class_agnostic:
            classes = jnp.zeros_like(classes)
        return MaskPredictor(maps, self.dtype, name="predictor")(x, classes).astype(jnp.float32)


class MaskPredictor(nn.Module):
    """1x1 convolution to one map per class, of which each RoI's alone is computed: [R,M,M,C], [R] -> [R,M,M]."""

    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, classes: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.num_classes)
        kernel = self.param("kernel", nn.initializers.normal(0.001), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,), jnp.float32)
        return class_conv_1x1(x, kernel.astype(self.dtype), bias, classes)


class Upsample(nn.Module):
    """Transposed convolution 2x2 of stride 2: [R,S,S,C] -> [R,2S,2S,features]."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", kaiming_normal, (2, 2, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return add_bias(conv_transpose_2x2(x, kernel.astype(self.dtype)), bias)
