"""EQL in somebody else's detection head in Flax Linen, whose labels, padding and scores stay as they are.

    python examples/porting_linen.py

Shapes: B images, R proposals of each, K classes. Theirs: labels 0 background and 1..K; weights 0 for empty slots;
scores [..., K + 1], background first.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eql_jax.class_losses import sigmoid_bias
from eql_jax.losses import equalization_loss, tail_mask_from_threshold
from examples.made_up_data import COUNTS, EMPTY, NUM_CLASSES, draw_proposals

IMAGES, PROPOSALS = 4, 64


# ------------------------------------------------------------------------------------------------ theirs
class TheirHead(nn.Module):
    """Features [B, R, F] -> logits [B, R, K + 1], background first."""

    num_classes: int

    @nn.compact
    def __call__(self, features):
        x = nn.relu(nn.Dense(64)(features))
        return nn.Dense(1 + self.num_classes, name="classifier")(x)


def their_loss(logits, labels, weights):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(weights * losses) / jnp.maximum(jnp.sum(weights), 1)


def their_scores(logits):
    return jax.nn.softmax(logits)


def their_detections(scores):
    """Scores [..., K + 1] -> best label 1..K and its score; background is not looked at."""
    return 1 + np.argmax(scores[..., 1:], axis=-1), np.max(scores[..., 1:], axis=-1)


def their_batch(seed):
    """features [B, R, F], labels [B, R], weights [B, R]."""
    features, classes = draw_proposals((IMAGES, PROPOSALS), seed)
    labels = np.where(classes < 0, 0, (classes + 1) % (NUM_CLASSES + 1))  # what an empty slot holds is anything
    return features, labels, (classes >= 0).astype(np.float32)


# ------------------------------------------------------------------------------------------------ with EQL
class EqlHead(nn.Module):
    """Features [B, R, F] -> logits [B, R, K], one sigmoid per class."""

    num_classes: int
    prior: float = 0.001

    @nn.compact
    def __call__(self, features):
        x = nn.relu(nn.Dense(64)(features))
        return nn.Dense(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(sigmoid_bias(self.prior)),
            name="classifier",
        )(x)


def eql_loss(logits, labels, weights, tail):
    num_classes = logits.shape[-1]
    ours = (labels - 1) % (num_classes + 1)  # 1..K become 0..K-1, and 0 becomes K
    return equalization_loss(logits, jnp.where(weights > 0, ours, -1), tail)


def eql_scores(logits):
    background = jnp.zeros_like(logits[..., :1])  # nobody looks at it, but the column must be there
    return jnp.concatenate([background, jax.nn.sigmoid(logits)], axis=-1)


def train(head, loss_function, steps=80):
    params = jax.jit(head.init)(jax.random.key(0), their_batch(0)[0])
    optimizer = optax.adam(1e-2)
    opt_state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params, opt_state, features, labels, weights):
        loss, gradients = jax.value_and_grad(lambda p: loss_function(head.apply(p, features), labels, weights))(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    for i in range(steps):
        params, opt_state, loss = step(params, opt_state, *their_batch(i))
        if i in (0, steps - 1):
            print(f"{type(head).__name__}: step {i}, loss {loss:.3f}")
    return params


@jax.jit
def their_sigmoid_loss(logits, labels, weights):
    targets = jax.nn.one_hot(labels, NUM_CLASSES + 1)[..., 1:]
    return jnp.sum(weights[..., None] * optax.sigmoid_binary_cross_entropy(logits, targets)) / jnp.sum(weights)


def check_mapping(tail) -> None:
    """EQL without a tail is sigmoid cross-entropy in their own terms, and the gradient goes where it should."""
    _, labels, weights = their_batch(0)
    logits = np.random.default_rng(0).normal(size=(*labels.shape, NUM_CLASSES)).astype(np.float32)
    loss_and_grad = jax.jit(jax.value_and_grad(eql_loss))
    loss, _ = loss_and_grad(logits, labels, weights, np.zeros_like(tail))
    np.testing.assert_allclose(loss, their_sigmoid_loss(logits, labels, weights), rtol=1e-5)

    gradient = np.asarray(loss_and_grad(logits, labels, weights, tail)[1])
    frequent = np.append(False, ~tail)[labels] & (weights > 0)
    assert (gradient[weights == 0] == 0).all()
    assert (gradient[frequent][:, tail] == 0).all()
    assert (gradient[(labels == 0) & (weights > 0)] > 0).all()


def train_and_check(head, loss_function, scores) -> None:
    params = train(head, loss_function)
    features, labels, weights = their_batch(1000)
    found, score = their_detections(jax.jit(lambda: scores(head.apply(params, features)))())
    objects = (weights > 0) & (labels > 0)
    right = (found == labels)[objects]
    print(f"{type(head).__name__}: {right.sum()} of {right.size} objects right")
    assert right.mean() > 0.8 and score[objects].mean() > score[~objects].mean()


def main() -> None:
    tail = tail_mask_from_threshold(COUNTS / (COUNTS.sum() + EMPTY), 0.05)
    check_mapping(tail)
    train_and_check(TheirHead(NUM_CLASSES), their_loss, their_scores)
    train_and_check(EqlHead(NUM_CLASSES), lambda *batch: eql_loss(*batch, tail), eql_scores)


if __name__ == "__main__":
    main()
