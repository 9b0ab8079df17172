"""Every loss of REGISTRY keeps what ClassLoss promises, whatever its equation; and how a loss is made by name."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax import class_losses
from eql_jax.class_losses import REGISTRY, ClassFrequencies, ClassLoss, LossInputs, make_class_loss, option_defaults
from eql_jax.class_losses.eql import Eql

K = 6
COUNTS = np.array([900, 3, 40, 7, 250, 90])
FREQUENCIES = ClassFrequencies(
    K, tuple("frcrfc"), COUNTS, 3 * COUNTS, num_images=1000, tail=np.array([False, True, True, True, False, True])
)
LABELS = jnp.array([[0, 1, K, -1, 3, K, 5, K], [K, K, 4, 2, K, -1, 0, 0]])
INPUTS = LossInputs(key=jax.random.key(0))


def logits_for(loss: ClassLoss, seed: int = 0) -> jax.Array:
    return 3 * jax.random.normal(jax.random.key(seed), (*LABELS.shape, loss.num_logits))


@functools.cache  # one object a loss, whose compilations the tests share
def made(name: str, background: bool = True) -> ClassLoss:
    return make_class_loss(name, FREQUENCIES, background=background)


@pytest.fixture(params=sorted(REGISTRY))
def loss(request):
    return made(request.param)


@functools.cache
def compiled(loss: ClassLoss):
    return jax.jit(jax.value_and_grad(loss.loss, has_aux=True))


def value_grad_state(loss, logits, labels=LABELS, state=None, inputs=INPUTS):
    (value, state), grad = compiled(loss)(logits, labels, loss.init_state() if state is None else state, inputs)
    return value, grad, state


def test_value_gradient_and_memory(loss):
    """A float32 scalar, finite gradients of the columns it asks for, and a memory of the same shape every step."""
    logits = logits_for(loss)
    value, grad, state = value_grad_state(loss, logits)
    assert value.shape == () and value.dtype == jnp.float32 and float(value) > 0
    assert grad.shape == logits.shape and np.isfinite(grad).all() and np.abs(grad).max() > 1e-3
    before = loss.init_state()
    assert jax.tree.structure(before) == jax.tree.structure(state)
    assert [x.shape for x in jax.tree.leaves(before)] == [x.shape for x in jax.tree.leaves(state)]
    assert [jnp.asarray(x).dtype for x in jax.tree.leaves(before)] == [x.dtype for x in jax.tree.leaves(state)]
    if jax.tree.leaves(state):
        moved = [
            np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (before, state)), strict=True)
        ]
        assert any(moved), "the memory did not move"


def test_padding_rows_change_nothing(loss):
    """Rows of label -1 give no gradient, and whatever is in them, NaN included, nothing else changes."""
    logits = logits_for(loss)
    padding = LABELS < 0
    value, grad, state = value_grad_state(loss, logits)
    assert not np.any(np.asarray(grad)[np.asarray(padding)])
    other = jnp.where(padding[..., None], jnp.nan, logits)
    same_value, same_grad, same_state = value_grad_state(loss, other)
    np.testing.assert_allclose(same_value, value, rtol=1e-6)
    np.testing.assert_allclose(same_grad, grad, atol=1e-7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), same_state, state)


def test_only_padding_and_only_background(loss):
    logits = logits_for(loss)
    value, grad, _ = value_grad_state(loss, logits, jnp.full_like(LABELS, -1))
    assert float(value) == 0 and not np.any(grad)
    value, grad, _ = value_grad_state(loss, logits, jnp.full_like(LABELS, K))
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_extreme_logits(loss):
    for sign in (1, -1):
        value, grad, state = value_grad_state(loss, sign * 80 * jnp.sign(logits_for(loss)))
        assert np.isfinite(value) and np.isfinite(grad).all()
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_columns_of_classes(loss):
    """Where a class has a column for itself, that one raises its score and no other class's."""
    columns = loss.class_columns
    if columns is None:
        return
    assert columns.shape == (K,) and len(set(columns.tolist())) == K
    slopes = jax.jacobian(loss.scores)(logits_for(loss)[0, 0])[:, columns]
    assert np.all(np.diag(slopes) > 0) and np.all(slopes - np.diag(np.diag(slopes)) <= 1e-7)


def test_scores(loss):
    """Probabilities of the K classes, and at the first bias the same for all of them."""
    scores = loss.scores(logits_for(loss))
    assert scores.shape == (*LABELS.shape, K)
    assert np.all(scores >= 0) and np.all(scores <= 1)
    bias = loss.initial_bias(0.01)
    assert bias.shape == (loss.num_logits,) and bias.dtype == np.float32
    first = np.asarray(loss.scores(jnp.asarray(bias)))
    assert 0 < first.min() and first.max() < 0.6


def test_the_score_of_an_object_rises_as_its_loss_falls(loss):
    """Gradient descent on one row raises the score of its label: columns and labels mean the same thing."""
    labels = jnp.full_like(LABELS, -1).at[0, 0].set(2)
    logits = jnp.zeros((*LABELS.shape, loss.num_logits)) + loss.initial_bias(0.1)
    start = np.asarray(loss.scores(logits))[0, 0]
    for _ in range(50):
        logits = logits - 0.5 * value_grad_state(loss, logits, labels)[1]
    end = np.asarray(loss.scores(logits))[0, 0]
    # Not twice the others: in group softmax the classes of other groups keep what they have.
    assert end[2] > start[2] and end[2] > 1.5 * np.delete(end, 2).max()


