"""Head of the region proposal network (Ren et al. 2015).

Shapes: B images, A anchors per position, n_l anchors of level l in the order (h, w, a).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.models.layers import Conv
from eql_jax.models.per_image import sum_gradients_once


class RPNOutput(NamedTuple):
    """Per level: logits [B, n_l] and deltas [B, n_l, 4], float32."""

    logits: list[jax.Array]
    deltas: list[jax.Array]


class RPNHead(nn.Module):
    """3x3 convolution with ReLU, then objectness (A channels) and deltas (4A, channel = a * 4 + coordinate); shared by
    all levels. The convolution keeps the number of channels, as detectron2's does by default."""

    num_anchors: int
    dtype: jnp.dtype = jnp.float32

    def __call__(self, features: Sequence[jax.Array]) -> RPNOutput:
        """Logits and deltas of maps [B, H_l, W_l, C]; over several devices the gradient is summed once for all."""
        if self.is_initializing():
            return self.levels(features)
        head = self.clone(parent=None)  # the parameters are handed over, not closed over: see `sum_gradients_once`

        def levels(params: Mapping[str, Any], features: Sequence[jax.Array]) -> RPNOutput:
            return head.apply({"params": params}, features, method="levels")

        # As they are used, so that the sums are of this type: half the bytes in bfloat16.
        params = jax.tree.map(lambda p: p.astype(self.dtype), self.variables["params"])
        return sum_gradients_once(levels)(params, list(features))

    @nn.compact
    def levels(self, features: Sequence[jax.Array]) -> RPNOutput:
        """The same on one device."""
        init = nn.initializers.normal(0.01)
        conv = Conv(features[0].shape[-1], 3, 1, "none", init, self.dtype, name="conv")
        objectness = Conv(self.num_anchors, 1, 1, "none", init, self.dtype, name="objectness")
        box = Conv(4 * self.num_anchors, 1, 1, "none", init, self.dtype, name="anchor_deltas")
        logits, deltas = [], []
        for x in features:
            x = nn.relu(conv(x))
            logits.append(objectness(x).astype(jnp.float32).reshape(x.shape[0], -1))
            deltas.append(box(x).astype(jnp.float32).reshape(x.shape[0], -1, 4))
        return RPNOutput(logits, deltas)
