"""Crops, Cutout and AutoAugment: hand-worked pictures, the published tables, and draws that the stream alone fixes."""

import numpy as np
import pytest
from PIL import Image

from eql_jax.classification import augment
from eql_jax.classification.augment import Recipe, cutout, eval_image, random_part, train_image
from eql_jax.classification.auto_augment import OPERATIONS, POLICIES, auto_augment
from eql_jax.data.photometric import PhotometricRanges
from eql_jax.data.transforms import Size, random_stream

PLAIN = Recipe(32, "none", 4, False, PhotometricRanges(), "", 0, (1, 2, 3))


def picture(size=32, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def ramp():
    """Red is the column, green the row: where a pixel comes from is seen from its colour."""
    y, x = np.mgrid[:32, :32]
    return Image.fromarray(np.stack([x, y, np.full((32, 32), 77)], -1).astype(np.uint8))


def fixed(first, second=0):
    """A stream whose integers are `first`, where two are asked for `first` and `second`."""

    class Stream:
        def integers(self, low, high=None, size=None):
            return first if size is None else np.array([first, second])

    return Stream()


def test_padded_crop_by_hand():
    recipe = PLAIN._replace(crop="padded")
    for left, top in ((0, 0), (8, 3), (4, 4)):
        found = np.asarray(augment._padded(ramp(), recipe, fixed(left, top)))
        padded = np.pad(np.asarray(ramp()), ((4, 4), (4, 4), (0, 0)))
        expected = padded[top : top + 32, left : left + 32].copy()
        expected[expected[..., 2] == 0] = (1, 2, 3)
        np.testing.assert_array_equal(found, expected)


def test_nothing_asked_for_changes_nothing():
    np.testing.assert_array_equal(train_image(picture(), PLAIN, random_stream(0)), np.asarray(picture()))
    np.testing.assert_array_equal(eval_image(picture(), PLAIN), np.asarray(picture()))
    with pytest.raises(ValueError, match="an image is 20 x 20; data.crop 'none' expects data.image_size, 32 x 32"):
        train_image(picture(20), PLAIN, random_stream(0))


def test_flip():
    recipe = PLAIN._replace(flip=True)
    flipped = [bool((train_image(ramp(), recipe, random_stream(i))[0, 0, 0]) == 31) for i in range(400)]
    assert 160 < sum(flipped) < 240


def test_cutout_by_hand():
    pixels = np.zeros((32, 32, 3), np.uint8)
    found = cutout(pixels, fixed(10), side=16, fill=(1, 2, 3))  # rows and columns 2..17
    assert (found[2:18, 2:18] == (1, 2, 3)).all() and (found != 0).any(-1).sum() == 256
    corner = cutout(pixels, fixed(0), side=16, fill=(1, 2, 3))  # three quarters lie outside
    assert (corner[:8, :8] == (1, 2, 3)).all() and (corner != 0).any(-1).sum() == 64
    assert not pixels.any()
    assert (cutout(pixels, fixed(31), side=16, fill=(1, 2, 3)) != 0).any(-1).sum() == 81


@pytest.mark.parametrize("size", [Size(224, 224), Size(10, 1000), Size(1000, 10), Size(1, 1), Size(375, 500)])
def test_random_part_lies_inside(size):
    shares = []
    for i in range(200):
        left, top, right, bottom = random_part(size, random_stream(i))
        assert 0 <= left < right <= size.width and 0 <= top < bottom <= size.height
        shares.append((right - left) * (bottom - top) / (size.height * size.width))
        if min(size) > 100:
            assert 0.7 < (right - left) / (bottom - top) < 1.4
    if min(size) > 100:
        assert min(shares) > 0.07 and max(shares) > 0.8


def test_resized_crop_and_middle():
    recipe = PLAIN._replace(crop="resized", size=28)
    for image in (picture(100), Image.new("RGB", (70, 33)), Image.new("RGB", (9, 60))):
        assert train_image(image, recipe, random_stream(0)).shape == (28, 28, 3)
        assert eval_image(image, recipe).shape == (28, 28, 3)
    # An image whose shorter side is 8/7 of the size is not resized: its middle is what is left.
    np.testing.assert_array_equal(eval_image(ramp(), recipe), np.asarray(ramp())[2:30, 2:30])


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_policies_are_whole(policy):
    """25 pairs of known operations, probabilities in tenths, levels 0 to 9."""
    steps = [step for pair in POLICIES[policy] for step in pair]
    assert len(POLICIES[policy]) == 25 and len(steps) == 50
    for step in steps:
        assert step.operation in OPERATIONS and 0 <= step.level <= 9 and isinstance(step.level, int)
        assert step.probability * 10 == pytest.approx(round(step.probability * 10)) and 0 <= step.probability <= 1


def test_operations_by_hand():
    image, fill = ramp(), (200, 201, 202)
    run = lambda name, strength, sign=1: np.asarray(OPERATIONS[name](image, strength, sign, fill)).astype(int)  # noqa: E731
    pixels = np.asarray(image).astype(int)
    shift = int(150 / 331 * 32)  # 14
    moved = run("translate_x", 1)
    assert (moved[:, :shift] == fill).all() and (moved[:, shift:] == pixels[:, :-shift]).all()
    assert (run("translate_y", 1, -1)[:-shift] == pixels[shift:]).all()
    sheared = run("shear_x", 1)
    assert (sheared[0] == pixels[0]).all()  # the first row stays, the tenth moves three to the right
    assert (sheared[10, 3:] == pixels[10, :-3]).all() and (sheared[10, :3] == fill).all()
    assert (run("shear_y", 1, -1)[:-3, 10] == pixels[3:, 10]).all()
    assert (run("rotate", 1)[0, 0] == fill).all() and (run("rotate", 0) == pixels).all()
    assert (run("invert", 0.3) == 255 - pixels).all()
    assert (run("posterize", 1) == pixels // 16 * 16).all() and (run("posterize", 0) == pixels).all()
    assert (run("solarize", 0) == pixels).all() and (run("solarize", 1) == 255 - pixels).all()
    half = run("solarize", 1 - 16 / 256)  # at 16 and above
    assert (half == np.where(pixels < 16, pixels, 255 - pixels)).all()
    assert (run("brightness", 1, -1) == (pixels * 0.1).astype(int)).all() and (run("brightness", 0) == pixels).all()
    for name in ("color", "contrast", "sharpness", "equalize", "autocontrast"):
        assert run(name, 1).shape == pixels.shape
    stretched = run("autocontrast", 0)
    assert stretched[..., 0].min() == 0 and stretched[..., 0].max() == 255


def test_policy_does_what_its_probabilities_say():
    """Sub-policies come alike, and the share of images that stay as they are is the tables' product."""
    stays = np.mean([(1 - a.probability) * (1 - b.probability) for a, b in POLICIES["cifar10"]])
    image = picture()
    same = [
        np.array_equal(np.asarray(auto_augment(image, random_stream(i), policy="cifar10", fill=(0, 0, 0))), image)
        for i in range(1500)
    ]
    # Steps without effect (a level of 0, autocontrast of a picture that spans all of 0..255) make it more.
    assert stays - 0.03 < np.mean(same) < stays + 0.2


def test_the_stream_fixes_every_draw():
    recipe = PLAIN._replace(
        crop="padded", flip=True, policy="cifar10", cutout=16, colours=PhotometricRanges(0.4, 0.4, 0.4, 0.1)
    )
    once = [train_image(picture(), recipe, random_stream(7, i)) for i in range(20)]
    again = [train_image(picture(), recipe, random_stream(7, i)) for i in reversed(range(20))][::-1]
    np.testing.assert_array_equal(once, again)
    assert len({image.tobytes() for image in once}) == 20
