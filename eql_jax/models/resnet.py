"""The parts of ResNet (He et al. 2016), ResNeXt (Xie et al. 2017) and deformable ResNets (Dai et al. 2017, Zhu et al.
2019), with detectron2's layer names and strides. `eql_jax.models.backbones` puts them together.

`config` is config.model.backbone throughout. Shapes: B images, H W size of a map, C channels; NHWC.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.models.layers import Conv, DeformConv, rematerialised
from eql_jax.ops.conv import max_pool

# depth -> blocks of res2..res5
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
BASIC_DEPTHS = (18, 34)  # blocks of two 3x3 convolutions; the others are bottlenecks


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut. [B,H,W,C] -> [B,H/strides,W/strides,features]."""

    features: int
    strides: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shortcut = x
        if self.strides != 1 or x.shape[-1] != self.features:
            shortcut = Conv(self.features, 1, self.strides, self.norm, dtype=self.dtype, name="shortcut")(
                x, train=train
            )
        x = nn.relu(Conv(self.features, 3, self.strides, self.norm, dtype=self.dtype, name="conv1")(x, train=train))
        x = Conv(self.features, 3, 1, self.norm, dtype=self.dtype, name="conv2")(x, train=train)
        return nn.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the shortcut. [B,H,W,C] -> [B,H/strides,W/strides,features].

    Attributes:
      features: output channels.
      width: channels in and out of the 3x3.
      strides: of the block.
      groups: of the 3x3.
      stride_in_1x1: the stride sits in the first 1x1 (MSRA weights, detectron2's default) or in the 3x3 (torchvision).
      deform_groups: groups of channels of the 3x3 with offsets of their own; 0: the 3x3 is a plain one. The offsets
        are the first 18 deform_groups channels of `conv2_offset`, a 3x3 with bias on the same input, zero at first.
      modulated: its other 9 deform_groups channels, through a sigmoid, are the factors of the taps (DCNv2).
      norm: see layers.NORMS.
      dtype: compute type. Offsets are computed in float32: eight bits are too few for a position.
    """

    features: int
    width: int
    strides: int
    groups: int
    stride_in_1x1: bool
    deform_groups: int
    modulated: bool
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        s1, s3 = (self.strides, 1) if self.stride_in_1x1 else (1, self.strides)
        shortcut = x
        if self.strides != 1 or x.shape[-1] != self.features:
            shortcut = Conv(self.features, 1, self.strides, self.norm, dtype=self.dtype, name="shortcut")(
                x, train=train
            )
        x = nn.relu(Conv(self.width, 1, s1, self.norm, dtype=self.dtype, name="conv1")(x, train=train))
        options = dict(groups=self.groups, dtype=self.dtype, name="conv2")
        if self.deform_groups:
            taps = 9 * self.deform_groups
            channels = 3 * taps if self.modulated else 2 * taps
            zeros = nn.initializers.zeros
            offsets = Conv(channels, 3, s3, kernel_init=zeros, dtype=jnp.float32, name="conv2_offset")(x)
            modulation = nn.sigmoid(offsets[..., 2 * taps :]) if self.modulated else None
            conv2 = DeformConv(self.width, 3, s3, self.norm, deform_groups=self.deform_groups, **options)
            x = conv2(x, offsets[..., : 2 * taps], modulation, train=train)
        else:
            x = Conv(self.width, 3, s3, self.norm, **options)(x, train=train)
        x = Conv(self.features, 1, 1, self.norm, dtype=self.dtype, name="conv3")(nn.relu(x), train=train)
        return nn.relu(x + shortcut)


def stem(config, x: jax.Array, *, train: bool, dtype: jnp.dtype) -> jax.Array:
    """7x7 of stride 2 and 3x3 max pooling of stride 2, inside the compact method of a module. [B,H,W,3] -> stride 4."""
    conv = Conv(config.stem_width or config.width, 7, 2, config.norm, dtype=dtype, name="stem")
    return max_pool(nn.relu(conv(x, train=train)), window=3, strides=2, padding=1)


def make_block(config, stage: int, strides: int, *, dtype: jnp.dtype, remat: bool, name: str) -> nn.Module:
    """A block of stage 2..5 of `strides`, called `name`.

    Bottlenecks have groups * width_per_group * 2^(stage - 2) inner channels (width * 2^(stage - 2) without
    width_per_group) and four times width * 2^(stage - 2) outer ones, whatever the groups: ResNeXt's 3x3 is the wider.
    """
    features = config.width * 2 ** (stage - 2)
    if config.depth in BASIC_DEPTHS:
        return rematerialised(BasicBlock, remat)(features, strides, config.norm, dtype, name=name)
    width = config.groups * (config.width_per_group or config.width // config.groups) * 2 ** (stage - 2)
    return rematerialised(Bottleneck, remat)(
        4 * features,
        width,
        strides,
        config.groups,
        config.stride_in_1x1,
        config.deform_groups if stage in config.deform_stages else 0,
        config.deform_modulated,
        config.norm,
        dtype,
        name=name,
    )
