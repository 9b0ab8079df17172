"""Backbones: a stem and the stages res2..res5, of the kind that the config names.

A kind is a module (`resnet`, `senet`) with DEPTHS, `stem` and `make_block`. Shapes: B images, H W their padded size, C
channels; NHWC.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from eql_jax.models import resnet, senet

KINDS = {"resnet": resnet, "senet": senet}


def make_backbone(config, dtype: jnp.dtype, *, remat: bool = False) -> "Backbone":
    """The backbone of config.model: up to res5 for 'fpn', up to res4 for 'c4', whose heads have the rest."""
    return Backbone(config.backbone, 4 if config.architecture == "c4" else 5, dtype, remat)


def make_stage(config, stage: int, dtype: jnp.dtype, *, remat: bool = False) -> "Stage":
    """One stage of config.model's backbone as a module of its own: C4's heads have `make_stage(config, 5, dtype)`."""
    return Stage(config.backbone, stage, dtype, remat)


def frozen_prefixes(config) -> tuple[str, ...]:
    """Names of the backbone's submodules that config.model holds fixed, as prefixes: ('stem', 'res2_') for freeze_at 2.

    'stem' also stands for a SENet's stem1, stem2 and stem3.
    """
    return tuple(["stem", *(f"res{i}_" for i in range(2, 6))][: config.backbone.freeze_at])


class Backbone(nn.Module):
    """Images [B,H,W,3], normalised, of any size -> [res2, .., res{last_stage}] at strides 4, 8, 16, 32.

    An odd side is halved upwards (SENet's pooling rounds it down). The stem and the stages up to config.freeze_at (1:
    the stem, 2: res2 as well, ...; detectron2's FREEZE_AT) get no gradient, and a live norm in them uses its running
    statistics.

    Attributes:
      config: config.model.backbone.
      last_stage: 2..5.
      dtype: compute type, and that of the result.
      remat: the gradient computes what is inside of blocks anew (`jax.checkpoint`), so that only their inputs are kept.
    """

    config: object
    last_stage: int = 5
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        c = self.config
        frozen = c.freeze_at >= 1
        x = _kind(c).stem(c, x.astype(self.dtype), train=train and not frozen, dtype=self.dtype)
        if frozen:
            x = jax.lax.stop_gradient(x)
        maps = []
        for stage in range(2, self.last_stage + 1):
            frozen = c.freeze_at >= stage
            # What gets no gradient has nothing to compute anew.
            options = dict(train=train and not frozen, dtype=self.dtype, remat=self.remat and not frozen)
            x = _blocks(c, stage, x, **options)
            if frozen:
                x = jax.lax.stop_gradient(x)
            maps.append(x)
        return maps


class Stage(nn.Module):
    """A single stage, blocks res{stage}_0 and so on. [B,H,W,C] -> [B,H/2,W/2,features], rounded up; res2 keeps H, W."""

    config: object
    stage: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        options = dict(train=train, dtype=self.dtype, remat=self.remat)
        return _blocks(self.config, self.stage, x.astype(self.dtype), **options)


def _kind(config):
    if config.kind not in KINDS:
        raise ValueError(f"backbone.kind is {config.kind!r}; expected one of {', '.join(KINDS)}")
    kind = KINDS[config.kind]
    if config.depth not in kind.DEPTHS:
        raise ValueError(f"backbone.depth is {config.depth}; expected one of {sorted(kind.DEPTHS)} for {config.kind!r}")
    return kind


def _blocks(config, stage, x, *, train, dtype, remat):
    """Runs the blocks of a stage as children of the module in whose compact method this is called."""
    kind = _kind(config)
    for i in range(kind.DEPTHS[config.depth][stage - 2]):
        strides = 2 if stage > 2 and i == 0 else 1
        block = kind.make_block(config, stage, strides, dtype=dtype, remat=remat, name=f"res{stage}_{i}")
        x = block(x, train)
    return x
