"""Each kind of model learns: its training step compiles and its loss falls in 20 steps on the embedded data set.

Narrow models on pictures of 64 x 64; where one run shows two kinds (a backbone and heads), it has both.
"""

import jax
import numpy as np
import pytest

from eql_jax.class_losses import ClassFrequencies
from eql_jax.data.pipeline import make_train_iterator
from eql_jax.data.supershapes import ensure_supershapes
from eql_jax.losses import tail_mask_from_letters
from eql_jax.models import build_model, init_model, trainable_mask
from eql_jax.training.inputs import load_training
from eql_jax.training.mesh import make_mesh
from eql_jax.training.optimizer import make_optimizer
from eql_jax.training.state import create_state
from eql_jax.training.train_step import LOSS_TERMS, make_train_step
from tests.models.test_mask_rcnn import C4, CASCADE, tiny_config

CLASSES, SIDE, STEPS, CYCLE = 20, 64, 20, 2
RESNEXT = {"backbone.depth": 50, "backbone.width": 8, "backbone.groups": 4, "backbone.width_per_group": 4}
DEFORMABLE = {"backbone.deform_stages": (5,), "backbone.deform_groups": 2}
SENET = {"backbone.kind": "senet", "backbone.depth": 50, "backbone.width": 8, "backbone.stride_in_1x1": False}
FOUR_CONV_ONE_FC = {"box_head.num_convs": 4, "box_head.num_fc": 1, "box_head.conv_dim": 16}
GROUP_NORM = {"box_head.norm": "group_norm", "mask_head.norm": "group_norm"}
# As in the backbone of tiny_config.
LIVE_NORM = {"box_head.num_convs": 1, "box_head.conv_dim": 16, "box_head.norm": "batch_norm"}
VARIANTS = {
    "cascade_eql": CASCADE,
    "cascade_softmax_resnext_deformable": CASCADE | RESNEXT | DEFORMABLE | {"box_head.loss": "softmax"},
    "c4_eql": C4,
    "group_norm_heads_eql": FOUR_CONV_ONE_FC | GROUP_NORM,
    "boxes_only_sigmoid_senet": SENET | LIVE_NORM | {"with_mask": False, "box_head.loss": "sigmoid"},
}


def make_config(changes, shapes):
    c = tiny_config(**{f"model.{k}": v for k, v in changes.items()})
    c.data.update(
        train_annotations=str(shapes.train_annotations),
        train_images=str(shapes.images),
        frequencies="train_annotations",
        shorter_side=(SIDE,),
        longest_side=SIDE,
        buckets=((SIDE, SIDE),),
        max_objects=12,
        mask_size=28,
        workers=1,
    )
    # Starting scores of .01, not .001: then the classifier's bias does not need most of the 20 steps.
    c.model.box_head.prior = 0.01
    # At first the only foreground are the objects themselves, whose boxes need no refinement; as proposals get better
    # the box loss rises, for longer than 20 steps.
    c.train.loss_weights.box = 0.2
    c.optimizer.update(name="adamw", learning_rate=4e-3, schedule="constant", warmup_steps=0, clip_norm=1.0)
    return c


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Paths of a small embedded data set, made once."""
    folder = tmp_path_factory.mktemp("variants") / "shapes"
    arguments = dict(num_classes=CLASSES, train_images=32, val_images=3, image_size=SIDE, seed=0)
    return ensure_supershapes(folder, workers=1, progress=False, **arguments)


def batches_of(config):
    """The first batches of training, as the step takes them, and the tail mask of EQL."""
    annotations, statistics = load_training(config)
    iterator = make_train_iterator(annotations, config)
    found = [next(iterator) for _ in range(CYCLE)]
    iterator.close()
    for batch in found:
        del batch["original_size"]
        batch["image_id"] = batch["image_id"].astype(np.uint32)
    return found, tail_mask_from_letters(statistics.frequencies, "rc")


def compiled(jitted, *args):
    """Compiled for `args` without optimisations, which take most of the time and are worth nothing in 20 steps."""
    return jitted.lower(*args).compile(compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_falls(name, shapes):
    config = make_config(VARIANTS[name], shapes)
    batches, tail = batches_of(config)
    model = build_model(config, CLASSES, ClassFrequencies(CLASSES, tail=tail))
    key = jax.random.key(0, impl="rbg")  # compiles in a fifth of the time
    variables = compiled(jax.jit(lambda key: init_model(model, key)), key)(key)
    params = variables["params"]
    optimizer = make_optimizer(config, params, trainable=trainable_mask(params, config)).transform
    state = create_state(variables, optimizer, ema=False)
    mesh = make_mesh(config, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        step = compiled(make_train_step(model, optimizer, config, mesh).jitted, state, batches[0])

    losses = []
    for i in range(STEPS):
        state, metrics = step(state, batches[i % CYCLE])
        losses.append({k: float(v) for k, v in metrics.items()})
    terms = [term for term in LOSS_TERMS if term != "mask" or config.model.with_mask]
    assert {k for k in losses[0] if k.startswith("loss_")} == {f"loss_{term}" for term in terms}
    assert all(np.isfinite(v) for metrics in losses for v in metrics.values())
    assert losses[0]["num_foreground"] > 0
    total = [metrics["loss"] for metrics in losses]
    weighted = sum(config.train.loss_weights[term] * losses[0][f"loss_{term}"] for term in terms)
    np.testing.assert_allclose(total[0], weighted, rtol=1e-5)
    assert np.mean(total[-5:]) < 0.9 * np.mean(total[:5]), total
