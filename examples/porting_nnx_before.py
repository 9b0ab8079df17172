"""A plain image classifier in Flax NNX, softmax over K classes and 'nothing': what porting_nnx.py starts from.

    python examples/porting_nnx_before.py

Prints the loss, and how many fresh pictures of each class are recognised.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import optax
from flax import nnx

from examples.made_up_data import COUNTS, EMPTY, NUM_CLASSES, draw_pictures


class Classifier(nnx.Module):
    """Two convolutions, the maximum over the picture, and a linear layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 32, (6, 6), padding="VALID", rngs=rngs)
        self.conv2 = nnx.Conv(32, 32, (3, 3), strides=2, rngs=rngs)
        self.classifier = nnx.Linear(32, NUM_CLASSES + 1, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.conv1(images))
        x = nnx.relu(self.conv2(x))
        return self.classifier(x.max(axis=(1, 2)))


def loss_function(model, images, labels):
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@nnx.jit
def scores(model, images):
    """Probabilities [N, K] of the classes."""
    return jax.nn.softmax(model(images))[:, :NUM_CLASSES]


@nnx.jit
def train_step(model, optimizer, images, labels):
    loss, gradients = nnx.value_and_grad(loss_function)(model, images, labels)
    optimizer.update(model, gradients)
    return loss


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

    images, labels = draw_pictures(np.full(NUM_CLASSES, 50), 0, seed=1)
    right = np.argmax(scores(model, images), axis=1) == labels
    print("right of 50 pictures per class:", [int(right[labels == k].sum()) for k in range(NUM_CLASSES)])


if __name__ == "__main__":
    main()
