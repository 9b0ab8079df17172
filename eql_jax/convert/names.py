"""From the names of other sources to detectron2's, as tables of (pattern, replacement).

Prefixes: detectron2 calls the ResNet of an FPN backbone.bottom_up, that of a C4 model backbone, whose res5 is in
roi_heads; files of a backbone alone leave that out.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from eql_jax.convert.errors import ConversionError

_PREFIXES = {"fpn": "backbone.bottom_up.", "c4": "backbone."}
_STAGE = re.compile(r"(?:backbone\.bottom_up\.|backbone\.|roi_heads\.(?=res5\.))?((?:stem|res[2-5])\..+)")

# Caffe2 names of the MSRA ImageNet weights: conv1_w, res_conv1_bn_s, res2_0_branch2a_w, res2_0_branch2a_bn_s ...
CAFFE2 = (
    (r"conv1_w", r"stem.conv1.weight"),
    (r"(?:res_)?conv1_bn_(\w+)", r"stem.conv1.norm.\1"),
    (r"res([2-5])_(\d+)_branch1_w", r"res\1.\2.shortcut.weight"),
    (r"res([2-5])_(\d+)_branch1_[bg]n_(\w+)", r"res\1.\2.shortcut.norm.\3"),
    (r"res([2-5])_(\d+)_branch2a_w", r"res\1.\2.conv1.weight"),
    (r"res([2-5])_(\d+)_branch2b_w", r"res\1.\2.conv2.weight"),
    (r"res([2-5])_(\d+)_branch2c_w", r"res\1.\2.conv3.weight"),
    (r"res([2-5])_(\d+)_branch2a_[bg]n_(\w+)", r"res\1.\2.conv1.norm.\3"),
    (r"res([2-5])_(\d+)_branch2b_[bg]n_(\w+)", r"res\1.\2.conv2.norm.\3"),
    (r"res([2-5])_(\d+)_branch2c_[bg]n_(\w+)", r"res\1.\2.conv3.norm.\3"),
    (r"(?:fc1000|pred|linear)_([wb])", r"classifier.\1"),
)
CAFFE2_NORM = {
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "rm": "running_mean",
    "running_mean": "running_mean",
    "riv": "running_var",
    "running_var": "running_var",
}

# layer1 .. layer4, as torchvision and those after it call the stages.
_TORCH_STAGES = tuple((rf"(?:backbone\.body\.)?layer{n}\.(.+)", rf"res{n + 1}.\1") for n in (1, 2, 3, 4))

# torchvision counts stages from 1 and levels from 0; `{+1}` and `{+2}` add to the group before.
TORCHVISION = (
    (r"(?:backbone\.body\.)?conv1\.weight", r"stem.conv1.weight"),
    (r"(?:backbone\.body\.)?bn1\.(\w+)", r"stem.conv1.norm.\1"),
    *_TORCH_STAGES,
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"backbone.fpn_lateral{\1}.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"backbone.fpn_output{\1}.\2"),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn\.head\.cls_logits\.(\w+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn\.head\.bbox_pred\.(\w+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(\w+)", r"roi_heads.box_head.fc1.\1"),
    (r"roi_heads\.box_head\.fc7\.(\w+)", r"roi_heads.box_head.fc2.\1"),
    (r"roi_heads\.mask_head\.mask_fcn(\d)\.(\w+)", r"roi_heads.mask_head.mask_fcn\1.\2"),
    (r"roi_heads\.mask_head\.0\.0\.(\w+)", r"roi_heads.mask_head.mask_fcn1.\1"),
    (r"roi_heads\.mask_head\.1\.0\.(\w+)", r"roi_heads.mask_head.mask_fcn2.\1"),
    (r"roi_heads\.mask_head\.2\.0\.(\w+)", r"roi_heads.mask_head.mask_fcn3.\1"),
    (r"roi_heads\.mask_head\.3\.0\.(\w+)", r"roi_heads.mask_head.mask_fcn4.\1"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(\w+)", r"roi_heads.mask_head.deconv.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(\w+)", r"roi_heads.mask_head.predictor.\1"),
    (r"fc\.(weight|bias)", r"classifier.\1"),
)
_TORCHVISION_BLOCK = (
    (r"(res[2-5]\.\d+)\.bn(\d)\.(\w+)", r"\1.conv\2.norm.\3"),
    (r"(res[2-5]\.\d+)\.downsample\.0\.weight", r"\1.shortcut.weight"),
    (r"(res[2-5]\.\d+)\.downsample\.1\.(\w+)", r"\1.shortcut.norm.\2"),
)

# Cadene's pretrained-models, senet154: a stem of three convolutions, torchvision's names for the rest of a block.
CADENE = (
    (r"layer0\.conv([123])\.weight", r"stem.conv\1.weight"),
    (r"layer0\.bn([123])\.(\w+)", r"stem.conv\1.norm.\2"),
    *_TORCH_STAGES,
    (r"last_linear\.(weight|bias)", r"classifier.\1"),
)
_CADENE_BLOCK = (
    *_TORCHVISION_BLOCK,
    (r"(res[2-5]\.\d+)\.se_module\.fc1\.(\w+)", r"\1.se_reduce.\2"),
    (r"(res[2-5]\.\d+)\.se_module\.fc2\.(\w+)", r"\1.se_expand.\2"),
)


def is_caffe2(names: Sequence[str]) -> bool:
    """Whether the names are those of the MSRA weights."""
    return "conv1_w" in names


def caffe2_to_detectron2(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames. Norms come with a scale and a bias alone, or with statistics too: see `complete_norms`."""

    def rename(name: str) -> str:
        renamed = substitute(name, CAFFE2)
        stem, dot, last = renamed.rpartition(".norm.")
        return f"{stem}.norm.{CAFFE2_NORM.get(last, last)}" if dot else renamed

    return _renamed(tensors, rename)


