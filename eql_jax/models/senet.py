"""The parts of SENet (Hu et al. 2018): bottlenecks that weigh their channels by the mean of the map.

`eql_jax.models.backbones` puts them together. Depth 154 with 64 groups and width 64 is SENet-154 as in Cadene's
pretrained-models (`senet154`), the network of the ILSVRC 2017 entry; depths 50 and 101 are the same blocks in ResNet's
numbers. `config` is config.model.backbone throughout. Shapes: B images, H W size of a map, C channels; NHWC.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.models.layers import Conv, rematerialised
from eql_jax.ops.conv import max_pool

# depth -> blocks of res2..res5
DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    154: (3, 8, 36, 3),
}
REDUCTION = 16  # channels of a block over those in the middle of its squeeze-and-excitation


class SEBottleneck(nn.Module):
    """1x1, grouped 3x3 with the stride, 1x1, squeeze-and-excitation, and the shortcut.

    [B,H,W,C] -> [B,H/strides,W/strides,features]. The first 1x1 has half as many channels as the other two. The
    squeeze is the mean over the whole map, padding of the batch included.

    Attributes:
      features: output channels.
      strides: of the block.
      groups: of the 3x3.
      shortcut_size: side of the shortcut's kernel.
      norm: see layers.NORMS.
      dtype: compute type.
    """

    features: int
    strides: int
    groups: int
    shortcut_size: int
    norm: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features = self.features
        shortcut = x
        if self.strides != 1 or x.shape[-1] != features:
            conv = Conv(features, self.shortcut_size, self.strides, self.norm, dtype=self.dtype, name="shortcut")
            shortcut = conv(x, train=train)
        x = nn.relu(Conv(features // 2, 1, 1, self.norm, dtype=self.dtype, name="conv1")(x, train=train))
        conv2 = Conv(features, 3, self.strides, self.norm, groups=self.groups, dtype=self.dtype, name="conv2")
        x = nn.relu(conv2(x, train=train))
        x = Conv(features, 1, 1, self.norm, dtype=self.dtype, name="conv3")(x, train=train)
        squeezed = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        hidden = nn.relu(Conv(max(1, features // REDUCTION), dtype=self.dtype, name="se_reduce")(squeezed))
        return nn.relu(x * nn.sigmoid(Conv(features, dtype=self.dtype, name="se_expand")(hidden)) + shortcut)


def stem(config, x: jax.Array, *, train: bool, dtype: jnp.dtype) -> jax.Array:
    """Three 3x3 (the first of stride 2, the last with twice the channels) and 3x3 max pooling of stride 2.

    Called inside the compact method of a module. [B,H,W,3] -> stride 4. The pooling is the original's `ceil_mode`
    without padding: its windows start on even rows and columns, and one row and column of minus infinity at the bottom
    and right completes the last of them. ResNet's windows start one earlier.
    """
    width = config.stem_width or config.width
    for i, (features, strides) in enumerate(((width, 2), (width, 1), (2 * width, 1)), start=1):
        x = nn.relu(Conv(features, 3, strides, config.norm, dtype=dtype, name=f"stem{i}")(x, train=train))
    return max_pool(x, window=3, strides=2, padding=(0, 1))


def make_block(config, stage: int, strides: int, *, dtype: jnp.dtype, remat: bool, name: str) -> nn.Module:
    """A block of stage 2..5 of `strides`, called `name`, with 4 * width * 2^(stage - 2) channels."""
    features = 4 * config.width * 2 ** (stage - 2)
    block = rematerialised(SEBottleneck, remat)
    return block(features, strides, config.groups, 1 if stage == 2 else 3, config.norm, dtype, name=name)
