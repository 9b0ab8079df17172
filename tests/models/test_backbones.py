"""Backbones: published sizes, blocks against NumPy, frozen parts, and BatchNorm over images on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs import base
from eql_jax.models.backbones import Backbone, frozen_prefixes, make_backbone, make_stage
from eql_jax.models.senet import SEBottleneck
from eql_jax.training.mesh import make_mesh

UNOPTIMISED = {"xla_backend_optimization_level": 0}  # compiles in a fraction of the time


def model_config(*, architecture="fpn", **backbone):
    config = base.get_config().model
    config.architecture = architecture
    config.backbone.update(**backbone)
    return config


def shapes(config, side=64):
    """(variables, maps) as shapes only."""
    backbone = make_backbone(config, jnp.float32)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(functools.partial(backbone.init, train=False), jax.random.key(0), image)
    return variables, jax.eval_shape(functools.partial(backbone.apply, train=False), variables, image)


def count_parameters(variables) -> int:
    """Parameters, and scales and biases of frozen norms, which are held as statistics."""
    total = sum(x.size for x in jax.tree.leaves(variables["params"]))
    statistics = jax.tree_util.tree_leaves_with_path(variables.get("batch_stats", {}))
    return total + sum(x.size for path, x in statistics if path[-1].key in ("scale", "bias"))


# Published sizes less the classifier (1000 classes, with bias): torchvision's tables (resnet18 11,689,512,
# resnext101_32x8d 88,791,336, resnext101_64x4d 83,455,272, ..); SENet-154 115,088,984 in the tables of osmr/imgclsmob,
# whose weights are those of Cadene's pretrained-models.
@pytest.mark.parametrize("norm", ["frozen_batch_norm", "batch_norm"])
@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (dict(depth=18), 11_176_512),
        (dict(depth=34), 21_284_672),
        (dict(depth=50), 23_508_032),
        (dict(depth=101), 42_500_160),
        (dict(depth=152), 58_143_808),
        (dict(depth=101, groups=32, width_per_group=8), 86_742_336),
        (dict(depth=101, groups=64, width_per_group=4), 81_406_272),
        (dict(kind="senet", depth=154, groups=64, stride_in_1x1=False), 113_039_984),
    ],
    ids=str,
)
def test_published_sizes(backbone, expected, norm):
    variables, maps = shapes(model_config(norm=norm, **backbone))
    assert count_parameters(variables) == expected
    deepest = 512 if backbone["depth"] < 50 else 2048
    assert [m.shape[1:] for m in maps] == [(64 // 2**i, 64 // 2**i, deepest * 2**i // 32) for i in (2, 3, 4, 5)]


def test_deformable_blocks_have_the_offsets_of_their_stages():
    plain, _ = shapes(model_config())
    modulated, _ = shapes(model_config(deform_stages=(3, 5)))
    unmodulated, _ = shapes(model_config(deform_stages=(4,), deform_modulated=False, deform_groups=2))
    # 3x3 from the inner width to 27 channels, or 18 for each of two groups, with bias
    inner = 4 * (9 * 128 + 1) + 3 * (9 * 512 + 1)
    assert count_parameters(modulated) - count_parameters(plain) == 27 * inner
    assert count_parameters(unmodulated) - count_parameters(plain) == 36 * 6 * (9 * 256 + 1)
    block = modulated["params"]["res3_1"]
    assert set(block) == {"conv1", "conv2", "conv2_offset", "conv3"}
    assert {k: v.shape for k, v in block["conv2"].items()} == {"kernel": (3, 3, 128, 128)}
    assert block["conv2_offset"]["kernel"].shape == (3, 3, 128, 27) and block["conv2_offset"]["bias"].shape == (27,)
    assert unmodulated["params"]["res4_5"]["conv2_offset"]["bias"].shape == (36,)


def test_parts_of_c4_make_up_the_whole():
    kwargs = dict(depth=50, width=8, groups=2, deform_stages=(5,))
    whole, maps = shapes(model_config(**kwargs))
    config = model_config(architecture="c4", **kwargs)
    front, front_maps = shapes(config, side=50)  # no FPN: any size
    assert [m.shape for m in front_maps] == [(1, 13, 13, 32), (1, 7, 7, 64), (1, 4, 4, 128)]
    rois = jax.ShapeDtypeStruct((3, 14, 14, 128), jnp.float32)
    stage = make_stage(config, 5, jnp.float32)
    last = jax.eval_shape(functools.partial(stage.init, train=False), jax.random.key(0), rois)
    assert set(last["params"]) == {"res5_0", "res5_1", "res5_2"}
    assert jax.eval_shape(functools.partial(stage.apply, train=False), last, rois).shape == (3, 7, 7, 256)
    for kind in ("params", "batch_stats"):
        assert jax.tree.map(jnp.shape, front[kind] | last[kind]) == jax.tree.map(jnp.shape, whole[kind])


@pytest.mark.parametrize(
    ("kind", "depth", "freeze_at", "expected"),
    [("resnet", 18, 2, {"stem", "res2_0", "res2_1"}), ("senet", 50, 1, {"stem1", "stem2", "stem3"})],
)
def test_frozen_prefixes_name_what_gets_no_gradient(kind, depth, freeze_at, expected):
    config = model_config(kind=kind, depth=depth, width=8, norm="batch_norm", freeze_at=freeze_at, stride_in_1x1=False)
    backbone = Backbone(config.backbone, last_stage=freeze_at + 1)
    image = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)

    def gradient(key):
        variables = backbone.init(key, image, train=False)

        def loss(params):
            maps, updates = backbone.apply(variables | {"params": params}, image, train=True, mutable=["batch_stats"])
            return jnp.sum(maps[-1] ** 2), (updates["batch_stats"], variables["batch_stats"])

        return jax.grad(loss, has_aux=True)(variables["params"])

    grad, (after, before) = jax.jit(gradient)(jax.random.key(0))
    frozen = {name for name, g in grad.items() if not any(np.any(x) for x in jax.tree.leaves(g))}
    assert frozen == {name for name in grad if name.startswith(frozen_prefixes(config))}
    assert frozen == expected
    # and their running statistics stay
    same = {k for k in after if all(map(np.array_equal, jax.tree.leaves(after[k]), jax.tree.leaves(before[k])))}
    assert same == frozen


@pytest.mark.parametrize(("strides", "size", "cin"), [(2, 3, 16), (1, 1, 16), (1, 3, 32)])
def test_squeeze_and_excitation_block_against_numpy(strides, size, cin):
    rng = np.random.default_rng(0)
    block = SEBottleneck(32, strides, 4, size, "frozen_batch_norm", jnp.float32)
    x = rng.standard_normal((2, 6, 8, cin), np.float32)
    variables = jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(lambda s: rng.uniform(0.2, 1, s.shape).astype(np.float32) - 0.5, variables)
    for norm in variables["batch_stats"].values():
        norm["norm"]["var"] += 1
    params = variables["params"]

    def conv(x, name, stride=1, groups=1):
        kernel = params[name]["kernel"].astype(np.float64)
        k, cout = kernel.shape[0], kernel.shape[-1]
        x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
        out = np.zeros((x.shape[0], (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1, cout))
        for h, w in np.ndindex(*out.shape[1:3]):
            patch = x[:, h * stride : h * stride + k, w * stride : w * stride + k]
            patch = patch.reshape(*patch.shape[:3], groups, -1)
            grouped = kernel.reshape(k, k, -1, groups, cout // groups)
            out[:, h, w] = np.einsum("bijgc,ijcgo->bgo", patch, grouped).reshape(-1, cout)
        if "bias" in params[name]:
            return out + params[name]["bias"]
        norm = variables["batch_stats"][name]["norm"]
        return (out - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]

    y = np.maximum(conv(x, "conv1"), 0)
    y = np.maximum(conv(y, "conv2", strides, groups=4), 0)
    y = conv(y, "conv3")
    hidden = np.maximum(conv(y.mean(axis=(1, 2), keepdims=True), "se_reduce"), 0)
    assert hidden.shape[-1] == 2
    y = y / (1 + np.exp(-conv(hidden, "se_expand")))
    shortcut = conv(x, "shortcut", strides) if "shortcut" in params else x
    assert ("shortcut" in params) == (cin != 32) and params["conv1"]["kernel"].shape == (1, 1, cin, 16)
    expected = np.maximum(y + shortcut, 0)
    got = jax.jit(functools.partial(block.apply, train=False))(variables, x)
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("norm", ["batch_norm", "frozen_batch_norm"])
def test_batch_norm_over_images_on_four_devices_is_that_of_one(norm):
    """Outputs, running statistics and gradients: live BatchNorm under jit takes the joined batch's statistics."""
    backbone = Backbone(model_config(depth=18, width=8, norm=norm, freeze_at=0).backbone, last_stage=2)
    rng = np.random.default_rng(1)
    # Images of quite different means: statistics of two images would be far from those of all eight.
    images = rng.normal(rng.uniform(-3, 3, (8, 1, 1, 3)), 1, (8, 32, 32, 3)).astype(np.float32)
    weights = rng.standard_normal((8, 1, 1, 8), np.float32)
    variables = jax.jit(functools.partial(backbone.init, train=False))(jax.random.key(0), images)

    def step(variables, images, weights):
        def loss(params):
            everything = variables | {"params": params}
            maps, updates = backbone.apply(everything, images, train=True, mutable=["batch_stats"])
            return jnp.sum(maps[-1] * weights), (maps, updates)

        grad, (maps, updates) = jax.grad(loss, has_aux=True)(variables["params"])
        return maps, updates["batch_stats"], grad

    alone = jax.jit(step)(variables, images, weights)
    mesh = make_mesh(base.get_config(), jax.devices()[:4])
    by_image, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put(variables, everywhere), jax.device_put(images, by_image), jax.device_put(weights, by_image)
    with jax.set_mesh(mesh):
        spread = jax.jit(step)(*placed)
    assert not spread[0][0].sharding.is_fully_replicated
    for what, ours, joined in zip(("maps", "statistics", "gradients"), spread, alone, strict=True):
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(joined), strict=True):
            scale = max(float(np.abs(b).max()), 1e-3)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * scale, err_msg=f"{what} {path}")
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), alone[1], variables["batch_stats"])
    assert set(jax.tree.leaves(moved)) == {norm == "batch_norm"}
    if norm == "batch_norm":  # and two images by themselves do give other statistics
        two = jax.jit(step)(variables, images[:2], weights[:2])[1]["stem"]["norm"]["mean"]
        assert np.abs(two - alone[1]["stem"]["norm"]["mean"]).max() > 0.01


