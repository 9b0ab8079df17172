"""The table between detectron2's tensors and this package's parameters, and the two ways through it.

A rule is (detectron2's name, path here, transform); {stage}, {block}, {conv}, {level}, {i} and {k} stand for the same
text on both sides. Every parameter has one rule, so the table serves both directions, and a round trip is bit-exact
because the transforms only permute.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from eql_jax.convert.names import backbone_prefix

_PLACEHOLDERS = {
    "stage": r"res[2-5]",
    "block": r"\d+",
    "conv": r"conv[123]|shortcut",
    "squeeze": r"se_reduce|se_expand",
    "level": r"[2-5]",
    "i": r"\d+",
    "k": r"\d+",
}


class Transform(NamedTuple):
    """forward: detectron2's array -> ours; backward: the way back. Both may return views."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]


class Rule(NamedTuple):
    """One line of the table. `classes`: the tensor has rows per class of the data set."""

    source: str
    path: str
    transform: Transform
    classes: bool = False

    def source_of(self, path: str) -> str | None:
        """detectron2's name of a path here, None if this rule is not for it."""
        match = re.fullmatch(_regex(self.path), path)
        return None if match is None else self.source.format(**match.groupdict())


@functools.cache
def _regex(template: str) -> str:
    seen: set[str] = set()

    def group(match: re.Match) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{_PLACEHOLDERS[name]})"

    return re.sub(r"\\\{(\w+)\\\}", group, re.escape(template))


def _permute(*axes: int) -> Transform:
    back = tuple(int(i) for i in np.argsort(axes))
    return Transform(lambda x: _transpose(x, axes), lambda x: x.transpose(back))


def _transpose(x: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    # A tensor of another rank does not fit; the report shows its shape as it is.
    return x.transpose(axes) if x.ndim == len(axes) else x


SAME = _permute(0)
CONV = _permute(2, 3, 1, 0)  # [out, in, h, w] -> [h, w, in, out]
LINEAR = _permute(1, 0)  # [out, in] -> [in, out]
DECONV = _permute(2, 3, 0, 1)  # [in, out, h, w] -> [h, w, in, out], not flipped
# A 1x1 convolution whose kernel is stored as a matrix: [out, in, 1, 1] -> [in, out].
PREDICTOR = Transform(
    lambda x: x[:, :, 0, 0].T if x.ndim == 4 and x.shape[2:] == (1, 1) else x,
    lambda x: x.T[:, :, None, None],
)


def stem(channels: str) -> Transform:
    """The first convolution; its input channels are turned from blue-green-red to red-green-blue if need be."""
    step = -1 if channels == "bgr" else 1
    return Transform(lambda x: CONV.forward(x[:, ::step]) if x.ndim == 4 else x, lambda x: CONV.backward(x)[:, ::step])


def flattened(side: int) -> Transform:
    """The first linear layer on pooled features: [out, C * S * S] with (C, y, x) -> [S * S * C, out] with (y, x, C)."""

    def forward(x: np.ndarray) -> np.ndarray:
        if x.ndim != 2 or x.shape[1] % side**2:
            return x
        return x.reshape(x.shape[0], -1, side, side).transpose(2, 3, 1, 0).reshape(x.shape[1], x.shape[0])

    def backward(x: np.ndarray) -> np.ndarray:
        return x.reshape(side, side, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], x.shape[0])

    return Transform(forward, backward)


def _norm(source: str, path: str, norm: str) -> list[Rule]:
    """The arrays of a norm: none of a frozen one is a parameter, statistics never are."""
    affine = "batch_stats" if norm == "frozen_batch_norm" else "params"
    rules = [
        Rule(f"{source}.norm.weight", f"{affine}/{path}/norm/scale", SAME),
        Rule(f"{source}.norm.bias", f"{affine}/{path}/norm/bias", SAME),
    ]
    if norm != "group_norm":
        rules += [
            Rule(f"{source}.norm.running_mean", f"batch_stats/{path}/norm/mean", SAME),
            Rule(f"{source}.norm.running_var", f"batch_stats/{path}/norm/var", SAME),
        ]
    return rules


def _conv(source: str, path: str, norm: str, transform: Transform = CONV) -> list[Rule]:
    rules = [Rule(f"{source}.weight", f"params/{path}/kernel", transform)]
    if norm == "none":
        return [*rules, Rule(f"{source}.bias", f"params/{path}/bias", SAME)]
    return rules + _norm(source, path, norm)


def _layer(source: str, path: str, transform: Transform, *, classes: bool = False) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"params/{path}/kernel", transform, classes),
        Rule(f"{source}.bias", f"params/{path}/bias", SAME, classes),
    ]


