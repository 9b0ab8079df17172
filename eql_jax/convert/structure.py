"""What a file's names and shapes say of its model, and which config fields would build it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from eql_jax.class_losses import ClassFrequencies
from eql_jax.models.box_head import configured_loss
from eql_jax.models.resnet import BASIC_DEPTHS, DEPTHS

# Models that are not built here, told by a part of a name.
_OTHERS = {"keypoint_head": "a keypoint model", "head.cls_subnet": "a RetinaNet"}


def groups_of(tensors: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(groups, channels of a group in res2) of the 3x3 convolutions of a file's bottlenecks; (1, 0) without groups."""
    for name, array in tensors.items():
        match = re.search(r"res([2-5])\.\d+\.conv2\.weight$", name)
        if match and array.ndim == 4 and 0 < array.shape[1] < array.shape[0]:
            return array.shape[0] // array.shape[1], array.shape[1] // 2 ** (int(match[1]) - 2)
    return 1, 0


def hints(
    tensors: Mapping[str, np.ndarray], config: ConfigDict, num_classes: int, *, backbone_only: bool, new_classes: bool
) -> list[str]:
    """A sentence for every part of the model that the file has otherwise, with the fields to set.

    Args:
      tensors: by detectron2's names.
      config: the whole config of the model that the file does not fit.
      num_classes: K.
      backbone_only, new_classes: see run.Options; the heads or the layers with rows per class do not matter then.
    """
    found = [
        f"The file is of {what}, which is not built here." for part, what in _OTHERS.items() if _has(tensors, part)
    ]
    facts = list(_backbone_facts(tensors))
    if not backbone_only:
        if not _has(tensors, r"proposal_generator\.") and _has(tensors, r"res[2-5]\.\d"):
            found.append("The file holds a backbone alone: --backbone-only takes it and initialises the rest.")
        else:
            facts += _head_facts(tensors)
    for what, fields in facts:
        wrong = {field: value for field, value in fields.items() if _field(config, field) != value}
        if wrong:
            set_ = ", ".join(f"config.{field}={value}" for field, value in wrong.items())
            found.append(f"The file is of {what}: set {set_}.")
    if not (backbone_only or new_classes):
        found += _class_hints(tensors, config, num_classes)
    return found


def class_count_message(what: Any, found: int, expected: int) -> str:
    """That a file has another number of classes than the data set, and what to do."""
    return (
        f"{what} has {found} classes, the data set {expected}. Give --annotations of the data set it was trained on, "
        "or --new-classes to load everything but the layers with rows per class"
    )


def _class_hints(tensors: Mapping[str, np.ndarray], config: ConfigDict, num_classes: int) -> Iterator[str]:
    rows = _shapes(tensors, r"roi_heads\.box_predictor\.(?:0\.)?cls_score\.bias")
    if not rows:
        return
    found, wanted = rows[0][0], configured_loss(config.model, ClassFrequencies(num_classes)).num_logits
    if found == wanted:
        return
    if wanted == num_classes and found == num_classes + 1:
        yield "One row more than classes: a softmax head; set config.model.box_head.loss=softmax."
    elif wanted == num_classes + 1 and found == num_classes:
        yield "One row less than classes and background: a sigmoid head; set config.model.box_head.loss=eql."
    else:
        yield class_count_message("The file", found - wanted + num_classes, num_classes)


