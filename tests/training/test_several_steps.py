"""train.steps_per_call: several steps in one call are those steps, and all else happens when it would anyway."""

import json
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.training import mesh as mesh_lib
from eql_jax.training.errors import NonFiniteLossError
from eql_jax.training.optimizer import make_optimizer
from eql_jax.training.sharding import tree_shardings
from eql_jax.training.state import create_state
from eql_jax.training.train_step import make_train_step
from tests.training import toy


class Classifier(nn.Module):
    """A detector as far as `make_train_step` knows: losses with draws for every image, statistics and a memory."""

    width: int = 8

    @nn.compact
    def losses(self, batch, keys, loss_key):
        noise = jax.vmap(lambda k: jax.random.normal(k, (16,)))(keys) + jax.random.normal(loss_key, (16,))
        x = nn.tanh(nn.Dense(self.width, name="hidden")(batch["x"] + 0.1 * noise))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.width,))
        mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
        logits = nn.Dense(4, name="cls_score")(x - mean.value)
        seen = self.variable("loss_state", "seen", jnp.zeros, (4,))
        seen.value = seen.value + jnp.abs(jax.lax.stop_gradient(logits)).sum(0)
        return {"cls": jnp.mean((logits[:, :3] - batch["y"]) ** 2 / (1 + seen.value[:3])), "box": jnp.mean(logits**2)}


def trained(config, batches, mesh, *, per_call):
    """The state and the metrics [steps] after all batches, one by one or `per_call` in a call."""
    model = Classifier(512 if config.mesh.fsdp else 8)
    first = {k: jnp.asarray(v) for k, v in batches[0].items()}
    keys = jax.random.split(jax.random.key(0), len(first["x"]))
    variables = model.init(jax.random.key(1), first, keys, keys[0], method="losses")
    optimizer = make_optimizer(config, variables["params"]).transform
    state = create_state(variables, optimizer, ema=True)
    shardings = tree_shardings(state, mesh, fsdp=config.mesh.fsdp)
    state = jax.device_put(state, shardings)
    config.train.steps_per_call = per_call
    step = make_train_step(model, optimizer, config, mesh, shardings)
    assert (step.several is None) == (per_call == 1)
    placed, found = [mesh_lib.put_batch(b, mesh) for b in batches], []
    for i in range(0, len(placed), per_call):
        one = placed[i : i + per_call]
        state, metrics = step(state, one[0]) if per_call == 1 else step.several(state, one)
        found.append(jax.tree.map(np.atleast_1d, jax.device_get(metrics)))
    for layer in ("cls_score", "hidden"):
        assert state.params[layer]["kernel"].sharding.is_equivalent_to(shardings.params[layer]["kernel"], 2)
    spread = not shardings.params["hidden"]["kernel"].is_fully_replicated
    assert spread == config.mesh.fsdp
    return jax.device_get(state), jax.tree.map(lambda *m: np.concatenate(m), *found)


@pytest.mark.parametrize("fields, limit", [({}, 1e-6), ({"mesh.fsdp": True, "train.reduce_dtype": "bfloat16"}, 5e-4)])
def test_two_steps_a_call_are_two_steps(fields, limit):
    """On 2 x 2 devices with the classifier spread over two, and with accumulation; also with the state spread over the
    other two and sums of gradients rounded, where a last bit of float32 can be one of bfloat16."""
    config = toy.make_config(**{"train.gradient_accumulation": 2, "mesh.model": 2, **fields})
    mesh = mesh_lib.make_mesh(config)
    batches = [batch for batch, _ in zip(toy.make_batches(0), range(4), strict=False)]
    state, metrics = trained(config, batches, mesh, per_call=1)
    state2, metrics2 = trained(config, batches, mesh, per_call=2)
    assert state.step == state2.step == 4 and metrics["loss"].shape == (4,) and len(set(metrics["loss"])) == 4
    assert state.loss_state["seen"].max() > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=limit, atol=limit), state, state2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=limit, atol=limit), metrics, metrics2)


# ---------------------------------------------------------------------------------------------------- the loop
def lines_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["kind"] == "train"}


def test_saves_evaluations_and_metrics_come_at_their_steps(tmp_path):
    """Of 13 steps with saves every 5 and evaluations every 4, 3 a call where 4, 5, 8, 10 and 12 do not come between."""
    fields = {"train.steps": 13, "eval.every": 4, "checkpoint.keep": 9, "log.every": 1}
    seen = {}

    def run(name, per_call):
        singles, evaluated = [], []

        def wrap(step):
            return lambda state, batch: (singles.append(int(state.step)), step(state, batch))[1]

        def evaluate(state):
            evaluated.append(int(state.step))
            return {"segm/AP": 0.5}

        config = toy.make_config(**fields, **{"train.steps_per_call": per_call})
        result = toy.run(tmp_path / name, config, wrap=wrap, evaluate=evaluate)
        saved = sorted(int(p.name) for p in (tmp_path / name / "checkpoints").iterdir() if p.name.isdigit())
        seen[name] = result.state, singles, evaluated, saved, lines_of(tmp_path / name)

    run("one", 1)
    run("three", 3)
    (state, _, *same, lines), (state3, singles, *same3, lines3) = seen["one"], seen["three"]
    assert singles == [3, 4, 8, 9, 10, 11, 12]
    assert same3 == same == [[4, 8, 12, 13], [4, 5, 8, 10, 12, 13]]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), state, state3)
    assert list(lines3) == list(lines) == list(range(1, 14))
    for step, line in lines.items():
        for key in ("loss", "loss_cls", "grad_norm", "learning_rate"):
            assert lines3[step][key] == pytest.approx(line[key], rel=1e-6)
        assert 0 < lines3[step]["images_per_second"] < 1e8  # a call's time is shared out among its steps


def test_a_step_that_is_not_finite_is_named_within_its_call(tmp_path):
    def batches(start):
        for i, batch in enumerate(toy.make_batches(start), start):
            if i == 6:
                batch["y"][2] = np.nan
            yield batch

    config = toy.make_config(**{"train.steps_per_call": 4, "checkpoint.every": 100})
    with pytest.raises(NonFiniteLossError) as caught:
        toy.run(tmp_path, config, batches=batches)
    ids = ", ".join(str(48 + i) for i in range(8))
    assert "step 7: loss, loss_cls, grad_norm not finite" in str(caught.value)
    assert f"image ids {ids}." in str(caught.value)


def test_a_signal_stops_after_the_call_and_the_rest_is_the_same(tmp_path):
    config = toy.make_config(**{"train.steps_per_call": 4, "checkpoint.every": 100})
    whole = toy.run(tmp_path / "whole", config)
    raised = []

    def batches(start):
        for i, batch in enumerate(toy.make_batches(start), start):
            if i == 5 and not raised:
                raised.append(os.kill(os.getpid(), signal.SIGTERM))
            yield batch

    stopped = toy.run(tmp_path / "parts", config, batches=batches)
    assert stopped.stopped and int(stopped.state.step) % 4 == 0
    resumed = toy.run(tmp_path / "parts", config)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
