"""A linear regression with the interfaces of the real model, to test the loop; as a script it trains a workdir.

python tests/training/toy.py WORKDIR STEPS KILL_AT SIGNAL  trains and sends itself SIGNAL after KILL_AT updates.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base
from eql_jax.training import mesh as mesh_lib
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.compatibility import Classes
from eql_jax.training.loop import train
from eql_jax.training.metrics import MetricWriter
from eql_jax.training.optimizer import make_optimizer, update_ema
from eql_jax.training.state import create_state

CLASSES = Classes(ids=(3, 5), names=("cat", "dog"), letters=("r", "f"))


def make_config(**fields):
    """The base config for a toy run; `fields` are 'a.b' keys."""
    config = base.get_config()
    values = {
        "train.steps": 12,
        "train.batch_size": 8,
        "checkpoint.every": 5,
        "eval.every": 0,
        "log.every": 2,
        "log.tensorboard": False,
        "optimizer.learning_rate": 0.05,
        "optimizer.warmup_steps": 0,
        "optimizer.ema_decay": 0.9,
        "optimizer.groups": (),
    }
    config.update_from_flattened_dict(values | fields)
    return config


def make_batches(start, *, rows=8):
    """Endless batches that depend on the step alone."""
    step = start
    while True:
        rng = np.random.default_rng(step)
        x = rng.normal(size=(rows, 16)).astype(np.float32)
        y = x @ np.linspace(-1, 1, 48, dtype=np.float32).reshape(16, 3)
        yield {
            "x": x,
            "y": y,
            "image_id": step * rows + np.arange(rows),
            "original_size": np.zeros((rows, 2), np.int32),
        }
        step += 1


def make_state(config, optimizer):
    params = {"dense": {"kernel": jnp.zeros((16, 3)), "bias": jnp.zeros(3)}, "frozen": {"kernel": jnp.ones((2, 2))}}
    variables = {"params": params, "batch_stats": {"bn": {"mean": jnp.zeros(3)}}}
    variables["loss_state"] = {"head": {"memory": {"seen": jnp.zeros(3)}}}
    return create_state(variables, optimizer, ema=config.optimizer.ema_decay > 0)


def make_step(config, optimizer, mesh):
    """step(state, batch) -> (state, metrics) and the same for tuples of batches, jitted over the mesh with donated
    state; noise from (seed, step)."""

    def loss_function(params, batch, key):
        noise = 0.1 * jax.random.normal(key, batch["y"].shape)
        return jnp.mean((batch["x"] @ params["dense"]["kernel"] + params["dense"]["bias"] - batch["y"] + noise) ** 2)

    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        loss, grads = jax.value_and_grad(loss_function)(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        mean = 0.9 * state.batch_stats["bn"]["mean"] + 0.1 * batch["y"].mean(0)
        state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats={"bn": {"mean": mean}},
            loss_state=jax.tree.map(lambda seen: seen + batch["y"].sum(0), state.loss_state),
            opt_state=opt_state,
            ema_params=update_ema(state.ema_params, params, decay=config.optimizer.ema_decay),
        )
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        return state, {"loss": loss, "loss_cls": loss / 2, "grad_norm": norm}

    def several(state, batches):
        return jax.lax.scan(step, state, jax.tree.map(lambda *x: jnp.stack(x), *batches))

    replicated = mesh_lib.replicated(mesh)
    options = dict(in_shardings=(replicated, mesh_lib.batch_sharding(mesh)), out_shardings=replicated)
    return tuple(jax.jit(f, donate_argnums=0, **options) for f in (step, several))


def fresh_state(config, mesh):
    """A state at step 0 on the mesh, and the optimizer's transformation and schedule."""
    shapes = {"dense": {"kernel": 0, "bias": 0}, "frozen": {"kernel": 0}}
    trainable = {"dense": {"kernel": True, "bias": True}, "frozen": {"kernel": False}}
    optimizer = make_optimizer(config, shapes, trainable=trainable)
    state = jax.jit(lambda: make_state(config, optimizer.transform), out_shardings=mesh_lib.replicated(mesh))()
    return state, optimizer


def run(workdir, config, *, wrap=lambda step: step, batches=make_batches, evaluate=None, classes=CLASSES):
    """Trains or resumes in `workdir` as train.py does; `wrap` changes the function of one step."""
    Path(workdir).mkdir(parents=True, exist_ok=True)
    mesh = mesh_lib.make_mesh(config)
    state, optimizer = fresh_state(config, mesh)
    with Checkpoints(workdir, config, classes) as checkpoints:
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(state)
        one, several = make_step(config, optimizer.transform, mesh)
        with MetricWriter(workdir, config, start_step=int(state.step), enabled=jax.process_index() == 0) as writer:
            return train(
                state=state,
                step_function=wrap(one),
                several_steps=lambda state, batches: several(state, tuple(batches)),
                make_batches=batches,
                config=config,
                mesh=mesh,
                checkpoints=checkpoints,
                writer=writer,
                schedule=optimizer.schedule,
                evaluate=evaluate,
            )


def after_updates(count, action):
    """A `wrap` for `run`: calls `action()` when the state has had `count` updates, before the next."""

    def wrap(step):
        def wrapped(state, batch):
            if int(state.step) == count:
                action()
            return step(state, batch)

        return wrapped

    return wrap


if __name__ == "__main__":
    workdir, steps, kill_at, number = sys.argv[1], *map(int, sys.argv[2:])
    wrap = after_updates(kill_at, lambda: os.kill(os.getpid(), number))
    run(workdir, make_config(**{"train.steps": steps}), wrap=wrap)