def torchvision_to_detectron2(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames; the classes' rows stay as torchvision orders them (see `move_background_last`)."""

    def rename(name: str) -> str:
        renamed = substitute(substitute(name, TORCHVISION), _TORCHVISION_BLOCK)
        return re.sub(r"\{(\d)\}", lambda m: str(int(m[1]) + 2), renamed)

    return _renamed(tensors, rename)


def cadene_to_detectron2(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the SENets of Cadene's pretrained-models. detectron2 has none: stem.conv1 to conv3 and a block's
    se_reduce and se_expand are names of this package."""
    return _renamed(tensors, lambda name: substitute(substitute(name, CADENE), _CADENE_BLOCK))


def move_background_last(tensors: Mapping[str, np.ndarray], rows: Sequence[int] | None = None) -> dict[str, np.ndarray]:
    """torchvision's predictors (background is row 0, and has boxes and masks too) in detectron2's order.

    Args:
      tensors: under detectron2's names.
      rows: row of each class; None: 1, 2, ... (torchvision's COCO models have a row for each of the category ids 1 to
        90, of which COCO uses 80).
    """
    out = dict(tensors)
    for part, block, keep_background in (
        ("roi_heads.box_predictor.cls_score", 1, True),
        ("roi_heads.box_predictor.bbox_pred", 4, False),
        ("roi_heads.mask_head.predictor", 1, False),
    ):
        for kind in ("weight", "bias"):
            name = f"{part}.{kind}"
            if name not in out:
                continue
            by_class = out[name].reshape(-1, block, *out[name].shape[1:])
            chosen = list(range(1, len(by_class)) if rows is None else rows)
            if chosen and max(chosen) >= len(by_class):
                raise ConversionError(
                    f"{name} has {len(by_class)} rows; the classes need row {max(chosen)} (background is row 0)"
                )
            picked = by_class[[*chosen, 0] if keep_background else chosen]
            out[name] = picked.reshape(-1, *out[name].shape[1:])
    return out


def backbone_prefix(architecture: str) -> str:
    """What detectron2 puts before stem and res2, for config.model.architecture 'fpn' or 'c4'."""
    return _PREFIXES[architecture]


def with_prefix(
    tensors: Mapping[str, np.ndarray], architecture: str, *, backbone_only: bool = False
) -> dict[str, np.ndarray]:
    """Puts the architecture's prefixes before the names of a bare ResNet: for 'c4', res5 is the heads'.

    backbone_only: also in place of other prefixes, so that an FPN's ResNet serves a C4 model and the other way round.
    """
    prefix = backbone_prefix(architecture)
    out = {}
    for name, value in tensors.items():
        match = _STAGE.fullmatch(name)
        if match and (backbone_only or match.start(1) == 0):
            in_heads = architecture == "c4" and match[1].startswith("res5.")
            name = f"{'roi_heads.' if in_heads else prefix}{match[1]}"
        out[name] = value
    return out


def is_backbone(name: str) -> bool:
    """Whether a tensor belongs to the stem or the stages, wherever they are."""
    return _STAGE.fullmatch(name) is not None


def complete_norms(tensors: Mapping[str, np.ndarray], eps: float = 1e-5) -> dict[str, np.ndarray]:
    """Adds running mean 0 and variance 1 - eps, the identity, to norms that have a scale and a bias alone.

    So does detectron2 with weights of Caffe2, in which the statistics are folded into scale and bias.
    """
    out = dict(tensors)
    for name in tensors:
        if is_backbone(name) and name.endswith(".norm.weight"):
            stem = name.removesuffix("weight")
            out.setdefault(stem + "running_mean", np.zeros_like(tensors[name]))
            out.setdefault(stem + "running_var", np.ones_like(tensors[name]) - np.float32(eps))
    return out


def substitute(name: str, table: Sequence[tuple[str, str]]) -> str:
    """The replacement of the first pattern that matches the whole name, else the name."""
    for pattern, replacement in table:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return name


def _renamed(tensors: Mapping[str, np.ndarray], rename) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, value in tensors.items():
        new = rename(name)
        if new in out:
            raise ConversionError(f"{origin[new]} and {name} both stand for {new}; expected one of them")
        out[new], origin[new] = value, name
    return out
