"""One step of training: losses, gradients, update; jitted over a mesh of devices.

Shapes: B images of the global batch (sharded over the mesh's 'data' axis), K foreground classes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from eql_jax.models import MaskRCNN
from eql_jax.training.optimizer import update_ema
from eql_jax.training.sharding import whole_over_data
from eql_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
NO_IMAGE = 2**32 - 1  # the id of rows without an image, see mesh.put_batch
LOSS_TERMS = ("rpn_cls", "rpn_box", "cls", "box", "mask")  # the last only of models with a mask head


def image_keys(seed: ArrayLike, step: jax.Array, image_id: jax.Array) -> jax.Array:
    """PRNG keys [B] that depend on the seed, the step and each image's id alone, whatever the devices and hosts."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(image_id.astype(jnp.uint32))


def step_key(seed: ArrayLike, step: jax.Array) -> jax.Array:
    """The PRNG key of a step for draws that are not an image's, the same on all devices; none of `image_keys`."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.fold_in(jax.random.fold_in(key, NO_IMAGE), 0)


def make_train_step(
    model: MaskRCNN,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
    shardings: Any = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Returns the jitted step(state, batch) -> (state, metrics); `state` is donated.

    Its attribute `several` is the same for train.steps_per_call steps in one call, several(state, batches) -> (state,
    metrics): batches of one shape, as many as steps; of every metric [steps]. None where that is 1.

    Args:
      model: the detector.
      optimizer: an optax transformation over state.params.
      config: the whole configuration; seed, train and optimizer.ema_decay are read.
      mesh: axes 'data' and 'model'; the batch is sharded over the first.
      shardings: a TrainState of shardings, from `sharding.tree_shardings`, which spreads classifiers over the second
        axis and, with fsdp, all parameters over the first. None: all of the state on every device.

    Metrics are float32 scalars: loss (the weighted sum), loss_<term> for each of LOSS_TERMS that the model has,
    grad_norm, num_positive_anchors and num_foreground; of a cascade also cls_stage0, box_stage0 and so on.

    With train.gradient_accumulation = n the batch is run in n parts (rows i, i + n, ..., so that every part is spread
    over all devices) and the parts' gradients are averaged: each part divides by its own counts, and live BatchNorm and
    losses with a memory see one part at a time.

    With train.reduce_dtype = 'bfloat16' gradients are rounded to bfloat16 where the devices' are summed.

    Raises:
      ValueError: the batch does not divide by the devices and the accumulation.
    """
    parts = config.train.gradient_accumulation
    devices = mesh.shape["data"]
    if config.train.batch_size % (parts * devices):
        raise ValueError(
            f"train.batch_size is {config.train.batch_size}; expected a multiple of train.gradient_accumulation "
            f"({parts}) times the devices on the mesh's data axis ({devices})"
        )
    weights = dict(config.train.loss_weights)
    ema_decay = config.optimizer.ema_decay
    half = config.train.reduce_dtype == "bfloat16"

    def loss_fn(params, memory, batch, keys, loss_key):
        terms, updates = model.apply(
            {"params": params, **memory}, batch, keys, loss_key, method="losses", mutable=list(memory)
        )
        loss = sum(weights[name] * terms[name] for name in LOSS_TERMS if name in terms)
        metrics = {"loss": loss} | {(f"loss_{k}" if k in LOSS_TERMS else k): v for k, v in terms.items()}
        return loss, (metrics, memory | updates)

    def gradients(params, memory, batch, keys, loss_key):
        (_, (metrics, memory)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, memory, batch, keys, loss_key)
        return summed(grads), metrics, memory

    placed_params = None if shardings is None else shardings.params
    whole_params = None if shardings is None else whole_over_data(placed_params)
    fsdp = placed_params != whole_params

    def summed(grads):
        # A sum over devices that is only read as bfloat16 is formed in bfloat16 by the TPU's compiler; the barrier
        # keeps others from leaving out the rounding.
        if half:
            grads = jax.lax.optimization_barrier(jax.tree.map(lambda g: g.astype(jnp.bfloat16), grads))
        if fsdp:  # each device gets the sum of its part
            grads = jax.lax.with_sharding_constraint(grads, placed_params)
        return jax.tree.map(lambda g: g.astype(jnp.float32), grads) if half else grads

    def accumulated(params, memory, batch, keys, loss_key):
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), (batch, keys))
        zeros = jax.tree.map(jnp.zeros_like, params)

        def body(carry, one):
            memory, total = carry
            grads, metrics, memory = gradients(params, memory, *one)
            return (memory, jax.tree.map(lambda t, g: t + g / parts, total, grads)), metrics

        (memory, grads), metrics = jax.lax.scan(body, (memory, zeros), (*split, jax.random.split(loss_key, parts)))
        return grads, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics), memory

    def step(state: TrainState, batch: dict[str, jax.Array], seed: ArrayLike) -> tuple[TrainState, Metrics]:
        keys, loss_key = image_keys(seed, state.step, batch["image_id"]), step_key(seed, state.step)
        memory = {"batch_stats": state.batch_stats, "loss_state": state.loss_state}
        run = gradients if parts == 1 else accumulated
        params = jax.lax.with_sharding_constraint(state.params, whole_params) if fsdp else state.params
        grads, metrics, memory = run(params, memory, batch, keys, loss_key)
        metrics["grad_norm"] = optax.global_norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = update_ema(state.ema_params, params, decay=ema_decay)
        state = TrainState(state.step + 1, params, opt_state=opt_state, ema_params=ema_params, **memory)
        return state, metrics

    def steps(
        state: TrainState, batches: Sequence[dict[str, jax.Array]], seed: ArrayLike
    ) -> tuple[TrainState, Metrics]:
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
        return jax.lax.scan(lambda state, batch: step(state, batch, seed), state, stacked)

    replicated, by_image = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    placed = replicated if shardings is None else shardings
    options = dict(out_shardings=(placed, replicated), donate_argnums=0)
    # The seed is an argument, so that runs of other seeds find the programme in the compile cache.
    seeded = jax.jit(step, in_shardings=(placed, by_image, replicated), **options)
    several = jax.jit(steps, in_shardings=(placed, by_image, replicated), **options)
    seed = np.uint32(config.seed)

    def run_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return seeded(state, batch, seed)

    def run_several(state: TrainState, batches: Sequence[dict[str, jax.Array]]) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return several(state, tuple(batches), seed)

    # For ahead-of-time compilation: the same programmes but for the seed, which is a constant in them.
    for run, function in ((run_step, step), (run_several, steps)):
        of_this_seed = functools.partial(function, seed=seed)
        run.jitted = jax.jit(of_this_seed, in_shardings=(placed, by_image), **options)
    run_step.several = run_several if config.train.steps_per_call > 1 else None
    return run_step
