"""A training loop in PyTorch's manner over JAX arrays, with EQL and with EQL v2, which has a memory. No PyTorch needed.

    python examples/porting_torch_style.py

Prints the loss after some steps, and how many fresh objects are recognised.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from eql_jax.class_losses import sigmoid_bias
from eql_jax.losses import (
    eqlv2_init,
    eqlv2_loss,
    eqlv2_scores,
    equalization_loss,
    tail_mask_from_threshold,
)
from examples.made_up_data import COUNTS, EMPTY, NUM_CLASSES, draw_proposals

TAIL = tail_mask_from_threshold(COUNTS / (COUNTS.sum() + EMPTY), 0.05)


class Network:
    """Two linear layers. parameters and grads are dicts of arrays with the same names."""

    def __init__(self, features: int, hidden: int, bias: np.ndarray):
        first, second = jax.random.split(jax.random.key(0))
        self.parameters = {
            "hidden": jax.random.normal(first, (features, hidden)) * (2 / features) ** 0.5,
            "classifier": jax.random.normal(second, (hidden, len(bias))) * 0.01,
            "bias": jnp.asarray(bias),
        }
        self.grads = {}

    @staticmethod
    def forward(parameters, features):
        return jax.nn.relu(features @ parameters["hidden"]) @ parameters["classifier"] + parameters["bias"]


class Momentum:
    """SGD with momentum, as torch.optim.SGD has it."""

    def __init__(self, network: Network, lr: float, momentum: float = 0.9):
        self.network, self.buffers = network, jax.tree.map(jnp.zeros_like, network.parameters)

        @jax.jit
        def update(parameters, buffers, grads):
            buffers = jax.tree.map(lambda b, g: momentum * b + g, buffers, grads)
            return jax.tree.map(lambda p, b: p - lr * b, parameters, buffers), buffers

        self.update = update

    def zero_grad(self):
        self.network.grads = {}

    def step(self):
        self.network.parameters, self.buffers = self.update(self.network.parameters, self.buffers, self.network.grads)


def backward(network: Network, loss_and_grad, *batch):
    """Adds to network.grads. Returns the loss and what the loss function returned besides."""
    (loss, more), gradients = loss_and_grad(network.parameters, *batch)
    network.grads = jax.tree.map(jnp.add, network.grads, gradients) if network.grads else gradients
    return loss, more


def loader(steps: int):
    for step in range(steps):
        yield draw_proposals((256,), seed=step)


# A loss function returns (loss, anything); the gradient is with respect to its first argument.
def eql(parameters, features, labels):
    return equalization_loss(Network.forward(parameters, features), labels, TAIL), None


def eqlv2(parameters, memory, features, labels):
    return eqlv2_loss(Network.forward(parameters, features), labels, memory)


def train_eql(steps: int = 100) -> Network:
    network = Network(32, 64, bias=np.full(NUM_CLASSES, sigmoid_bias(0.001), np.float32))
    optimizer = Momentum(network, lr=0.05)
    loss_and_grad = jax.jit(jax.value_and_grad(eql, has_aux=True))
    for features, labels in loader(steps):
        optimizer.zero_grad()
        loss, _ = backward(network, loss_and_grad, features, labels)
        optimizer.step()
    print(f"EQL: loss {loss:.3f}")
    return network


def train_eqlv2(steps: int = 100):
    # A column more, for objectness: see eqlv2_loss.
    network = Network(32, 64, bias=np.full(NUM_CLASSES + 1, sigmoid_bias(0.001), np.float32))
    optimizer = Momentum(network, lr=0.05)
    loss_and_grad = jax.jit(jax.value_and_grad(eqlv2, has_aux=True))
    memory = eqlv2_init(NUM_CLASSES)
    for features, labels in loader(steps):
        optimizer.zero_grad()
        loss, memory = backward(network, loss_and_grad, memory, features, labels)
        optimizer.step()
    print(f"EQL v2: loss {loss:.3f}; gradients seen, positive / negative:", np.divide(*memory))
    return network, memory


def report(name: str, scores, labels) -> None:
    right = (np.argmax(scores, -1) == labels)[(labels >= 0) & (labels < NUM_CLASSES)]
    print(f"{name}: {right.sum()} of {right.size} objects right")
    assert right.mean() > 0.8


def main() -> None:
    features, labels = draw_proposals((256,), seed=1000)

    network = train_eql()
    forward = jax.jit(Network.forward)
    report("EQL", jax.nn.sigmoid(forward(network.parameters, features)), labels)

    network, memory = train_eqlv2()
    scores = np.asarray(jax.jit(eqlv2_scores)(forward(network.parameters, features)))
    report("EQL v2", scores[..., :NUM_CLASSES], labels)  # the last column is background
    assert np.all(memory.positive) and np.all(memory.negative)


if __name__ == "__main__":
    main()
