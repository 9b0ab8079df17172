"""The factor of a frozen BatchNorm is in the kernel: the same values and gradients as on the map, in fewer passes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eql_jax.models.layers import Conv, DeformConv
from eql_jax.ops.conv import conv2d
from eql_jax.ops.deform_conv import deform_conv2d

rng = np.random.default_rng(0)
STATS = {
    "scale": rng.normal(1, 0.5, 8).astype(np.float32),  # some negative, one 0
    "bias": rng.normal(0, 1, 8).astype(np.float32),
    "mean": rng.normal(0, 1, 8).astype(np.float32),
    "var": rng.uniform(0.01, 4, 8).astype(np.float32),
}
STATS["scale"][3], STATS["scale"][5] = 0, -1.5


def on_the_map(x):
    """As detectron2 has it, in NumPy's order of operations."""
    return (x - STATS["mean"]) / np.sqrt(STATS["var"] + 1e-5) * STATS["scale"] + STATS["bias"]


@pytest.mark.parametrize(("kernel_size", "strides", "groups", "deform"), [(3, 2, 2, 0), (1, 1, 1, 0), (3, 1, 1, 1)])
def test_values_and_gradients(kernel_size, strides, groups, deform):
    x = rng.normal(size=(2, 6, 5, 4)).astype(np.float32)
    kernel = rng.normal(size=(kernel_size, kernel_size, 4 // groups, 8)).astype(np.float32)
    options = dict(strides=strides, padding=kernel_size // 2, groups=groups)
    words = (8, kernel_size, strides, "frozen_batch_norm")
    if deform:
        offsets = rng.normal(size=(2, 6, 5, 18)).astype(np.float32)
        module, more = DeformConv(*words, deform_groups=1), (offsets, None)
        plain = lambda x, k: deform_conv2d(x, offsets, k, modulation=None, deform_groups=1, **options)  # noqa: E731
    else:
        module, more = Conv(*words, groups=groups), ()
        plain = lambda x, k: conv2d(x, k, **options)  # noqa: E731

    def folded(x, kernel):
        return module.apply({"params": {"kernel": kernel}, "batch_stats": {"norm": STATS}}, x, *more)

    weight = rng.normal(size=plain(x, kernel).shape).astype(np.float32)
    found, expected = [
        jax.value_and_grad(lambda x, k, f=f: jnp.sum(weight * f(x, k)), argnums=(0, 1))(x, kernel)
        for f in (folded, lambda x, k: on_the_map(plain(x, k)))
    ]
    np.testing.assert_allclose(folded(x, kernel), on_the_map(np.asarray(plain(x, kernel))), rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), found, expected)


def test_no_product_with_the_factor_on_the_map():
    """The traced gradient of a convolution with its shortcut multiplies no map; the kernel alone."""
    module = Conv(8, 1, 1, "frozen_batch_norm")
    x, kernel = jnp.ones((2, 16, 16, 8)), jnp.ones((1, 1, 8, 8))

    def loss(x, kernel):
        out = module.apply({"params": {"kernel": kernel}, "batch_stats": {"norm": STATS}}, x)
        return jnp.sum(jax.nn.relu(out + x))

    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).as_text()
    assert re.findall(r"stablehlo\.multiply .*tensor<(\S+)xf32>", text).count("2x16x16x8") == 0
    assert "1x1x8x8" in re.findall(r"stablehlo\.multiply .*tensor<(\S+)xf32>", text)