def _backbone_facts(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(description, {field: value}) of the backbone."""
    stages = [_count(tensors, rf"res{stage}\.(\d+)\.") for stage in (2, 3, 4, 5)]
    if not any(stages):
        return
    if _has(tensors, r"\.se_reduce\."):
        fields = {"model.backbone.kind": "senet", "model.backbone.depth": 154, "model.backbone.groups": 64}
        yield "a SENet-154", fields | {"model.backbone.stride_in_1x1": False}
        return
    yield "a ResNet, not a SENet", {"model.backbone.kind": "resnet"}
    basic = not _has(tensors, r"res2\.0\.conv3\.weight")
    fitting = [
        depth
        for depth, blocks in DEPTHS.items()
        if (depth in BASIC_DEPTHS) == basic and all(b >= n for b, n in zip(blocks, stages, strict=True))
    ]
    if fitting:
        of_stages = ", ".join(map(str, stages))
        yield f"a ResNet of {of_stages} blocks in res2 to res5", {"model.backbone.depth": min(fitting)}
    groups, per_group = groups_of(tensors)
    if groups > 1:
        fields = {"model.backbone.groups": groups, "model.backbone.width_per_group": per_group}
        yield f"a ResNeXt ({groups} groups of {per_group} channels)", fields
    else:
        yield "a ResNet without groups", {"model.backbone.groups": 1, "model.backbone.width_per_group": 0}
    offsets = _shapes(tensors, r".*\.conv2_offset\.weight")
    deform = tuple(s for s in (2, 3, 4, 5) if _has(tensors, rf"res{s}\.\d+\.conv2_offset\."))
    if offsets and deform:
        modulated = offsets[0][0] % 27 == 0
        fields = {"model.backbone.deform_stages": deform, "model.backbone.deform_modulated": modulated}
        yield (
            "a model with deformable convolutions",
            fields | {"model.backbone.deform_groups": max(1, offsets[0][0] // (27 if modulated else 18))},
        )
    elif _has(tensors, r"proposal_generator\."):  # a backbone alone may be taken for a deformable one
        yield "a model without deformable convolutions", {"model.backbone.deform_stages": ()}


def _head_facts(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(description, {field: value}) of what follows the backbone."""
    if _has(tensors, r"roi_heads\.res5\."):
        fields = {"model.architecture": "c4", "model.box_head.pool_size": 14}  # no shape says how large RoIs are
        yield "a C4 model (the heads run res5)", fields
    elif _has(tensors, r"backbone\.fpn_"):
        yield "an FPN model", {"model.architecture": "fpn"}
    stages = _count(tensors, r"roi_heads\.box_(?:head|predictor)\.(\d+)\.")
    if stages:
        ious = tuple(round(0.5 + 0.1 * stage, 1) for stage in range(stages))
        agnostic = {"model.box_head.class_agnostic_boxes": True}
        yield f"a Cascade R-CNN of {stages} stages", {"model.cascade.ious": ious, **agnostic}
    elif _has(tensors, r"roi_heads\.box_predictor\."):
        yield "a model with one box head, not a cascade", {"model.cascade.ious": ()}
        boxes = _shapes(tensors, r"roi_heads\.box_predictor\.bbox_pred\.bias")
        if boxes:
            kind = "class-agnostic" if boxes[0][0] == 4 else "class-specific"
            yield f"a model with {kind} boxes", {"model.box_head.class_agnostic_boxes": boxes[0][0] == 4}
    head = r"roi_heads\.box_head\.(?:\d+\.)?"
    convs = len({int(n) for n in _found(tensors, head + r"conv(\d+)\.weight")})
    fcs = len({int(n) for n in _found(tensors, head + r"fc(\d+)\.weight")})
    if fcs:
        fields = {"model.box_head.num_convs": convs, "model.box_head.num_fc": fcs}
        if convs:
            fields["model.box_head.norm"] = _norm(tensors, head + r"conv1")
        yield f"a model whose box heads have {convs} convolutions and {fcs} fully connected layers", fields
    masks = _has(tensors, r"roi_heads\.mask_head\.")
    yield f"a model {'with' if masks else 'without'} masks", {"model.with_mask": masks}
    if masks:
        convs = len(_found(tensors, r"roi_heads\.mask_head\.mask_fcn(\d+)\.weight"))
        fields = {"model.mask_head.num_convs": convs}
        if convs:
            fields["model.mask_head.norm"] = _norm(tensors, r"roi_heads\.mask_head\.mask_fcn1")
        yield f"a model whose mask head has {convs} convolutions", fields


def _norm(tensors: Mapping[str, np.ndarray], conv: str) -> str:
    if not _has(tensors, conv + r"\.norm\."):
        return "none"
    return "batch_norm" if _has(tensors, conv + r"\.norm\.running_var") else "group_norm"


def _has(tensors: Mapping[str, np.ndarray], pattern: str) -> bool:
    return any(re.search(rf"(?:^|\.){pattern}" if pattern[0].isalpha() else pattern, name) for name in tensors)


def _found(tensors: Mapping[str, np.ndarray], pattern: str) -> list[str]:
    """The group of every name that matches in full."""
    return [match[1] for name in tensors if (match := re.fullmatch(pattern, name))]


def _count(tensors: Mapping[str, np.ndarray], pattern: str) -> int:
    """One more than the largest number that the pattern finds; 0: none."""
    numbers = [int(match[1]) for name in tensors if (match := re.search(pattern, name))]
    return max(numbers, default=-1) + 1


def _shapes(tensors: Mapping[str, np.ndarray], pattern: str) -> list[Sequence[int]]:
    return [array.shape for name, array in tensors.items() if array.ndim and re.fullmatch(pattern, name)]


def _field(config: ConfigDict, field: str) -> Any:
    if field == "model.backbone.width_per_group":
        backbone = config.model.backbone
        if backbone.groups > 1:  # 0 stands for this many
            return backbone.width_per_group or backbone.width // backbone.groups
        return backbone.width_per_group
    for part in field.split("."):
        config = config[part]
    return tuple(config) if isinstance(config, list | tuple) else config
