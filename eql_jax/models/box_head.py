"""Box head: convolutions and fully connected layers on pooled RoIs, a classifier, class-specific or -agnostic deltas.

Shapes: R RoIs of all images of the batch, K foreground classes (background = K), S pooled side, F units.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.models.layers import Conv, kaiming_normal, xavier_uniform

LOSSES = ("eql", "sigmoid", "softmax")


class BoxHead(nn.Module):
    """Classifies RoIs and refines their boxes (detectron2's FastRCNNConvFCHead and FastRCNNOutputLayers).

    Attributes:
      num_classes: K.
      loss: 'eql' and 'sigmoid' have K logits and start at score `prior`; 'softmax' has K + 1, background last.
      num_fc, fc_dim: fully connected hidden layers, each with ReLU; none where the hidden layer is made elsewhere (C4).
      class_agnostic_boxes: one box per RoI in place of one per class.
      prior: initial sigmoid score, bias = -log((1 - prior) / prior).
      num_convs, conv_dim, norm: 3x3 convolutions before the fully connected layers, each with `norm` (or a bias, for
        'none') and ReLU. A live norm takes its statistics over all rows, empty slots included.
      dtype: compute type; logits and deltas come out as float32.
    """

    num_classes: int
    loss: str = "eql"
    num_fc: int = 2
    fc_dim: int = 1024
    class_agnostic_boxes: bool = False
    prior: float = 0.001
    num_convs: int = 0
    conv_dim: int = 256
    norm: str = "none"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"box_head.loss is {self.loss!r}; expected one of {', '.join(LOSSES)}")
        self.conv = [
            Conv(self.conv_dim, 3, 1, self.norm, kaiming_normal, self.dtype, name=f"conv{i + 1}")
            for i in range(self.num_convs)
        ]
        self.fc = [
            nn.Dense(self.fc_dim, dtype=self.dtype, kernel_init=xavier_uniform, name=f"fc{i + 1}")
            for i in range(self.num_fc)
        ]
        sigmoid = self.loss != "softmax"
        bias = -math.log((1 - self.prior) / self.prior) if sigmoid else 0.0
        self.cls_score = nn.Dense(
            self.num_classes + (not sigmoid),
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(bias),
        )
        boxes = 1 if self.class_agnostic_boxes else self.num_classes
        self.bbox_pred = BoxPredictor(boxes, self.dtype)

    def hidden(self, pooled: jax.Array, *, train: bool = False) -> jax.Array:
        """pooled [R,S,S,C] -> [R,F], flattened in the order (y, x, channel)."""
        x = pooled.astype(self.dtype)
        for conv in self.conv:
            x = nn.relu(conv(x, train=train))
        x = x.reshape(x.shape[0], -1)
        for layer in self.fc:
            x = nn.relu(layer(x))
        return x

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden [R,F] -> class logits [R,K] or [R,K+1], float32."""
        return self.cls_score(hidden).astype(jnp.float32)

    def all_deltas(self, hidden: jax.Array) -> jax.Array:
        """hidden [R,F] -> deltas [R,K,4], or [R,1,4] when class-agnostic, float32."""
        return self.bbox_pred(hidden)

    def deltas_of(self, hidden: jax.Array, classes: jax.Array) -> jax.Array:
        """hidden [R,F], classes [R] int -> [R,4]: the deltas of each RoI's class, the others never computed."""
        return self.bbox_pred(hidden, jnp.zeros_like(classes) if self.class_agnostic_boxes else classes)

    def __call__(self, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
        """pooled [R,S,S,C] -> (logits, all deltas)."""
        x = self.hidden(pooled)
        return self.logits(x), self.all_deltas(x)


class BoxPredictor(nn.Module):
    """Linear layer F -> (classes, 4) that can compute one class per row.

    kernel [F, 4 * classes] with column 4 * class + coordinate, as detectron2 stores it.
    """

    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, classes: jax.Array | None = None) -> jax.Array:
        """x [R,F] -> float32 [R,classes,4], or [R,4] of the classes [R] given."""
        shape = (x.shape[-1], 4 * self.num_classes)
        kernel = self.param("kernel", nn.initializers.normal(0.001), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], jnp.float32)
        x = x.astype(self.dtype)
        if classes is None:
            y = x @ kernel.astype(self.dtype)
            return (y.astype(jnp.float32) + bias).reshape(x.shape[0], self.num_classes, 4)
        kernel = kernel.reshape(-1, self.num_classes, 4)
        rows = jnp.take(kernel, classes, axis=1, mode="clip").astype(self.dtype)  # [F, R, 4]
        bias = jnp.take(bias.reshape(-1, 4), classes, axis=0, mode="clip")
        return jnp.einsum("rf,frc->rc", x, rows, preferred_element_type=jnp.float32) + bias
