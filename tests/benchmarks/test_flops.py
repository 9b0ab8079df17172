"""FLOPs counted by hand, and their share of a chip's peak."""

import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import common, flops


def count(fn, *shapes):
    return flops.matmul_flops(jax.jit(fn).trace(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr)


def conv(x, k, **options):
    options = {"window_strides": (1, 1), "padding": "VALID"} | options
    return jax.lax.conv_general_dilated(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


def test_matmuls():
    assert count(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 7 * 5
    assert count(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (2, 3, 5), (2, 7, 5)) == 2 * 2 * 3 * 7 * 5
    assert count(jnp.sin, (3, 5)) == 0


def test_convolutions():
    x, k = (2, 9, 9, 4), (3, 3, 4, 6)
    assert count(conv, x, k) == 2 * (2 * 7 * 7 * 6) * 9 * 4
    assert count(lambda x, k: conv(x, k, window_strides=(2, 2)), x, k) == 2 * (2 * 4 * 4 * 6) * 9 * 4
    assert count(lambda x, k: conv(x, k, feature_group_count=2), x, (3, 3, 2, 6)) == 2 * (2 * 7 * 7 * 6) * 9 * 2
    # Zeros between the rows of a strided convolution's gradient are not multiplied with.
    assert (
        count(lambda x, k: conv(x, k, lhs_dilation=(2, 2), padding=((0, 0),) * 2), x, k)
        == 2 * (2 * 15 * 15 * 6) * 9 * 4 / 4
    )


def test_gradients_loops_and_branches():
    square = lambda a: a @ a  # noqa: E731
    assert count(jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)), (3, 5), (5, 7)) == 3 * (2 * 3 * 7 * 5)
    assert count(lambda a: jax.lax.scan(lambda c, _: (square(c), None), a, None, length=5)[0], (4, 4)) == 5 * 128
    assert count(lambda a: jax.lax.cond(a[0, 0] > 0, square, jnp.sin, a), (4, 4)) == 128
    assert count(jax.checkpoint(square), (4, 4)) == 128


@pytest.mark.parametrize(
    ("kind", "dtype", "peak"),
    [
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA H100 80GB HBM3", "float32", 494.5e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("TPU v5 lite", "bfloat16", 197e12),
        ("TPU v5p", "bfloat16", 459e12),
        ("TPU v4", "float32", None),
        ("NVIDIA H200 NVL", "bfloat16", None),
        ("cpu", "bfloat16", None),
    ],
)
def test_peaks(kind, dtype, peak):
    assert flops.peak_flops(kind, dtype) == peak


def test_utilisation():
    found = flops.utilisation(98.9e12, 0.5, device_kind="NVIDIA H200", dtype="bfloat16")
    assert found["mfu"] == pytest.approx(0.2)
    assert found["mfu_note"] == "of 989 TFLOP/s, data sheet"
    unknown = flops.utilisation(1e12, 0.5, device_kind="toaster", dtype="bfloat16")
    assert unknown == {"mfu": None, "mfu_note": "no peak known of 'toaster' in bfloat16"}


def test_numbers_of_a_row_are_numbers_of_json():
    assert [common.rounded(x) for x in (1.23456, 1.23456e-7, math.nan, -math.inf)] == [1.2346, 1.2346e-7, None, None]
