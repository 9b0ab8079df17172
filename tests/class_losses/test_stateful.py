"""Losses with memory behind their names: which function with which arguments and state, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import losses
from eql_jax.class_losses import ClassFrequencies, LossInputs, make_class_loss, pad_class_loss

K = 6
COUNTS = np.array([900, 3, 40, 7, 250, 90])
FREQUENCIES = ClassFrequencies(K, tuple("frcrfc"), COUNTS, 3 * COUNTS, num_images=1000)
LABELS = jnp.array([[0, 1, K, -1, 3, K, 5, K], [K, K, 4, 2, K, -1, 0, 0]])
ANNOTATED = np.array([[[1, 1, 1, 0, 0, 1]], [[0, 1, 1, 1, 1, 1]]], bool)


def logits_of(columns):
    return 3 * jax.random.normal(jax.random.key(1), (2, 8, columns))


def eqlv2(z, y, s, a):
    return losses.eqlv2_loss(z, y, s, gamma=10.0, mu=0.7, alpha=3.0, annotated_classes=a)


def seesaw(z, y, s, a):
    return losses.seesaw_loss(z, y, s, p=0.6, q=1.0, eps=0.1, mean_over_foreground=True, annotated_classes=a)


def efl(z, y, s, a):
    return losses.equalized_focal_loss(z, y, s, gamma=1.5, scale=4.0, alpha=None, annotated_classes=a)


def ecm(z, y, s, a):
    return losses.effective_class_margin_loss(z, y, s, annotated_classes=a)


def ecm_counting(z, y, s, a):
    return losses.effective_class_margin_loss(z, y, s, count_samples=True, annotated_classes=a)


CASES = [
    (eqlv2, K + 1, losses.eqlv2_init(K), {"gamma": 10, "mu": 0.7, "alpha": 3.0}),
    (seesaw, K + 2, losses.seesaw_init(K), {"p": 0.6, "q": 1.0, "eps": 0.1, "mean_over_foreground": True}),
    (efl, K, losses.equalized_focal_init(K), {"gamma": 1.5, "scale": 4.0, "alpha": -1}),
    (
        ecm,
        K + 1,
        losses.effective_class_margin_init(3 * COUNTS, background_ratio=5.0),
        {"background_ratio": 5, "count_by": "instance"},
    ),
    (ecm_counting, K + 1, losses.effective_class_margin_init(np.zeros(K)), {"count_samples": True}),
]


@pytest.mark.parametrize(("function", "columns", "state", "options"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_two_steps_are_those_of_the_function(function, columns, state, options):
    loss = make_class_loss(function.__name__.split("_")[0], FREQUENCIES, options=options)
    assert loss.num_logits == columns
    logits, memory = logits_of(columns), loss.init_state()
    by_function, by_name = jax.jit(function), jax.jit(loss.loss)
    for _ in range(2):
        expected, state = by_function(logits, LABELS, state, ANNOTATED)
        value, memory = by_name(logits, LABELS, memory, LossInputs(annotated=ANNOTATED))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for name, x in memory.items():
            np.testing.assert_allclose(x, getattr(state, name), rtol=1e-6)
    assert len(memory) == (0 if function is ecm else len(state))


def test_first_bias():
    """Sigmoids start at the prior, the objectness column too, as the authors' code of EQL v2; softmaxes at zero."""
    for name, columns in (("eqlv2", K + 1), ("ecm", K + 1), ("efl", K)):
        bias = make_class_loss(name, FREQUENCIES).initial_bias(0.001)
        np.testing.assert_allclose(bias, np.full(columns, -np.log(999)), rtol=1e-6)
    assert not make_class_loss("seesaw", FREQUENCIES).initial_bias(0.001).any()


def test_scores_are_of_the_classes_alone():
    for name, scores in (
        ("eqlv2", losses.eqlv2_scores),
        ("seesaw", losses.seesaw_scores),
        ("ecm", losses.effective_class_margin_scores),
    ):
        loss = make_class_loss(name, ClassFrequencies(K))  # inference knows no counts
        logits = logits_of(loss.num_logits)
        np.testing.assert_array_equal(loss.scores(logits), scores(logits)[..., :K])


def test_classification_without_background():
    for name, scores in (("eqlv2", jax.nn.sigmoid), ("ecm", jax.nn.sigmoid), ("seesaw", jax.nn.softmax)):
        loss = make_class_loss(name, FREQUENCIES, background=False)
        assert loss.num_logits == K
        np.testing.assert_allclose(loss.scores(logits_of(K)), scores(logits_of(K)), rtol=1e-6)


def test_counts_are_asked_for_where_they_are_needed():
    with pytest.raises(ValueError, match="Ecm needs the image counts of the 6 classes"):
        ecm = make_class_loss("ecm", ClassFrequencies(K))
        ecm.loss(logits_of(K + 1), LABELS, {}, LossInputs())
    counting = make_class_loss("ecm", ClassFrequencies(K), options={"count_samples": True})
    jax.jit(counting.loss)(logits_of(K + 1), LABELS, counting.init_state(), LossInputs())


def test_padded_focal():
    """Columns for classes that there are not, in loss, gradient and memory."""
    plain = make_class_loss("efl", FREQUENCIES)
    padded = pad_class_loss(plain, 4)
    assert padded.num_logits == 8
    logits = logits_of(8)
    state, padded_state = plain.init_state(), padded.init_state()
    plain_step, padded_step = (jax.jit(jax.value_and_grad(loss.loss, has_aux=True)) for loss in (plain, padded))
    for _ in range(2):
        (value, state), grad = plain_step(logits[..., :K], LABELS, state, LossInputs())
        (same, padded_state), same_grad = padded_step(logits, LABELS, padded_state, LossInputs())
        np.testing.assert_allclose(same, value, rtol=1e-6)
        np.testing.assert_allclose(same_grad[..., :K], grad, rtol=1e-6, atol=1e-8)
        assert not np.any(same_grad[..., K:])
        for name, x in state.items():
            np.testing.assert_allclose(padded_state[name], np.append(x, [0, 0]), rtol=1e-6)
    with pytest.raises(ValueError, match="Eqlv2 with 6 classes and 7 columns cannot be given further columns"):
        pad_class_loss(make_class_loss("eqlv2", FREQUENCIES), 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("eqlv2", {"gamma": -1.0}, "gamma is -1.0"),
        ("eqlv2", {"alpha": -1.0}, "alpha is -1.0"),
        ("seesaw", {"p": -0.5}, "p is -0.5"),
        ("seesaw", {"q": -0.5}, "q is -0.5"),
        ("seesaw", {"eps": 0.0}, "eps is 0.0"),
        ("seesaw", {"tau": 20.0}, "loss 'seesaw' has no option 'tau'"),
        ("ecm", {"background_ratio": 0.0}, "background_ratio is 0.0"),
        ("ecm", {"count_by": "box"}, "count_by is 'box'; expected one of 'image', 'instance'"),
        ("efl", {"gamma": 0.0}, "gamma is 0.0"),
        ("efl", {"scale": -1.0}, "scale is -1.0"),
        ("efl", {"alpha": 2.0}, "alpha is 2.0"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_class_loss(name, FREQUENCIES, options=options)
