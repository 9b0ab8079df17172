"""ResNet-18/34/50/101 (He et al. 2016), with detectron2's layer names and strides.

Shapes: B images, H W their padded size (multiples of 32), C channels; NHWC.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.models.layers import Conv
from eql_jax.ops.conv import max_pool

# depth -> (blocks of res2..res5, whether blocks are bottlenecks)
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut. [B,H,W,C] -> [B,H/strides,W/strides,features]."""

    features: int
    strides: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shortcut = x
        if self.strides != 1 or x.shape[-1] != self.features:
            shortcut = Conv(self.features, 1, self.strides, self.norm, dtype=self.dtype, name="shortcut")(
                x, train=train
            )
        x = nn.relu(Conv(self.features, 3, self.strides, self.norm, dtype=self.dtype, name="conv1")(x, train=train))
        x = Conv(self.features, 3, 1, self.norm, dtype=self.dtype, name="conv2")(x, train=train)
        return nn.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and the shortcut. [B,H,W,C] -> [B,H/strides,W/strides,features], inner width features / 4.

    stride_in_1x1: the stride sits in the first 1x1 (MSRA weights, detectron2's default) or in the 3x3 (torchvision).
    """

    features: int
    strides: int
    norm: str
    stride_in_1x1: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        s1, s3 = (self.strides, 1) if self.stride_in_1x1 else (1, self.strides)
        width = self.features // 4
        shortcut = x
        if self.strides != 1 or x.shape[-1] != self.features:
            shortcut = Conv(self.features, 1, self.strides, self.norm, dtype=self.dtype, name="shortcut")(
                x, train=train
            )
        x = nn.relu(Conv(width, 1, s1, self.norm, dtype=self.dtype, name="conv1")(x, train=train))
        x = nn.relu(Conv(width, 3, s3, self.norm, dtype=self.dtype, name="conv2")(x, train=train))
        x = Conv(self.features, 1, 1, self.norm, dtype=self.dtype, name="conv3")(x, train=train)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """The backbone: images [B,H,W,3], normalised -> [res2, res3, res4, res5] at strides 4, 8, 16, 32.

    Attributes:
      depth: 18, 34, 50 or 101.
      width: res2..res5 have 1, 2, 4, 8 times as many channels in basic blocks, 4, 8, 16, 32 in bottlenecks.
      stem_width: channels of the stem, 0: `width`.
      norm: see layers.NORMS.
      freeze_at: no gradient reaches the first `freeze_at` of stem, res2, res3, res4, res5 (detectron2's FREEZE_AT).
        A live norm in a frozen part uses its running statistics.
      stride_in_1x1: see Bottleneck.
      dtype: compute type.
    """

    depth: int
    width: int = 64
    stem_width: int = 0
    norm: str = "frozen_batch_norm"
    freeze_at: int = 0
    stride_in_1x1: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        if self.depth not in DEPTHS:
            raise ValueError(f"ResNet depth is {self.depth}; expected one of {sorted(DEPTHS)}")
        if x.shape[1] % 32 or x.shape[2] % 32:
            raise ValueError(f"image is padded to {x.shape[1]}x{x.shape[2]}; both sides must be multiples of 32")
        blocks, bottleneck = DEPTHS[self.depth]
        stem_train = train and self.freeze_at < 1
        stem = Conv(self.stem_width or self.width, 7, 2, self.norm, dtype=self.dtype, name="stem")
        x = stem(x.astype(self.dtype), train=stem_train)
        x = max_pool(nn.relu(x), window=3, strides=2, padding=1)
        if self.freeze_at >= 1:
            x = jax.lax.stop_gradient(x)
        stages = []
        for i, count in enumerate(blocks):
            features = self.width * 2**i * (4 if bottleneck else 1)
            frozen = self.freeze_at >= i + 2
            for j in range(count):
                strides = 2 if i > 0 and j == 0 else 1
                name = f"res{i + 2}_{j}"
                if bottleneck:
                    block = Bottleneck(features, strides, self.norm, self.stride_in_1x1, self.dtype, name=name)
                else:
                    block = BasicBlock(features, strides, self.norm, self.dtype, name=name)
                x = block(x, train=train and not frozen)
            if frozen:
                x = jax.lax.stop_gradient(x)
            stages.append(x)
        return stages


def frozen_prefixes(freeze_at: int) -> tuple[str, ...]:
    """Names of the ResNet's submodules that `freeze_at` holds fixed, as prefixes: ('stem', 'res2_') for 2."""
    return tuple(["stem", *(f"res{i}_" for i in range(2, 6))][:freeze_at])
