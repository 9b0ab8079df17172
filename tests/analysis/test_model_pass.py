"""The pass through a model: its parts of the gradient against jax.grad of the model's whole loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.analysis.collect import Run
from eql_jax.analysis.model_pass import make_classifier, make_probe
from eql_jax.models import init_model
from eql_jax.training.compatibility import Classes
from eql_jax.training.errors import UserError
from eql_jax.training.inference_model import InferenceModel
from eql_jax.training.train_step import image_keys
from tests.analysis.runs import random_tree
from tests.models.test_mask_rcnn import C4, CASCADE, K, tiny_batch, tiny_config

COUNTS = (900, 3, 40, 7, 250, 90, 5)
CLASSES = Classes(tuple(range(1, K + 1)), tuple("abcdefg"), tuple("frcrfcr"), COUNTS, COUNTS, 1000)
KINDS = {
    "eql, C4": ({**C4, "box_head.loss": "eql"}, 0),
    "softmax, cosine": ({"box_head.loss": "softmax", "box_head.classifier": "cosine"}, 0),
    "sigmoid, second stage of a cascade": ({**CASCADE, "box_head.loss": "sigmoid"}, 1),
}


def make_run(changes):
    """A run that was never trained; live BatchNorm is replaced by GroupNorm, which compiles faster."""
    changes = {f"model.{k}": v for k, v in changes.items()}
    config = tiny_config(**{"model.with_mask": False, "model.backbone.norm": "group_norm"} | changes)
    return Run("run", "nowhere", InferenceModel(config, CLASSES, {}, {}, 0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_the_gradient_of_the_models_loss(kind):
    changes, stage = KINDS[kind]
    classifier = make_classifier(make_run(changes), stage)
    model = classifier.model
    shapes = jax.eval_shape(lambda: init_model(model, jax.random.key(0)))
    variables = random_tree(shapes, np.random.default_rng(0))
    kernel = classifier.kernel(variables["params"])
    batch = tiny_batch(batch=2)
    keys, loss_key = image_keys(0, jnp.int32(0), batch["image_id"]), jax.random.key(1)
    term = "cls_stage1" if stage else "cls"

    def whole(kernel):
        everything = classifier.with_kernel(variables, kernel)
        terms, _ = model.apply(everything, batch, keys, loss_key, method="losses", mutable=list(variables))
        return terms[term], terms

    def both(kernel):
        expected, terms = jax.grad(whole, has_aux=True)(kernel)
        return make_probe(classifier, variables, batch, keys, loss_key), expected, terms

    compiled = jax.jit(both).lower(kernel).compile(compiler_options={"xla_backend_optimization_level": 0})
    found, expected, terms = compiled(kernel)
    foreground = (found.labels >= 0) & (found.labels < K)
    assert foreground.sum() == terms["num_foreground_stage1" if stage else "num_foreground"] > 0
    assert found.scores.shape == (len(found.labels), K)

    # Where a class has no positives in the batch, its gradient is that of the negatives alone.
    norms = np.linalg.norm(np.asarray(expected), axis=0)[:K]
    present = np.bincount(found.labels[foreground], minlength=K) > 0
    assert (~present).any() and present.any()
    np.testing.assert_array_equal(np.asarray(found.positive) > 0, present)
    np.testing.assert_allclose(found.negative[~present], norms[~present], rtol=2e-4, atol=1e-7)
    # The whole lies between the difference and the sum of its parts.
    low, high = np.abs(found.positive - found.negative), found.positive + found.negative
    assert np.all(norms >= low - 1e-5) and np.all(norms <= high + 1e-5)


@pytest.mark.parametrize("loss", ["seesaw", "group_softmax", "seql"])
def test_losses_with_memory_or_columns_or_draws_of_their_own(loss):
    """Traced, not run: the shapes of what a batch shows."""
    classifier = make_classifier(make_run({"box_head.loss": loss, "eql.num_images": 0}), 0)
    variables = jax.eval_shape(lambda: init_model(classifier.model, jax.random.key(0)))
    batch = tiny_batch(batch=1)

    def probe(variables):
        keys = image_keys(0, jnp.int32(0), batch["image_id"])
        return make_probe(classifier, variables, batch, keys, jax.random.key(1))

    found = jax.eval_shape(probe, variables)
    assert found.scores.shape == (*found.labels.shape, K)
    assert found.positive.shape == found.negative.shape == (K,)


def test_there_is_no_such_stage():
    with pytest.raises(UserError, match="--stage is 1, but the box heads of nowhere have stages 0 to 0"):
        make_classifier(make_run({}), 1)


def test_weight_norms_by_hand():
    """Of the classes' columns alone; a loss without such columns has none."""
    classifier = make_classifier(make_run({"box_head.loss": "softmax"}), 0)
    kernel = np.zeros((2, K + 1), np.float32)
    kernel[:, 0], kernel[:, 6], kernel[:, K] = (3, 4), (0, 2), (9, 9)
    params = {"box_head": {"cls_score": {"kernel": kernel}}}
    np.testing.assert_allclose(classifier.weight_norms(params), [5, 0, 0, 0, 0, 0, 2])
    assert dataclasses.replace(classifier, columns=None).weight_norms(params) is None
