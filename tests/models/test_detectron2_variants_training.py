"""A training step of the variants with detectron2's weights and samples gives detectron2's losses and gradients.

Two images, one of which is a photograph and is not kept: both are taken up from the recorded res2, below which nothing
is trained. See tests/testdata/README.md and test_detectron2_training.py.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.losses import sigmoid_cross_entropy_loss, smooth_l1, softmax_cross_entropy_loss
from eql_jax.models.mask_rcnn import BOX_WEIGHTS
from eql_jax.ops import encode_boxes
from tests.models.golden import VARIANTS, load_variant, read_group
from tests.models.training_checks import compare_step


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mask_rcnn_r50_softmax_agnostic", "cascade_mask_rcnn_r50", "cascade_mask_rcnn_r50_eql"]
)
def test_losses_and_gradients(name):
    """Losses to 1e-5; gradients to 1e-4 of the largest entry (mask head 3e-4); norms where entries are not recorded."""
    golden = load_variant(name, "training")
    a = golden.arrays
    expected = {key.removeprefix("grad/"): value for key, value in a.items() if key.startswith("grad/")}
    norms = json.loads(str(a["grad_norms"]))
    losses, gradients = compare_step(golden, expected, norms, a.get("freq"))
    assert len(losses) == (9 if golden.num_stages else 5) and max(losses.values()) <= 1e-5, losses
    assert len(gradients) == len(norms) == (100 if golden.num_stages else 84)
    # Of the 600,000 sums of the mask head some are 0 to the last digits of float32, where a ReLU may fall either way.
    over = {k: v for k, v in gradients.items() if v > (3e-4 if "mask_head" in k else 1e-4)}
    assert not over, over


@pytest.fixture(scope="module")
def arrays():
    return read_group(VARIANTS / "training.npz", "mask_rcnn_r50_softmax_agnostic")


def test_classification_losses_on_recorded_logits(arrays):
    """Softmax, and detectron2's sigmoid loss: over the first K columns, divided by the number of RoIs."""
    logits = jnp.asarray(arrays["cls_logits"])
    labels = jnp.asarray(np.concatenate([arrays[f"roi_gt_classes{i}"] for i in range(2)]), jnp.int32)
    found = softmax_cross_entropy_loss(logits, labels)
    assert float(found) == pytest.approx(float(arrays["loss/loss_cls"]), rel=1e-5)
    found, gradient = jax.value_and_grad(lambda x: sigmoid_cross_entropy_loss(x[:, :-1], labels))(logits)
    assert float(found) == pytest.approx(float(arrays["alt/loss_cls_sigmoid_ce"]), rel=1e-5)
    expected = arrays["alt/d_loss_cls_sigmoid_ce_d_logits"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("name", "beta"), [("l1", 0.0), ("smooth_l1_beta0.1", 0.1), ("smooth_l1_beta1", 1.0)])
def test_box_losses_on_recorded_deltas(arrays, name, beta):
    """The sum over the foreground divided by the number of all RoIs."""
    fg = arrays["num_fg"]
    rois = np.concatenate([arrays[f"roi_boxes{i}"][: fg[i]] for i in range(2)])
    boxes = np.concatenate([arrays[f"roi_gt_boxes{i}"][: fg[i]] for i in range(2)])
    targets = encode_boxes(boxes, rois, weights=BOX_WEIGHTS)
    total = sum(arrays["num_roi"].tolist())
    loss = lambda deltas: jnp.sum(smooth_l1(deltas, targets, beta=beta)) / total  # noqa: E731
    found, gradient = jax.value_and_grad(loss)(jnp.asarray(arrays["box_deltas_fg"]))
    assert float(found) == pytest.approx(float(arrays[f"alt/loss_box_reg_{name}"]), rel=1e-5)
    expected = arrays[f"alt/d_loss_box_reg_{name}_d_deltas_fg"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