def test_annotated_classes(loss):
    """A loss that says that it takes them gives no negatives to classes that nobody looked for."""
    if not loss.takes_annotated:
        pytest.skip(f"{type(loss).__name__} does not take annotated classes")
    annotated = jnp.ones((2, 1, K), bool).at[1, 0, 1].set(False)
    _, grad, _ = value_grad_state(loss, logits_for(loss), inputs=INPUTS._replace(annotated=annotated))
    assert not np.any(np.asarray(grad)[1, :, 1]), "class 1 is not annotated in the second image"
    assert np.any(np.asarray(grad)[0, :, 1])


def test_without_background(loss):
    """Image classification: K classes, one picture a row, no label K."""
    plain = made(next(name for name, kind in REGISTRY.items() if kind is type(loss)), background=False)
    labels = jnp.array([0, 5, 3, -1, 1])
    logits = jax.random.normal(jax.random.key(1), (5, plain.num_logits))
    value, grad, _ = value_grad_state(plain, logits, labels)
    assert np.isfinite(value) and np.isfinite(grad).all() and not np.any(grad[3])
    assert plain.scores(logits).shape == (5, K)
    if plain.takes_annotated:
        annotated = jnp.ones(K, bool).at[4].set(False)  # label 4 is not there; the last class is as good as any
        _, grad, _ = value_grad_state(plain, logits, labels, inputs=INPUTS._replace(annotated=annotated))
        assert not np.any(grad[:, 4]) and np.any(grad[:, 5])


# ---------------------------------------------------------------------------------------------------- by name
def test_unknown_names_and_options():
    with pytest.raises(ValueError, match=r"loss is 'sigmoit'; expected one of .*'sigmoid'.*did you mean 'sigmoid'"):
        make_class_loss("sigmoit", FREQUENCIES)
    with pytest.raises(ValueError, match="loss 'eql' has no option 'lambda'; it has background_keeps_negatives"):
        make_class_loss("eql", FREQUENCIES, options={"lambda": 1})
    with pytest.raises(ValueError, match="option 'background_keeps_negatives' of loss 'eql' is 1; expected bool"):
        make_class_loss("eql", FREQUENCIES, options={"background_keeps_negatives": 1})


@dataclasses.dataclass(frozen=True, eq=False)
class Halved(ClassLoss):
    """A loss of somebody's own, for 'module:Class'."""

    factor: float = 0.5
    letters: tuple = ("r",)

    def loss(self, logits, labels, state, inputs):
        return self.factor * Eql(self.frequencies).loss(logits, labels, state, inputs)[0], state


def test_a_loss_from_elsewhere():
    own = make_class_loss(f"{__name__}:Halved", FREQUENCIES, options={"factor": 2, "letters": ["c"]})
    assert own.factor == 2.0 and own.letters == ("c",) and option_defaults(Halved) == {"factor": 0.5, "letters": ("r",)}
    logits = logits_for(own)
    eql = make_class_loss("eql", FREQUENCIES)
    np.testing.assert_allclose(own.loss(logits, LABELS, {}, INPUTS)[0], 2 * eql.loss(logits, LABELS, {}, INPUTS)[0])
    with pytest.raises(ValueError, match="No module named 'nowhere'"):
        make_class_loss("nowhere:Loss", FREQUENCIES)
    with pytest.raises(ValueError, match="expected a subclass of eql_jax.class_losses.ClassLoss"):
        make_class_loss("json:JSONDecoder", FREQUENCIES)


@pytest.mark.parametrize("field", ["letters", "image_counts", "instance_counts", "tail"])
def test_frequencies_of_another_number_of_classes(field):
    wrong = FREQUENCIES._replace(**{field: getattr(FREQUENCIES, field)[:-1]})
    for make in (
        lambda: make_class_loss("seql", wrong),
        lambda: class_losses.pad_class_loss(Eql(wrong), 4),
    ):
        with pytest.raises(ValueError, match=rf"{field} of the classes has shape \(5,\); expected \(6,\)"):
            make()


def test_frequencies_are_compared_by_content():
    """A Flax module that has them can be compared and hashed."""
    same = FREQUENCIES._replace(image_counts=COUNTS.copy())
    other = FREQUENCIES._replace(image_counts=COUNTS + 1)
    assert same == FREQUENCIES and hash(same) == hash(FREQUENCIES) and other != FREQUENCIES


def test_nan_is_no_alpha():
    for name in ("focal", "efl"):
        with pytest.raises(ValueError, match="alpha is nan"):
            make_class_loss(name, FREQUENCIES, options={"alpha": float("nan")})


def test_frequencies_that_are_missing_are_named():
    bare = Eql(ClassFrequencies(K))
    assert bare.num_logits == K  # enough for inference
    with pytest.raises(ValueError, match="Eql needs the tail of the 6 classes"):
        bare.loss(logits_for(bare), LABELS, {}, INPUTS)
    with pytest.raises(ValueError, match="Eql needs the instance counts of the 6 classes"):
        bare.counts("instance")
    with pytest.raises(ValueError, match="counts is 'box'; expected 'image' or 'instance'"):
        bare.counts("box")


def test_the_example_of_the_package():
    import doctest

    found = doctest.testmod(class_losses)
    assert found.attempted > 5 and found.failed == 0
