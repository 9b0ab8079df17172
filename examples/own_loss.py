"""Two classification losses of your own, one with memory, trained through the box head of the detectors by name.

    python examples/own_loss.py

Prints the loss before and after some steps, and how many fresh objects are recognised.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eql_jax import losses
from eql_jax.class_losses import REGISTRY, ClassFrequencies, LossInputs, SoftmaxClassLoss, make_class_loss
from eql_jax.models.box_head import BoxHead
from examples.made_up_data import COUNTS, NUM_CLASSES, draw_proposals


@dataclasses.dataclass(frozen=True, eq=False)
class Ldam(SoftmaxClassLoss):
    """Softmax in which an object's own class must win by a margin, the larger the rarer the class.

        loss = 1 / R sum_r -log softmax(z - margin_y e_y)_y,      margin_j = max_margin (min n / n_j)^(1/4)

    Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019, arXiv
    1906.07413. Background has no margin (the paper has no background). n: training images with each class.

    max_margin: of the rarest class, in units of logits.
    """

    max_margin: float = 0.5

    def __post_init__(self):
        if self.max_margin < 0:
            raise ValueError(f"max_margin is {self.max_margin}; expected 0 (plain softmax) or more")

    def loss(self, logits, labels, state, inputs):
        counts = np.maximum(self.counts(), 1)
        margins = np.zeros(self.num_logits, np.float32)
        margins[: self.num_classes] = self.max_margin * (counts.min() / counts) ** 0.25
        own = labels[..., None] == jnp.arange(self.num_logits)
        return losses.softmax_cross_entropy_loss(logits - jnp.where(own, margins, 0), labels), state


@dataclasses.dataclass(frozen=True, eq=False)
class RunningBalance(SoftmaxClassLoss):
    """Balanced softmax with the objects that training has shown so far for counts, whatever the sampler does.

    tau: strength of the adjustment, as in `losses.balanced_softmax_loss`.
    """

    tau: float = 1.0

    def initial_bias(self, prior):
        """All classes together start with `prior`, background with the rest."""
        bias = np.zeros(self.num_logits, np.float32)
        if self.background:
            bias[-1] = np.log(self.num_classes * (1 - prior) / prior)
        return bias

    def init_state(self):
        return {"objects": jnp.ones(self.num_classes)}

    def loss(self, logits, labels, state, inputs):
        loss = losses.balanced_softmax_loss(logits, labels, state["objects"], tau=self.tau)
        shown = (labels[..., None] == jnp.arange(self.num_classes)).reshape(-1, self.num_classes)
        return loss, {"objects": state["objects"] + jnp.sum(shown, axis=0)}


def train(name: str, options: dict, steps: int = 80):
    """Returns the loss's memory after `steps` steps of a small box head, and its scores of fresh proposals."""
    class_loss = make_class_loss(name, ClassFrequencies(NUM_CLASSES, image_counts=COUNTS), options=options)
    head = BoxHead(class_loss=class_loss, num_fc=1, fc_dim=32, class_agnostic_boxes=True)

    def pooled(seed):  # [R, S, S, C], as RoIAlign gives them
        features, labels = draw_proposals((256,), seed)
        return features.reshape(-1, 2, 2, 8), labels

    variables = jax.jit(head.init)(jax.random.key(0), pooled(0)[0])
    params, memory = variables["params"], variables.get("loss_state", {})
    optimizer = optax.adam(1e-2)
    opt_state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params, memory, opt_state, pooled, labels):
        def loss_function(params):
            def run(head):
                return head.classification_loss(head.logits(head.hidden(pooled)), labels, LossInputs())

            variables = {"params": params, "loss_state": memory}
            return head.apply(variables, method=run, mutable=["loss_state"])

        (loss, updated), gradients = jax.value_and_grad(loss_function, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), updated.get("loss_state", {}), opt_state, loss

    for i in range(steps):
        params, memory, opt_state, loss = step(params, memory, opt_state, *pooled(i))
        if i in (0, steps - 1):
            print(f"{name}: step {i}, loss {loss:.3f}")

    @jax.jit
    def predict(params, pooled):
        return head.apply({"params": params}, pooled, method=lambda head, x: head.scores(head.logits(head.hidden(x))))

    features, labels = pooled(steps)
    scores = np.asarray(predict(params, features))
    right = (scores.argmax(-1) == labels)[(labels >= 0) & (labels < NUM_CLASSES)]
    print(f"{name}: {right.sum()} of {right.size} objects right")
    assert scores.shape == (256, NUM_CLASSES) and right.mean() > 0.8
    return memory


def main() -> None:
    assert train("examples.own_loss:Ldam", {"max_margin": 1.0}) == {}

    memory = train("examples.own_loss:RunningBalance", {"tau": 0.5})["memory"]
    labels = np.concatenate([draw_proposals((256,), i)[1] for i in range(80)])
    np.testing.assert_array_equal(memory["objects"], 1 + np.bincount(labels[labels >= 0])[:NUM_CLASSES])

    REGISTRY["ldam"] = Ldam
    assert isinstance(make_class_loss("ldam", ClassFrequencies(NUM_CLASSES, image_counts=COUNTS)), Ldam)
    del REGISTRY["ldam"]


if __name__ == "__main__":
    main()