@pytest.mark.parametrize("kind", [dict(depth=18), dict(depth=50), dict(kind="senet", depth=50)], ids=str)
def test_rematerialised_blocks_have_the_same_gradient_and_keep_less(kind):
    config = model_config(width=4, norm="batch_norm", freeze_at=2, **kind)
    x = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    kept, anew = (make_backbone(config, jnp.float32, remat=remat) for remat in (False, True))
    variables = jax.jit(functools.partial(kept.init, train=False))(jax.random.key(0), x)
    assert jax.tree.structure(jax.eval_shape(functools.partial(anew.init, train=False), jax.random.key(0), x)) == (
        jax.tree.structure(variables)
    )

    def loss(backbone, params):
        maps, updates = backbone.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
        return sum(jnp.mean(m**2) for m in maps), updates

    def gradient(backbone):
        run = jax.jit(jax.value_and_grad(functools.partial(loss, backbone), has_aux=True), compiler_options=UNOPTIMISED)
        return run(variables["params"])

    (of_kept, expected), (of_anew, found) = gradient(kept), gradient(anew)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), of_anew, of_kept)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest), found, expected)

    def bytes_kept(backbone):
        """Of what the forward pass leaves for the backward one."""
        back = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(backbone, p)[0], p)[1], variables["params"])
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(back))

    assert bytes_kept(anew) < 0.7 * bytes_kept(kept)


def test_unknown_kinds_and_depths_are_refused():
    with pytest.raises(ValueError, match=r"depth is 99; expected one of \[18, 34, 50, 101, 152\] for 'resnet'"):
        shapes(model_config(depth=99))
    with pytest.raises(ValueError, match="kind is 'vgg'; expected one of resnet, senet"):
        shapes(model_config(kind="vgg"))
