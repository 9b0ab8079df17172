"""Anchors against hand-worked numbers and detectron2's."""

from pathlib import Path

import numpy as np
import pytest

from eql_jax.ops import anchors

TESTDATA = Path(__file__).parents[1] / "testdata"


def test_cell_by_hand():
    # Ratio is height / width and the area size^2: size 4 at ratio 4 is 2 wide and 8 high. Sizes are outermost.
    expected = [[-4, -1, 4, 1], [-2, -2, 2, 2], [-1, -4, 1, 4], [-8, -2, 8, 2], [-4, -4, 4, 4], [-2, -8, 2, 8]]
    np.testing.assert_array_equal(anchors.cell_anchors((4, 8), (0.25, 1.0, 4.0)), expected)


def test_pyramid_equals_detectron2():
    golden = np.load(TESTDATA / "ops_rpn.npz")
    made = anchors.pyramid_anchors(
        [tuple(x) for x in golden["feature_shapes"].tolist()],
        strides=(4, 8, 16, 32, 64),
        sizes=(32, 64, 128, 256, 512),
        aspect_ratios=(0.5, 1.0, 2.0),
    )
    assert [a.shape[0] for a in made] == [5760, 1440, 360, 90, 27]
    assert all(a.dtype == np.float32 for a in made)
    np.testing.assert_array_equal(np.concatenate(made), golden["anchors"])


def test_several_sizes_on_one_level_and_order():
    (made,) = anchors.pyramid_anchors([(2, 3)], strides=(16,), sizes=((32, 64),), aspect_ratios=(1.0,))
    assert made.shape == (12, 4)
    np.testing.assert_array_equal(made[0], [-16, -16, 16, 16])  # the first cell is centred on (0, 0)
    np.testing.assert_array_equal(made[1], [-32, -32, 32, 32])
    np.testing.assert_array_equal(made[2], [0, -16, 32, 16])  # then along x
    np.testing.assert_array_equal(made[6], [-16, 0, 16, 32])  # then along y


def test_levels_must_agree():
    with pytest.raises(ValueError, match=r"2 feature shapes .* 2 strides .* 1 sizes"):
        anchors.pyramid_anchors([(2, 2), (1, 1)], strides=(4, 8), sizes=((32, 64),), aspect_ratios=(1.0,))
