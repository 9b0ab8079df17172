"""Classification losses with a memory in the box heads: it moves with every step, whatever the devices and parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from eql_jax.class_losses import ClassFrequencies, ClassLoss, LossInputs
from eql_jax.class_losses.sigmoid import Sigmoid
from eql_jax.models import build_model, init_model
from eql_jax.models.box_head import BoxHead
from eql_jax.models.structures import ClassRules
from eql_jax.training.mesh import make_mesh
from eql_jax.training.state import create_state
from eql_jax.training.train_step import make_train_step
from tests.models.test_cascade import SIZE, near, sampled, truth
from tests.models.test_cascade import example as cascade_example
from tests.models.test_mask_rcnn import K, tiny_batch, tiny_config


@dataclasses.dataclass(frozen=True, eq=False)
class Counting(ClassLoss):
    """Sigmoid cross-entropy that counts the labels it has seen and keeps the last draw of its key."""

    def init_state(self):
        return {"seen": jnp.zeros(self.num_classes + 1, jnp.float32), "draw": jnp.zeros((), jnp.uint32)}

    def loss(self, logits, labels, state, inputs):
        loss, _ = Sigmoid(self.frequencies).loss(logits, labels, {}, inputs)
        seen = jnp.sum(labels[..., None] == jnp.arange(self.num_classes + 1), axis=range(labels.ndim))
        draw = state["draw"] if inputs.key is None else jax.random.bits(inputs.key)
        return loss, {"seen": state["seen"] + seen, "draw": draw}


COUNTING = {"model.box_head.loss": f"{__name__}:Counting"}


def test_the_head_keeps_the_memory_of_its_loss():
    """Made by init, moved on where the collection is mutable, read where it is not, not needed for scores."""
    head = BoxHead(Counting(ClassFrequencies(3)), num_fc=0)
    hidden, labels = jnp.ones((4, 5)), jnp.array([0, 3, -1, 0])
    variables = head.init(jax.random.key(0), jnp.ones((1, 1, 1, 5)))
    assert not np.any(variables["loss_state"]["memory"]["seen"])

    def loss(head):
        return head.classification_loss(head.logits(hidden), labels, LossInputs())

    value, updated = head.apply(variables, method=loss, mutable=["loss_state"])
    assert updated["loss_state"]["memory"]["seen"].tolist() == [2, 0, 0, 1]
    _, again = head.apply(variables | updated, method=loss, mutable=["loss_state"])
    assert again["loss_state"]["memory"]["seen"].tolist() == [4, 0, 0, 2]
    params = {"params": variables["params"]}
    np.testing.assert_array_equal(head.apply(params, method=loss), value)
    assert head.apply(params, method=lambda h: h.scores(h.logits(hidden))).shape == (4, 3)


def test_stages_of_a_cascade_have_a_memory_and_a_key_each():
    model, variables, pyramid, _ = cascade_example()
    config = ConfigDict(model.config)
    config.box_head.loss = COUNTING["model.box_head.loss"]
    model = model.clone(config=FrozenConfigDict(config))
    rng = np.random.default_rng(5)
    gt = truth(rng)
    rois = sampled(near(gt, rng), gt)
    run = lambda key: model.apply(  # noqa: E731
        variables,
        pyramid,
        jnp.asarray(SIZE),
        rois,
        gt,
        ClassRules(key=key),
        method="roi_losses",
        mutable=["loss_state"],
    )
    terms, updated = jax.jit(run)(jax.random.key(3))
    memories = [updated["loss_state"][f"box_head_{i}"]["memory"] for i in range(3)]
    assert len({int(m["draw"]) for m in memories}) == 3
    seen = np.array([m["seen"] for m in memories])
    foreground = [terms["num_foreground"], terms["num_foreground_stage1"], terms["num_foreground_stage2"]]
    np.testing.assert_array_equal(seen[:, :-1].sum(1), foreground)
    assert seen[0].sum() == np.sum(np.asarray(rois.classes) >= 0)


@pytest.mark.slow
def test_the_step_moves_the_memory_on_whatever_the_devices_and_parts():
    """Two steps: the same counts on one device in two parts and on four devices; the draws are the step's."""

    def run(devices, parts):
        config = tiny_config(
            **COUNTING,
            **{"train.gradient_accumulation": parts, "model.backbone.norm": "group_norm", "model.with_mask": False},
        )
        model = build_model(config, K)
        variables = init_model(model, jax.random.key(0, impl="rbg"))
        optimizer = optax.set_to_zero()
        state = create_state(variables, optimizer, ema=False)
        mesh = make_mesh(config, devices=jax.devices()[:devices])
        step = make_train_step(model, optimizer, config, mesh).jitted
        memories = []
        with jax.set_mesh(mesh):
            compiled = step.lower(state, tiny_batch()).compile()
            for seed in range(2):
                state, metrics = compiled(state, tiny_batch(seed=seed))
                memories.append(jax.device_get(state.loss_state["box_head"]["memory"]))
        return memories, float(metrics["num_foreground"])

    in_parts, per_part = run(1, 2)
    spread, foreground = run(4, 1)
    np.testing.assert_allclose(2 * per_part, foreground)  # metrics of parts are averaged
    for a, b in zip(in_parts, spread, strict=True):
        np.testing.assert_array_equal(a["seen"], b["seen"])
    assert 0 < spread[0]["seen"].sum() < spread[1]["seen"].sum()
    assert spread[1]["seen"][:K].sum() - spread[0]["seen"][:K].sum() == foreground
    assert len({int(m["draw"]) for m in in_parts + spread}) == 4
