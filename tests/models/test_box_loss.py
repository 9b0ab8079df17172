"""config.model.box_head.box_loss: the model's box losses are detectron2's, in every architecture."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from eql_jax.models import build_model
from eql_jax.models.mask_rcnn import BOX_WEIGHTS
from eql_jax.models.targets import GroundTruth, RoITargets
from eql_jax.ops import encode_boxes
from eql_jax.training import config as config_lib
from eql_jax.training.errors import ConfigError
from tests.models.golden import VARIANTS, read_group
from tests.models.test_options import C4, CASCADE, make_config, trace

ALTERNATIVES = {
    "l1": ("smooth_l1", 0.0),
    "smooth_l1_beta0.1": ("smooth_l1", 0.1),
    "smooth_l1_beta1": ("smooth_l1", 1.0),
    "giou": ("giou", 0.0),
    "diou": ("diou", 0.0),
    "ciou": ("ciou", 0.0),
}


@pytest.fixture(scope="module")
def recorded():
    """Deltas of the foreground, its mask [2,R], the RoIs and the objects of a recorded step of detectron2."""
    a = read_group(VARIANTS / "training.npz", "mask_rcnn_r50_softmax_agnostic")
    stack = lambda name: np.stack([a[f"{name}{i}"] for i in range(2)])  # noqa: E731
    classes, boxes, objects = stack("roi_gt_classes").astype(np.int32), stack("roi_boxes"), stack("gt_boxes")
    foreground = np.arange(classes.shape[1]) < a["num_fg"][:, None]
    matched = np.where(foreground, (stack("roi_gt_boxes")[:, :, None] == objects[:, None]).all(-1).argmax(-1), 0)
    truth = np.take_along_axis(objects, matched[..., None], 1)
    targets = np.asarray(encode_boxes(truth, boxes, weights=BOX_WEIGHTS))
    return a, foreground, RoITargets(boxes, classes, matched, targets), objects


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_box_losses_of_detectron2(recorded, name):
    """Values and gradients; background rows hold rubbish, which reaches nothing."""
    a, foreground, rois, objects = recorded
    config = base.get_config()
    config.model.box_head.box_loss, config.model.box_head.box_loss_beta = ALTERNATIVES[name]
    model = build_model(config, 12)
    gt = GroundTruth(jnp.asarray(objects), jnp.zeros(objects.shape[:2], jnp.int32), None, None)

    def loss(own):
        deltas = jnp.full((*foreground.shape, 4), 1e3).at[np.nonzero(foreground)].set(own)
        count = jnp.sum(rois.classes >= 0)
        return model.box_loss(deltas, rois, gt, jnp.asarray(foreground), weights=BOX_WEIGHTS, normalizer=count)

    found, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(a["box_deltas_fg"]))
    assert float(found) == pytest.approx(float(a[f"alt/loss_box_reg_{name}"]), rel=1e-5)
    expected = a[f"alt/d_loss_box_reg_{name}_d_deltas_fg"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("changes", "heads"), [({}, 1), (CASCADE, 3), (C4, 1)], ids=["fpn", "cascade", "c4"])
def test_every_head_uses_it(changes, heads):
    """Each head hands over as many deltas as slots, the weights that its deltas have, and the ground truth."""
    seen = []

    def look(next_fun, args, kwargs, context):
        if context.method_name == "box_loss":
            seen.append((args[0].shape, args[1].boxes.shape, args[2].boxes.shape, kwargs["weights"]))
            assert context.module.config.box_head.box_loss == "ciou"
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(look):
        _, _, terms = trace(changes | {"box_head.box_loss": "ciou"})
    slots = 8 if heads > 1 else 2  # of 8 RoIs a quarter may be foreground; later stages look at all
    weights = [(w, w, w / 2, w / 2) for w in (10.0, 20.0, 30.0)]
    assert seen == [((2, slots, 4), (2, slots, 4), (2, 3, 4), weights[stage]) for stage in range(heads)]
    assert terms["box"].shape == ()


def test_faults_in_the_config():
    config = make_config({"box_head.box_loss": "giou", "box_head.box_loss_beta": 0.5})
    with pytest.raises(ConfigError, match="box_loss_beta is 0.5, which goes with .* 'smooth_l1'"):
        config_lib.validate(config, base=base.get_config())
    config = make_config({"box_head.box_loss": "gIoU"})
    with pytest.raises(ConfigError, match=r"model.box_head.box_loss is 'gIoU'; expected one of 'smooth_l1', 'giou'"):
        config_lib.validate(config, base=base.get_config())
