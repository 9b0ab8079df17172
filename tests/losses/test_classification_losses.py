"""Classification losses against golden arrays (tests/testdata/README.md), hand-worked cases and odd inputs."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses

TESTDATA = Path(__file__).parents[1] / "testdata"
LOG2 = math.log(2)

# Compiled once per shape; operation by operation these tests would spend their time in small compilations.
equalization_loss = jax.jit(losses.equalization_loss, static_argnames="background_keeps_negatives")
sigmoid_cross_entropy_loss = jax.jit(losses.sigmoid_cross_entropy_loss)
softmax_cross_entropy_loss = jax.jit(losses.softmax_cross_entropy_loss)


@pytest.fixture(scope="module")
def golden():
    with np.load(TESTDATA / "losses_classification.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def detectron2():
    with np.load(TESTDATA / "losses_mask_rcnn_r50_eql.npz") as arrays:
        return dict(arrays)


def value_and_grad(loss, *args, **kwargs):
    value, grad = compiled_grad(loss)(*args, **kwargs)
    return float(value), np.asarray(grad)


@functools.cache  # one jit per loss, so that tests with the same shapes share a compilation
def compiled_grad(loss):
    switches = "background_keeps_negatives" if loss is equalization_loss else ()
    return jax.jit(jax.value_and_grad(loss), static_argnames=switches)


def assert_matches(loss, grad, golden_loss, golden_grad):
    np.testing.assert_allclose(loss, golden_loss, rtol=1e-5)
    np.testing.assert_allclose(grad, golden_grad, rtol=0, atol=5e-6 * np.abs(golden_grad).max())
    assert np.all(np.isfinite(grad))


def reference_eql(logits, labels, threshold, *, background_keeps_negatives=True, exempt=None):
    """EQL by loops in float64: the loss and its gradient."""
    num_classes = logits.shape[1]
    valid = int(np.sum(labels >= 0))
    loss, grad = 0.0, np.zeros(logits.shape)
    for r, label in enumerate(labels):
        for j in range(num_classes):
            if label < 0:
                continue
            y = float(j == label)
            e = 0.0 if label == num_classes and background_keeps_negatives else 1.0
            w = 1 - e * float(threshold[j]) * (1 - y)
            if exempt is not None and exempt[r, j]:
                w = 1.0
            z = float(logits[r, j])
            p = 1 / (1 + math.exp(-z))
            loss -= w * (y * math.log(p) + (1 - y) * math.log(1 - p)) / valid
            grad[r, j] = w * (p - y) / valid
    return loss, grad


# ---------------------------------------------------------------- golden numbers of the authors' code and PyTorch


@pytest.mark.parametrize("part", ["main", "extreme"])
@pytest.mark.parametrize("name", ["eql_lambda_0.0011", "eql_lambda_0.00177"])
@pytest.mark.parametrize("as_float", [False, True])
def test_equalization_loss_of_the_authors(golden, part, name, as_float):
    tail = golden[f"{part}/{name}/tail_mask"]
    np.testing.assert_array_equal(tail, golden["image_count"] / golden["num_images"] < float(name.split("_")[-1]))
    loss, grad = value_and_grad(
        equalization_loss,
        golden[f"{part}/in/logits"],
        golden[f"{part}/in/labels"],
        tail.astype(np.float32) if as_float else tail,
    )
    assert_matches(loss, grad, golden[f"{part}/{name}/loss"], golden[f"{part}/{name}/grad"])
    np.testing.assert_array_equal(grad[~golden[f"{part}/{name}/weight"]], 0)


@pytest.mark.parametrize("part", ["main", "extreme"])
@pytest.mark.parametrize("as_float", [False, True])
def test_exempt_classes(golden, part, as_float):
    tail = golden[f"{part}/eql_lambda_0.0011/tail_mask"]
    loss, grad = value_and_grad(
        equalization_loss,
        golden[f"{part}/in/logits"],
        golden[f"{part}/in/labels"],
        tail.astype(np.float32) if as_float else tail,
        exempt_classes=golden[f"{part}/eql_exempt_classes/exempt"],
    )
    assert_matches(loss, grad, golden[f"{part}/eql_exempt_classes/loss"], golden[f"{part}/eql_exempt_classes/grad"])


@pytest.mark.parametrize("part", ["main", "extreme"])
def test_sigmoid_and_softmax(golden, part):
    logits, labels = golden[f"{part}/in/logits"], golden[f"{part}/in/labels"]
    with_background = np.concatenate([logits, golden[f"{part}/in/logit_bg"]], axis=1)
    foreground_labels = golden[f"{part}/in/labels_fg_only"]
    for name, loss, args in (
        ("sigmoid_bce", sigmoid_cross_entropy_loss, (logits, labels)),
        ("softmax_ce", softmax_cross_entropy_loss, (with_background, labels)),
        ("softmax_ce_fg_only", softmax_cross_entropy_loss, (logits, foreground_labels)),
    ):
        value, grad = value_and_grad(loss, *args)
        assert_matches(value, grad, golden[f"{part}/{name}/loss"], golden[f"{part}/{name}/grad"])


def test_on_a_detectron2_training_step(detectron2):
    labels, logits, rows = detectron2["labels"], detectron2["cls_logits"], detectron2["rows"]
    tail = detectron2["freq"] < 1.77e-3
    loss, grad = value_and_grad(equalization_loss, logits, labels, tail)
    assert_matches(loss, grad, detectron2["eql_loss"], detectron2["eql_grad"])
    weight = np.unpackbits(detectron2["eql_weight_packed"], axis=-1)[:, : logits.shape[1]]
    np.testing.assert_array_equal(grad != 0, weight.astype(bool))

    # Images apart, as [2, 512, K]: the same number, because the sum runs over the whole array.
    batched, _ = value_and_grad(equalization_loss, logits.reshape(2, 512, -1), labels.reshape(2, 512), tail)
    np.testing.assert_allclose(batched, loss, rtol=1e-6)

    loss, grad = value_and_grad(sigmoid_cross_entropy_loss, logits, labels)
    assert_matches(loss, grad[rows], detectron2["sigmoid_loss"], detectron2["sigmoid_grad_rows"])

    with_background = np.concatenate([logits, detectron2["background_logit"][:, None]], axis=1)
    loss, grad = value_and_grad(softmax_cross_entropy_loss, with_background, labels)
    assert_matches(loss, grad[rows], detectron2["softmax_loss"], detectron2["softmax_grad_rows"])


# ---------------------------------------------------------------- hand-worked cases


def test_by_hand():
    # Logits 0 cost log 2 wherever they count; K = 3, class 2 is the tail.
    # row 0, label 0: classes 0, 1. Row 1, label 2: all three. Row 2, background: all three. Row 3, padding: none.
    logits, labels, tail = jnp.zeros((4, 3)), jnp.array([0, 2, 3, -1]), jnp.array([False, False, True])
    loss, grad = value_and_grad(equalization_loss, logits, labels, tail)
    assert loss == pytest.approx(8 * LOG2 / 3)
    sixth = 1 / 6
    np.testing.assert_allclose(
        grad, [[-sixth, sixth, 0], [sixth, sixth, -sixth], [sixth, sixth, sixth], [0, 0, 0]], rtol=1e-6
    )
    # E(r) off: the background row loses the tail class as well.
    assert float(equalization_loss(logits, labels, tail, background_keeps_negatives=False)) == pytest.approx(
        7 * LOG2 / 3
    )
    # Exempting the tail class in the first row restores its negative there; in a padding row nothing counts.
    exempt = np.zeros((4, 3), bool)
    exempt[[0, 3], 2] = True
    assert float(equalization_loss(logits, labels, tail, exempt_classes=exempt)) == pytest.approx(9 * LOG2 / 3)
    # T = .25: the tail negative of row 0 counts with weight .75.
    smooth = jnp.array([0.0, 0.0, 0.25])
    assert float(equalization_loss(logits, labels, smooth)) == pytest.approx(8.75 * LOG2 / 3)
    # The divisor is the caller's.
    assert float(equalization_loss(logits, labels, tail, normalizer=16)) == pytest.approx(LOG2 / 2)


def test_softmax_by_hand():
    # Probabilities 1/2, 1/4, 1/4.
    logits = jnp.log(jnp.array([[2.0, 1.0, 1.0], [2.0, 1.0, 1.0], [9.0, 9.0, 9.0]]))
    loss, grad = value_and_grad(softmax_cross_entropy_loss, logits, jnp.array([0, 2, -1]))
    assert loss == pytest.approx((LOG2 + 2 * LOG2) / 2)
    np.testing.assert_allclose(grad, [[-1 / 4, 1 / 8, 1 / 8], [1 / 4, 1 / 8, -3 / 8], [0, 0, 0]], rtol=1e-5, atol=1e-7)


def test_smooth_thresholds_and_switches_against_loops():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(12, 5)) * 4
    labels = np.array([0, 1, 2, 3, 4, 5, 5, 5, -1, -1, 4, 0])
    threshold = np.array([0.0, 0.3, 1.0, 0.75, 0.0])
    exempt = rng.random((12, 5)) < 0.3
    for keeps in (True, False):
        for exempt_classes in (None, exempt):
            loss, grad = value_and_grad(
                equalization_loss,
                jnp.asarray(logits, jnp.float32),
                labels,
                threshold,
                background_keeps_negatives=keeps,
                exempt_classes=exempt_classes,
            )
            assert_matches(
                loss,
                grad,
                *reference_eql(logits, labels, threshold, background_keeps_negatives=keeps, exempt=exempt_classes),
            )


def test_empty_and_full_tail():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(6, 4)).astype(np.float32), np.array([0, 3, 4, 4, -1, 1])
    none, plain = equalization_loss(logits, labels, np.zeros(4, bool)), sigmoid_cross_entropy_loss(logits, labels)
    np.testing.assert_allclose(none, plain, rtol=1e-6)
    everything, grad = value_and_grad(
        equalization_loss, logits, labels, np.ones(4, bool), background_keeps_negatives=False
    )
    target = np.asarray(labels)[:, None] == np.arange(4)
    np.testing.assert_allclose(everything, np.logaddexp(0, -np.asarray(logits))[target].sum() / 5, rtol=1e-6)
    np.testing.assert_array_equal(grad != 0, target)


def test_exempt_classes_broadcast():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 3, 4)).astype(np.float32)
    labels, tail = np.array([[0, 1, 4], [3, 4, -1]]), np.array([False, True, True, True])
    per_image = rng.random((2, 1, 4)) < 0.5
    full = equalization_loss(logits, labels, tail, exempt_classes=np.broadcast_to(per_image, (2, 3, 4)))
    np.testing.assert_allclose(equalization_loss(logits, labels, tail, exempt_classes=per_image), full, rtol=1e-6)
    for_all = equalization_loss(logits, labels, tail, exempt_classes=np.ones(4, bool))
    np.testing.assert_allclose(for_all, sigmoid_cross_entropy_loss(logits, labels), rtol=1e-6)


# ---------------------------------------------------------------- size, cost and errors


def test_sum_over_a_full_size_batch_is_accurate():
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(1024, 1203)).astype(np.float32) * 3 - 6
    labels = np.where(rng.random(1024) < 0.75, 1203, rng.integers(0, 1203, 1024))
    tail = rng.random(1203) < 0.7
    target = labels[:, None] == np.arange(1203)
    counted = target | ~tail | (labels == 1203)[:, None]
    z = logits.astype(np.float64)
    expected = (np.logaddexp(0, np.where(target, -z, z)) * counted).sum() / 1024
    np.testing.assert_allclose(equalization_loss(logits, labels, tail), expected, rtol=1e-6)


def test_no_class_matrix_is_gathered_or_multiplied():
    # The design's cost model: elementwise work and one reduction, no one-hot product, no gather or scatter.
    step = compiled_grad(equalization_loss)
    text = step.lower(np.zeros((8, 16), np.float32), np.zeros(8, np.int32), np.zeros(16, bool)).as_text()
    for operation in ("dot_general", "gather", "scatter"):
        assert operation not in text


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((np.zeros((2, 4)), np.zeros(2, int), np.zeros(3, bool)), {}, r"tail_mask has shape \(3,\); expected \(4,\)"),
        ((np.zeros((2, 4)), np.zeros(3, int), np.zeros(4, bool)), {}, r"labels has shape \(3,\); expected \(2,\)"),
        ((np.zeros((2, 4)), np.zeros(2), np.zeros(4, bool)), {}, "labels have dtype float32"),
        ((np.zeros((2, 4), int), np.zeros(2, int), np.zeros(4, bool)), {}, "logits has dtype int32"),
        ((np.zeros(4), np.zeros((), int), np.zeros(4, bool)), {}, r"logits has shape \(4,\)"),
        ((np.zeros((2, 4)), np.zeros(2, int), np.zeros(4, int)), {}, "tail_mask has dtype int32"),
        (
            (np.zeros((2, 4)), np.zeros(2, int), np.zeros(4, bool)),
            {"exempt_classes": np.zeros((3, 4), bool)},
            r"exempt_classes has shape \(3, 4\); expected one that broadcasts to \(2, 4\)",
        ),
        (
            (np.zeros((2, 4)), np.zeros(2, int), np.zeros(4, bool)),
            {"exempt_classes": np.zeros(4)},
            "exempt_classes has dtype float32; expected bool",
        ),
    ],
)
def test_errors_say_what_was_found(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        losses.equalization_loss(*args, **kwargs)
