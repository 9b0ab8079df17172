"""Losses with memory on eight virtual devices against one: `python -m tests.losses.eight_devices` prints a JSON object.

For every loss, two steps of a linear classifier with a gradient, from rows spread over the devices: under jit over a
mesh, and inside shard_map with axis_name. `error` is the largest difference of loss, gradients and state, relative to
the largest entry of each; `collectives` the kinds in the compiled step.
"""

import json
import os
import re

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.losses.stateful_cases import batch, cases

COLLECTIVES = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
ROWS, FEATURES, STEPS = 64, 5, 2


def error(actual, expected):
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(e)).max() / np.abs(np.asarray(e)).max()) for a, e in pairs)


def check(case, normalizer, ways):
    """{way: {'error', 'collectives'}} of some of 'jit', 'shard_map' and 'shard_map_unchecked'."""
    data = [batch(case, shape=(ROWS,), seed=step) for step in range(STEPS)]
    for _, labels in data:
        labels[:16] = -1  # whole devices without a row that counts, so that counts differ between devices
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    params = {"kernel": rng.normal(size=(FEATURES, case.columns)).astype(np.float32)}

    def step(params, features, offset, labels, state, axis_name=None):
        def loss(params):
            logits = features @ params["kernel"] + offset
            return case.loss(logits, labels, state, axis_name=axis_name, normalizer=normalizer)

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, grads, state

    def device_step(*args):
        value, grads, state = step(*args, axis_name="data")
        return *jax.lax.psum((value, grads), "data"), state

    def checked_step(params, *args):  # varying parameters, or JAX sums the gradients by itself
        return device_step(jax.lax.pcast(params, "data", to="varying"), *args)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, all_devices = PartitionSpec("data"), PartitionSpec()
    specs = (all_devices, rows, rows, rows, all_devices)
    shardings = [NamedSharding(mesh, spec) for spec in specs]

    def mapped(fn, check_vma):
        return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=all_devices, check_vma=check_vma)

    steps = {"jit": step, "shard_map": mapped(checked_step, True), "shard_map_unchecked": mapped(device_step, False)}
    first = (params, features, *data[0], case.state)
    one_device = jax.jit(step)
    result = {}
    for way in ways:
        compiled = jax.jit(steps[way], in_shardings=shardings, out_shardings=shardings[0]).lower(*first).compile()
        expected_state = state = case.state
        errors = []
        for logits, labels in data:
            args = (params, features, logits, labels)
            expected = one_device(*args, expected_state)
            actual = compiled(*jax.device_put((*args, state), tuple(shardings)))
            expected_state, state = expected[-1], actual[-1]
            errors.append(error(actual, expected))
        result[way] = {"error": max(errors), "collectives": re.findall(COLLECTIVES, compiled.as_text())}
    return result


def main():
    assert jax.device_count() == 8
    result = {}
    for name, case in cases().items():
        if name in ("eqlv2", "seesaw", "ecm_counting", "efl"):
            result[f"{name}/rows"] = check(case, None, ("jit", "shard_map", "shard_map_unchecked"))
        if name in ("eqlv2", "seesaw", "ecm", "efl"):
            result[f"{name}/fixed"] = check(case, 50.0, ("jit", "shard_map"))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
