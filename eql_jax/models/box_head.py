"""Box head: two fully connected layers on pooled RoIs, a classifier and class-specific or class-agnostic box deltas.

Shapes: R RoIs of all images of the batch, K foreground classes (background = K), S pooled side, F units.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.models.layers import xavier_uniform

LOSSES = ("eql", "sigmoid", "softmax")


class BoxHead(nn.Module):
    """Classifies RoIs and refines their boxes (detectron2's FastRCNNConvFCHead and FastRCNNOutputLayers).

    Attributes:
      num_classes: K.
      loss: 'eql' and 'sigmoid' have K logits and start at score `prior`; 'softmax' has K + 1, background last.
      num_fc, fc_dim: hidden layers.
      class_agnostic_boxes: one box per RoI in place of one per class.
      prior: initial sigmoid score, bias = -log((1 - prior) / prior).
      dtype: compute type; logits and deltas come out as float32.
    """

    num_classes: int
    loss: str = "eql"
    num_fc: int = 2
    fc_dim: int = 1024
    class_agnostic_boxes: bool = False
    prior: float = 0.001
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"box_head.loss is {self.loss!r}; expected one of {', '.join(LOSSES)}")
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
        self.bbox_pred = BoxPredictor(boxes, self.fc_dim if self.num_fc else None, self.dtype)

    def hidden(self, pooled: jax.Array) -> jax.Array:
        """pooled [R,S,S,C] -> [R,F], flattened in the order (y, x, channel)."""
        x = pooled.reshape(pooled.shape[0], -1).astype(self.dtype)
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
        return self.bbox_pred.of_class(hidden, jnp.zeros_like(classes) if self.class_agnostic_boxes else classes)

    def __call__(self, pooled: jax.Array) -> tuple[jax.Array, jax.Array]:
        """pooled [R,S,S,C] -> (logits, all deltas)."""
        x = self.hidden(pooled)
        return self.logits(x), self.all_deltas(x)


class BoxPredictor(nn.Module):
    """Linear layer F -> (classes, 4) that can compute one class per row.

    kernel [F, 4 * classes] with column 4 * class + coordinate, as detectron2 stores it.
    """

    num_classes: int
    features: int | None
    dtype: jnp.dtype

    def setup(self) -> None:
        if self.features is None:
            raise ValueError("box_head.num_fc is 0; the box head needs at least one fully connected layer")
        self.kernel = self.param(
            "kernel", nn.initializers.normal(0.001), (self.features, 4 * self.num_classes), jnp.float32
        )
        self.bias = self.param("bias", nn.initializers.zeros, (4 * self.num_classes,), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(self.dtype) @ self.kernel.astype(self.dtype)
        return (y.astype(jnp.float32) + self.bias).reshape(x.shape[0], self.num_classes, 4)

    def of_class(self, x: jax.Array, classes: jax.Array) -> jax.Array:
        kernel = self.kernel.reshape(-1, self.num_classes, 4)
        rows = jnp.take(kernel, classes, axis=1, mode="clip").astype(self.dtype)  # [F, R, 4]
        bias = jnp.take(self.bias.reshape(-1, 4), classes, axis=0, mode="clip")
        return jnp.einsum("rf,frc->rc", x.astype(self.dtype), rows, preferred_element_type=jnp.float32) + bias