def detectron2_table(config: ConfigDict, *, channels: str) -> list[Rule]:
    """The table for the model of `config` (the whole config); channels: 'bgr' or 'rgb', the order the file expects.

    detectron2 has no SENet; its parts go by the names that `names.cadene_to_detectron2` gives them.
    """
    m = config.model
    rpn = "proposal_generator.rpn_head"
    return [
        *_backbone(m, channels),
        *_conv("backbone.fpn_lateral{level}", "fpn/lateral{level}", m.fpn.norm),
        *_conv("backbone.fpn_output{level}", "fpn/output{level}", m.fpn.norm),
        *_layer(f"{rpn}.conv", "rpn_head/conv", CONV),
        *_layer(f"{rpn}.objectness_logits", "rpn_head/objectness", CONV),
        *_layer(f"{rpn}.anchor_deltas", "rpn_head/anchor_deltas", CONV),
        *_box_head(m),
        *_conv("roi_heads.mask_head.mask_fcn{i}", "mask_head/conv{i}", m.mask_head.norm),
        *_layer("roi_heads.mask_head.deconv", "mask_head/deconv", DECONV),
        *_layer(
            "roi_heads.mask_head.predictor",
            "mask_head/predictor",
            PREDICTOR,
            classes=not m.mask_head.class_agnostic,
        ),
    ]


def _backbone(m: ConfigDict, channels: str) -> list[Rule]:
    """Stem and stages; with 'c4' res5 is part of the heads, in both."""
    prefix, norm = backbone_prefix(m.architecture), m.backbone.norm
    stage, path = f"{prefix}{{stage}}.{{block}}", "backbone/{stage}_{block}"
    if m.backbone.kind == "senet":
        rules = _conv(f"{prefix}stem.conv1", "backbone/stem1", norm, stem(channels))
        rules += _conv(f"{prefix}stem.conv{{i}}", "backbone/stem{i}", norm)
    else:
        rules = _conv(f"{prefix}stem.conv1", "backbone/stem", norm, stem(channels))
    places = [(stage, path), ("roi_heads.{stage}.{block}", "{stage}/{stage}_{block}")]
    for source, target in places[: 2 if m.architecture == "c4" else 1]:
        rules += _conv(f"{source}.{{conv}}", f"{target}/{{conv}}", norm)
        rules += _layer(f"{source}.conv2_offset", f"{target}/conv2_offset", CONV)
        rules += _layer(f"{source}.{{squeeze}}", f"{target}/{{squeeze}}", CONV)
    return rules


def _box_head(m: ConfigDict) -> list[Rule]:
    """One box head, or one for each stage {k} of a cascade."""
    cascade = bool(m.cascade.ious)
    head, predictor = (f"roi_heads.{part}" + (".{k}" if cascade else "") for part in ("box_head", "box_predictor"))
    path = "box_head_{k}" if cascade else "box_head"
    return [
        *_conv(f"{head}.conv{{i}}", f"{path}/conv{{i}}", m.box_head.norm),
        *_layer(f"{head}.fc1", f"{path}/fc1", flattened(m.box_head.pool_size)),
        *_layer(f"{head}.fc{{i}}", f"{path}/fc{{i}}", LINEAR),
        *_layer(f"{predictor}.cls_score", f"{path}/cls_score", LINEAR, classes=True),
        *_layer(f"{predictor}.bbox_pred", f"{path}/bbox_pred", LINEAR, classes=not m.box_head.class_agnostic_boxes),
    ]


class Match(NamedTuple):
    """What a file gives for a model.

    Attributes:
      arrays: {path: array} of what fits.
      missing: [(path, detectron2's name)] that the file lacks.
      misshaped: [(path, name, shape in the file, shape wanted)], both in detectron2's layout.
      unused: names that no parameter asked for.
      of_classes: paths that have rows per class.
      names: {path: detectron2's name} of every parameter.
    """

    arrays: dict[str, np.ndarray]
    missing: list[tuple[str, str]]
    misshaped: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]]
    unused: list[str]
    of_classes: set[str]
    names: dict[str, str]


def match_tensors(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], table: Sequence[Rule]
) -> Match:
    """Looks up every parameter of `shapes` ({path: shape}) in a file's tensors. Nothing is decided here."""
    match = Match({}, [], [], [], set(), {})
    used = set()
    for path, shape in shapes.items():
        rule, name = find_rule(path, table)
        match.names[path] = name
        if rule.classes:
            match.of_classes.add(path)
        if name not in tensors:
            match.missing.append((path, name))
            continue
        used.add(name)
        array = rule.transform.forward(tensors[name])
        if array.shape != tuple(shape):
            wanted = rule.transform.backward(np.broadcast_to(np.float32(0), shape)).shape
            match.misshaped.append((path, name, tensors[name].shape, wanted))
        else:
            match.arrays[path] = array
    match.unused.extend(name for name in tensors if name not in used)
    return match


def to_detectron2(arrays: Mapping[str, np.ndarray], table: Sequence[Rule]) -> dict[str, np.ndarray]:
    """{path: array} -> {detectron2's name: contiguous array}, in order of name."""
    out = {}
    for path, array in arrays.items():
        rule, name = find_rule(path, table)
        out[name] = np.ascontiguousarray(rule.transform.backward(array))
    return dict(sorted(out.items()))


def find_rule(path: str, table: Sequence[Rule]) -> tuple[Rule, str]:
    """The rule of a path and detectron2's name of it.

    Raises:
      KeyError: no rule, which is a fault of the table.
    """
    for rule in table:
        name = rule.source_of(path)
        if name is not None:
            return rule, name
    raise KeyError(f"the conversion table has no line for the parameter {path}")
