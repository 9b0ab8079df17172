"""Box head: convolutions and fully connected layers on pooled RoIs, a classifier, class-specific or -agnostic deltas.

Shapes: R RoIs of all images of the batch, K foreground classes (background = K), C columns of class logits (what the
loss asks for), S pooled side, F units.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from eql_jax.class_losses import ClassFrequencies, ClassLoss, LossInputs, make_class_loss, pad_class_loss
from eql_jax.models.layers import Conv, kaiming_normal, xavier_uniform


def configured_loss(config, frequencies: ClassFrequencies) -> ClassLoss:
    """The classification loss of config.model.

    Raises:
      ValueError: no such loss or option, or a value that is not allowed.
    """
    h = config.box_head
    options = dict(h.loss_options)
    if h.loss == "eql":
        options["background_keeps_negatives"] = config.eql.background_keeps_negatives
    loss = make_class_loss(h.loss, frequencies, options=options)
    return loss if h.class_multiple == 1 else pad_class_loss(loss, h.class_multiple)


class BoxHead(nn.Module):
    """Classifies RoIs and refines their boxes (detectron2's FastRCNNConvFCHead and FastRCNNOutputLayers).

    Attributes:
      class_loss: the classification loss, which says how many logits there are and what their scores mean. Its memory,
        if it has one, is the variable `memory` of the collection "loss_state".
      num_fc, fc_dim: fully connected hidden layers, each with ReLU; none where the hidden layer is made elsewhere (C4).
      class_agnostic_boxes: one box per RoI in place of one per class.
      prior: score that classes start with, where the loss has a use for it.
      num_convs, conv_dim, norm: 3x3 convolutions before the fully connected layers, each with `norm` (or a bias, for
        'none') and ReLU. A live norm takes its statistics over all rows, empty slots included.
      classifier: 'linear', or 'cosine' (see CosineClassifier) with `cosine_temperature`.
      dtype: compute type; logits and deltas come out as float32.
    """

    class_loss: ClassLoss
    num_fc: int = 2
    fc_dim: int = 1024
    class_agnostic_boxes: bool = False
    prior: float = 0.001
    num_convs: int = 0
    conv_dim: int = 256
    norm: str = "none"
    classifier: str = "linear"
    cosine_temperature: float = 20.0
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.conv = [
            Conv(self.conv_dim, 3, 1, self.norm, kaiming_normal, self.dtype, name=f"conv{i + 1}")
            for i in range(self.num_convs)
        ]
        self.fc = [
            nn.Dense(self.fc_dim, dtype=self.dtype, kernel_init=xavier_uniform, name=f"fc{i + 1}")
            for i in range(self.num_fc)
        ]
        loss, bias = self.class_loss, self.class_loss.initial_bias(self.prior)
        options = dict(
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=lambda key, shape, dtype: jnp.asarray(bias, dtype),
        )
        if self.classifier == "cosine":
            self.cls_score = CosineClassifier(loss.num_logits, temperature=self.cosine_temperature, **options)
        else:
            self.cls_score = nn.Dense(loss.num_logits, **options)
        # Inference has no memory and needs none; `init` and training have.
        self.memory = None
        if self.is_mutable_collection("loss_state") or self.has_variable("loss_state", "memory"):
            if jax.tree.leaves(loss.init_state()):
                self.memory = self.variable("loss_state", "memory", loss.init_state)
        boxes = 1 if self.class_agnostic_boxes else loss.num_classes
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
        """hidden [..., F] -> class logits [..., C], float32.

        Over a mesh with several devices on its 'model' axis each has its part of the columns; rows are by 'data'.
        """
        logits = self.cls_score(hidden).astype(jnp.float32)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.shape.get("model", 1) == 1:
            return logits
        between = (None,) * (logits.ndim - 2)
        return jax.lax.with_sharding_constraint(logits, P("data", *between, "model"))

    def scores(self, logits: jax.Array) -> jax.Array:
        """Class logits [..., C] -> class probabilities [..., K]."""
        return self.class_loss.scores(logits)

    def classification_loss(self, logits: jax.Array, labels: jax.Array, inputs: LossInputs) -> jax.Array:
        """Logits [..., R, C], labels [..., R] (K background, -1 empty) -> scalar; moves the loss's memory on.

        The memory stays as it is where "loss_state" is not among the mutable collections.

        Raises:
          ValueError: some classes are not annotated, and the loss cannot take that into account.
        """
        loss = self.class_loss
        if inputs.annotated is not None and not loss.takes_annotated:
            raise ValueError(
                f"{type(loss).__name__} cannot leave out the classes that an image is not annotated with; train on "
                "sets that are annotated with all classes, or with a loss that can, such as 'eql' or 'softmax'"
            )
        state = loss.init_state() if self.memory is None else self.memory.value
        value, state = loss.loss(logits, labels, state, inputs)
        if self.memory is not None and self.is_mutable_collection("loss_state"):
            self.memory.value = state
        return value

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


class CosineClassifier(nn.Module):
    """Logits by direction: temperature * cos(x, column of the kernel) + bias, the classifier of the Seesaw paper.

    x and the columns are divided by (norm + 1e-6), as mmdetection's NormedLinear does. Attributes besides `temperature`
    are those of nn.Dense.
    """

    features: int
    temperature: float
    dtype: jnp.dtype
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [R,F] -> [R,features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        directions = [direction(x.astype(jnp.float32), axis=-1), direction(kernel, axis=0)]
        x, kernel = (v.astype(self.dtype) for v in directions)
        return self.temperature * jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias


def direction(x: jax.Array, axis: int) -> jax.Array:
    """x / (norm over axis + 1e-6); a vector of zeros has gradient 0 through its norm, as in PyTorch."""
    squares = jnp.sum(x * x, axis=axis, keepdims=True)
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return x / (norm + 1e-6)


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
