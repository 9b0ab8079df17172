"""The classifier of porting_nnx_before.py with the equalization loss. `diff` of the two files shows all that changes.

    python examples/porting_nnx.py

Prints the loss, and how many fresh pictures of each class are recognised; checks whom the gradient reaches.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import optax
from flax import nnx

from eql_jax.class_losses import sigmoid_bias
from eql_jax.losses import equalization_loss, softmax_equalization_loss, tail_mask_from_threshold
from examples.made_up_data import COUNTS, EMPTY, NUM_CLASSES, draw_pictures

TAIL = tail_mask_from_threshold(COUNTS / (COUNTS.sum() + EMPTY), 0.05)  # bool [K]: classes in less than 5 % of pictures


class Classifier(nnx.Module):
    """Two convolutions, the maximum over the picture, and a linear layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, (6, 6), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(32, 32, (3, 3), strides=2, rngs=rngs)
        self.classifier = nnx.Linear(
            32,
            NUM_CLASSES,
            kernel_init=nnx.initializers.normal(0.01),
            bias_init=nnx.initializers.constant(sigmoid_bias(0.01)),
            rngs=rngs,
        )

    def __call__(self, images):
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        return self.classifier(x.max(axis=(1, 2)))


def loss_function(model, images, labels):
    logits = model(images)
    return equalization_loss(logits, labels, TAIL)


@nnx.jit
def scores(model, images):
    """Probabilities [N, K] of the classes."""
    return jax.nn.sigmoid(model(images))


@nnx.jit
def train_step(model, optimizer, images, labels):
    loss, gradients = nnx.value_and_grad(loss_function)(model, images, labels)
    optimizer.update(model, gradients)
    return loss


def loss_without_empty_pictures(logits, labels, key):
    return softmax_equalization_loss(logits, labels, TAIL, key=key, gamma=0.9)


def check_gradients(model, images, labels) -> None:
    """Pictures of frequent classes push no tail class down; pictures of nothing push every class down."""
    logits = nnx.jit(Classifier.__call__)(model, images)
    gradient = np.asarray(jax.jit(jax.grad(equalization_loss))(logits, labels, TAIL))
    frequent = np.append(~TAIL, False)[labels]
    assert (gradient[frequent][:, TAIL] == 0).all()
    assert (gradient[labels == NUM_CLASSES] > 0).all()

    # Without empty pictures: a tenth of these negatives remains, drawn anew in each step.
    labels = np.where(labels < NUM_CLASSES, labels, -1)
    gradient = np.asarray(jax.jit(jax.grad(loss_without_empty_pictures))(logits, labels, jax.random.key(0)))
    remaining = np.mean(gradient[frequent][:, TAIL] != 0)
    assert 0.05 < remaining < 0.15, remaining


def main(steps: int = 200) -> None:
    images, labels = draw_pictures(COUNTS, EMPTY, seed=0)
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(5e-3), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    for step in range(steps):
        rows = rng.choice(len(labels), 64)
        loss = train_step(model, optimizer, images[rows], labels[rows])
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss:.3f}")

    check_gradients(model, images, labels)
    images, labels = draw_pictures(np.full(NUM_CLASSES, 50), 0, seed=1)
    right = np.argmax(scores(model, images), axis=1) == labels
    print("right of 50 pictures per class:", [int(right[labels == k].sum()) for k in range(NUM_CLASSES)])


if __name__ == "__main__":
    main()
