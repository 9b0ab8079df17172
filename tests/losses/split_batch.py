"""Losses without memory on eight virtual devices against one: `python -m tests.losses.split_batch` prints JSON.

{loss: largest difference of value and gradient, relative to the largest entry, over some batches}. The rows are spread
over the devices; the losses that draw do so from one key. Both kinds of step are one compilation for all losses.
"""

import json
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from eql_jax import losses
from tests.losses.every_loss import Case, every_loss, known

K, ROWS, BATCHES = 6, 32, 8


def cases(key):
    about = known(K)
    groups = losses.class_groups(about["counts"], bin_split=(3, 30))

    def seql(z, y):
        return losses.softmax_equalization_loss(z, y, about["tail"], key=key, gamma=0.7)

    def federated(z, y):
        return losses.federated_loss(z, y, losses.federated_classes(key, y, about["counts"], num_classes=4))

    def group_softmax(z, y):
        return losses.group_softmax_loss(z, y, groups, key=key, others_ratio=1.0)

    return every_loss(K) | {
        "seql_drawn": Case(seql, K, K - 1),
        "federated_drawn": Case(federated, K, K),
        "group_softmax_drawn": Case(group_softmax, groups.num_logits, K),
    }


def step(key, logits, labels):
    return {name: jax.value_and_grad(case.loss)(logits[name], labels[name]) for name, case in cases(key).items()}


def batch(seed):
    rng = np.random.default_rng(seed)
    logits, labels = {}, {}
    for name, case in cases(jax.random.key(0)).items():
        logits[name] = (4 * rng.normal(size=(ROWS, case.columns))).astype(np.float32)
        labels[name] = rng.integers(-1, case.last_label + 1, ROWS)
        labels[name][:8] = -1  # devices without a row that counts, so that counts differ between devices
    if seed == 1:
        labels = {name: np.full(ROWS, cases(None)[name].last_label) for name in labels}
    return logits, labels


def difference(actual, expected):
    pairs = [(np.asarray(a), np.asarray(e)) for a, e in zip(actual, expected, strict=True)]
    return max(float(np.abs(a - e).max() / max(np.abs(e).max(), 1e-30)) for a, e in pairs)


def main():
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    split, whole = jax.jit(step, in_shardings=(everywhere, rows, rows)), jax.jit(step)
    worst = {}
    for seed in range(BATCHES):
        key, data = jax.random.key(seed), batch(seed)
        actual, expected = split(key, *data), whole(key, *data)
        for name in expected:
            worst[name] = max(worst.get(name, 0.0), difference(actual[name], expected[name]))
    print(json.dumps(worst))


if __name__ == "__main__":
    main()
