"""One step of training: losses, gradients, update; jitted over a mesh of devices.

Shapes: B images of the global batch (sharded over the mesh's 'data' axis), K foreground classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from eql_jax.models import MaskRCNN
from eql_jax.training.optimizer import update_ema
from eql_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
LOSS_TERMS = ("rpn_cls", "rpn_box", "cls", "box", "mask")  # the last only of models with a mask head


def image_keys(seed: int, step: jax.Array, image_id: jax.Array) -> jax.Array:
    """PRNG keys [B] that depend on the seed, the step and each image's id alone, whatever the devices and hosts."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(image_id.astype(jnp.uint32))


def make_train_step(
    model: MaskRCNN,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    tail_mask: np.ndarray,
    mesh: Mesh,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Returns the jitted step(state, batch) -> (state, metrics); `state` is donated.

    Args:
      model: the detector.
      optimizer: an optax transformation over state.params.
      config: the whole configuration; seed, train and optimizer.ema_decay are read.
      tail_mask: bool (the faster) or float [K], T(f) of the equalization loss; read by that loss only.
      mesh: axes 'data' and 'model'; the batch is sharded over the first, everything else replicated.

    Metrics are float32 scalars: loss (the weighted sum), loss_<term> for each of LOSS_TERMS that the model has,
    grad_norm, num_positive_anchors and num_foreground; of a cascade also cls_stage0, box_stage0 and so on.

    With train.gradient_accumulation = n the batch is run in n parts (rows i, i + n, ..., so that every part is spread
    over all devices) and the parts' gradients are averaged: each part divides by its own counts, and live BatchNorm
    sees one part at a time.

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
    tail_mask = np.asarray(tail_mask)

    def loss_fn(params, batch_stats, batch, keys):
        terms, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch,
            keys,
            jnp.asarray(tail_mask),
            method="losses",
            mutable=["batch_stats"],
        )
        loss = sum(weights[name] * terms[name] for name in LOSS_TERMS if name in terms)
        metrics = {"loss": loss} | {(f"loss_{k}" if k in LOSS_TERMS else k): v for k, v in terms.items()}
        return loss, (metrics, updates.get("batch_stats", batch_stats))

    def gradients(params, batch_stats, batch, keys):
        (_, (metrics, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch_stats, batch, keys)
        return grads, metrics, batch_stats

    def accumulated(params, batch_stats, batch, keys):
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), (batch, keys))
        zeros = jax.tree.map(jnp.zeros_like, params)

        def body(carry, one):
            batch_stats, total = carry
            grads, metrics, batch_stats = gradients(params, batch_stats, *one)
            return (batch_stats, jax.tree.map(lambda t, g: t + g / parts, total, grads)), metrics

        (batch_stats, grads), metrics = jax.lax.scan(body, (batch_stats, zeros), split)
        return grads, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics), batch_stats

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        keys = image_keys(config.seed, state.step, batch["image_id"])
        run = gradients if parts == 1 else accumulated
        grads, metrics, batch_stats = run(state.params, state.batch_stats, batch, keys)
        metrics["grad_norm"] = optax.global_norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = update_ema(state.ema_params, params, decay=ema_decay)
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema_params), metrics

    replicated, by_image = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    jitted = jax.jit(
        step, in_shardings=(replicated, by_image), out_shardings=(replicated, replicated), donate_argnums=0
    )

    def run_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):
            return jitted(state, batch)

    run_step.jitted = jitted  # for ahead-of-time compilation
    return run_step
