"""ResNets: published sizes, a block against NumPy, BatchNorm's statistics, and a loss with a memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.class_losses import REGISTRY, ClassFrequencies, SoftmaxClassLoss, make_class_loss
from eql_jax.classification.models import CifarResNet, Classifier, ImageNetResNet, PaddedBlock, init_classifier


def classifier(backbone, num_classes=10, loss="softmax", mean=100.0, std=50.0):
    class_loss = make_class_loss(loss, ClassFrequencies(num_classes), background=False)
    return Classifier(backbone, class_loss, 0.01, (mean,) * 3, (std,) * 3)


@pytest.mark.parametrize(
    ("backbone", "num_classes", "size", "parameters", "features"),
    [
        (CifarResNet(32, 16, jnp.float32), 10, 32, 464_154, 64),  # .46 million in He et al. 2016
        (CifarResNet(20, 16, jnp.float32), 10, 32, 269_722, 64),  # .27 million
        (CifarResNet(56, 16, jnp.float32), 10, 32, 853_018, 64),  # .85 million
        (ImageNetResNet(10, 64, jnp.float32), 1000, 224, 5_418_792, 512),
        (ImageNetResNet(18, 64, jnp.float32), 1000, 224, 11_689_512, 512),  # torchvision's resnet18
    ],
)
def test_sizes(backbone, num_classes, size, parameters, features):
    model = classifier(backbone, num_classes)
    variables = jax.eval_shape(lambda: init_classifier(model, jax.random.key(0), image_size=size))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters
    assert variables["params"]["head"]["cls_score"]["kernel"].shape == (features, num_classes)
    assert not variables["loss_state"]
    image = jax.ShapeDtypeStruct((3, size, size, 3), jnp.uint8)
    logits = jax.eval_shape(lambda v, x: model.apply(v, x), variables, image)
    assert logits.shape == (3, num_classes) and logits.dtype == jnp.float32


def convolve(x, kernel, stride):
    """3x3 with zeros around, loops over output pixels: [B,H,W,C], [3,3,C,F]."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    size = (x.shape[1] - 3) // stride + 1
    out = np.zeros((x.shape[0], size, size, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            window = x[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, i, j] = np.einsum("bhwc,hwcf->bf", window, kernel)
    return out


def normalize(x, scale, bias):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias, mean, var


@pytest.mark.parametrize("strides", [1, 2])
def test_padded_block_against_numpy(strides):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 6, 4)).astype(np.float32)
    block = PaddedBlock(8 if strides == 2 else 4, strides, jnp.float32)
    variables = block.init(jax.random.key(0), x, train=False)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), variables["params"])
    found, updates = block.apply(
        {"params": params, "batch_stats": variables["batch_stats"]}, x, train=True, mutable=["batch_stats"]
    )

    y = convolve(x, params["conv1"]["kernel"], strides)
    y, mean, var = normalize(y, params["conv1"]["norm"]["scale"], params["conv1"]["norm"]["bias"])
    y = convolve(np.maximum(y, 0), params["conv2"]["kernel"], 1)
    y, _, _ = normalize(y, params["conv2"]["norm"]["scale"], params["conv2"]["norm"]["bias"])
    shortcut = np.zeros_like(y)
    shortcut[..., :4] = x[:, ::strides, ::strides]  # the new channels are zero
    np.testing.assert_allclose(found, np.maximum(y + shortcut, 0), rtol=1e-3, atol=1e-4)

    kept = updates["batch_stats"]["conv1"]["norm"]
    np.testing.assert_allclose(kept["mean"], 0.1 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kept["var"], 0.9 + 0.1 * var, rtol=1e-4, atol=1e-5)


class Counting(SoftmaxClassLoss):
    """Cross-entropy of a uniform guess, and a memory that counts the labels seen."""

    def init_state(self):
        return {"seen": jnp.zeros((), jnp.int32)}

    def loss(self, logits, labels, state, inputs):
        value = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(labels.shape[0]), labels])
        return value, {"seen": state["seen"] + labels.shape[0]}


@pytest.fixture(scope="module")
def tiny():
    model = classifier(CifarResNet(8, 4, jnp.float32), 3)
    return model, init_classifier(model, jax.random.key(0), image_size=16)


def test_evaluation_uses_kept_statistics_and_rows_do_not_meet(tiny):
    model, variables = tiny
    image = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(variables, image)[:1], apply(variables, image[:1]), atol=1e-5)
    scores = model.apply(variables, image, method="scores")
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)


def test_first_loss_is_that_of_a_uniform_guess(tiny):
    model, variables = tiny
    batch = {"image": np.full((4, 16, 16, 3), 100, np.uint8), "label": jnp.array([0, 1, 2, 0])}
    keys = (None, jax.random.key(0))
    terms, updates = model.apply(variables, batch, *keys, method="losses", mutable=["batch_stats", "loss_state"])
    # Every pixel is the mean, so that features are zero, and so are the biases of a softmax.
    np.testing.assert_allclose(terms["cls"], np.log(3), rtol=1e-5)
    np.testing.assert_allclose(terms["top1"], 0.5)  # of equal scores the first class is taken
    assert not updates["loss_state"]


def test_memory_of_a_loss_goes_on(tiny):
    model = classifier(CifarResNet(8, 4, jnp.float32), 3).clone(
        class_loss=Counting(ClassFrequencies(3), background=False)
    )
    variables = init_classifier(model, jax.random.key(0), image_size=16)
    batch = {"image": np.zeros((4, 16, 16, 3), np.uint8), "label": jnp.zeros(4, jnp.int32)}
    for step in range(1, 3):
        collections = ["batch_stats", "loss_state"]
        _, updates = model.apply(variables, batch, None, jax.random.key(0), method="losses", mutable=collections)
        variables = {**variables, **updates}
        (seen,) = jax.tree.leaves(variables["loss_state"])
        assert seen == 4 * step
    # Without the memory it predicts all the same.
    model.apply({k: variables[k] for k in ("params", "batch_stats")}, batch["image"], method="scores")


class MeanColour(nn.Module):
    """The shortest backbone: [B,H,W,3] -> [B,3]."""

    @nn.compact
    def __call__(self, x, *, train):
        return jnp.mean(x, axis=(1, 2))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_loss_classifies(name):
    """One step of each on six images of six classes without background: finite, and scores are one for each class."""
    counts = np.array([1, 5, 20, 100, 400, 2000])
    frequencies = ClassFrequencies(6, tuple("rrccff"), counts, counts, int(counts.sum()), counts < 50)
    model = Classifier(
        MeanColour(), make_class_loss(name, frequencies, background=False), 0.01, (100.0,) * 3, (50.0,) * 3
    )
    variables = init_classifier(model, jax.random.key(0), image_size=8)
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    memory = {k: variables[k] for k in ("batch_stats", "loss_state")}

    @jax.jit
    def step(params):
        def loss(params):
            batch = {"image": image, "label": jnp.arange(6)}
            key = jax.random.key(1)
            terms, updates = model.apply(
                {"params": params, **memory}, batch, None, key, method="losses", mutable=list(memory)
            )
            return terms["cls"], updates

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, updates), gradient = step(variables["params"])
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert any(np.any(g) for g in jax.tree.leaves(gradient))
    before, after = jax.tree.leaves(variables["loss_state"]), jax.tree.leaves(updates["loss_state"])
    assert len(before) == len(after)
    assert not before or any(np.any(a != b) for a, b in zip(before, after, strict=True))
    scores = model.apply({k: variables[k] for k in ("params", "batch_stats")}, image, method="scores")
    assert scores.shape == (6, 6) and ((scores >= 0) & (scores <= 1)).all()
