"""Feature pyramid (Lin et al. 2017), as detectron2 builds it.

Shapes: B images, C channels; level l has stride 2^l; NHWC.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.models.layers import Conv, xavier_uniform


class FPN(nn.Module):
    """[res2..res5] -> [p_min_level, .., p5, p6], each [B, H / 2^l, W / 2^l, channels].

    Lateral 1x1, nearest upsampling by two and addition, 3x3 output; no ReLU. p6 is p5 subsampled by two and serves the
    RPN only. Levels below `min_level` are not computed.
    """

    channels: int = 256
    norm: str = "none"
    min_level: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array], *, train: bool) -> list[jax.Array]:
        if not 2 <= self.min_level <= 5:
            raise ValueError(f"fpn.min_level is {self.min_level}; expected 2 to 5")
        outputs = []
        top = None
        for level in range(5, self.min_level - 1, -1):
            conv = Conv(self.channels, 1, 1, self.norm, xavier_uniform, self.dtype, name=f"lateral{level}")
            x = conv(stages[level - 2], train=train)
            if top is not None:
                if x.shape[1:3] != (2 * top.shape[1], 2 * top.shape[2]):
                    raise ValueError(
                        f"FPN: res{level} is {x.shape[1:3]} and res{level + 1} {top.shape[1:3]}, expected half of it; "
                        "pad images to multiples of 32"
                    )
                x = x + upsample_nearest_2x(top)
            top = x
            conv = Conv(self.channels, 3, 1, self.norm, xavier_uniform, self.dtype, name=f"output{level}")
            outputs.insert(0, conv(x, train=train))
        outputs.append(outputs[-1][:, ::2, ::2])
        return outputs


def upsample_nearest_2x(x: jax.Array) -> jax.Array:
    """[B,H,W,C] -> [B,2H,2W,C], every pixel four times."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
