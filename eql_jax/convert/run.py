"""A weight file into a workdir's checkpoint, and a checkpoint into a weight file."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from eql_jax.class_losses import ClassFrequencies
from eql_jax.convert import names
from eql_jax.convert.conventions import BGR, Family, Setting, apply_settings, check_cell_anchors, family_of, settle
from eql_jax.convert.errors import ConversionError
from eql_jax.convert.files import WeightFile, read_weights
from eql_jax.convert.source_config import SourceConfig
from eql_jax.convert.structure import class_count_message, groups_of, hints
from eql_jax.convert.table import Match, detectron2_table, match_tensors, to_detectron2
from eql_jax.convert.unpickle import write_pickle
from eql_jax.models import build_model, init_model
from eql_jax.models.box_head import configured_loss
from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.compatibility import Classes, flatten
from eql_jax.training.inference_model import load_detector
from eql_jax.training.state import TrainState
from eql_jax.training.tail import class_frequencies

# Tensors of a file that no parameter is made of, and why that is right.
_UNUSED = (
    (r".*\.num_batches_tracked", "a counter of BatchNorm"),
    (r"proposal_generator\.anchor_generator\.cell_anchors\.\d", "compared with the config's anchors"),
    (r"pixel_(mean|std)", "taken into the config"),
    (r"classifier\.(weight|bias|w|b)", "the ImageNet classifier"),
)
_NORM_NAMES = {"none": "", "frozen_batch_norm": "FrozenBN", "batch_norm": "SyncBN", "group_norm": "GN"}
_SHOWN = 12  # names that a list in a message gives


class Options(NamedTuple):
    """What the command line asks for.

    Attributes:
      channels: 'bgr' or 'rgb', None: as the file's family has it.
      backbone_only: take the backbone (for C4 res5 too, which the heads have) and initialise the rest, and the offsets
        of deformable convolutions where the file has plain ones.
      new_classes: initialise what has rows per class.
      norm_eps: eps of the frozen norms the file was trained with, None: 1e-5 (torchvision's COCO models: 0).
      class_rows: for torchvision, row of each class; None: 1, 2, ...
    """

    channels: str | None = None
    backbone_only: bool = False
    new_classes: bool = False
    norm_eps: float | None = None
    class_rows: tuple[int, ...] | None = None


class Converted(NamedTuple):
    """variables: {'params': .., 'batch_stats': ..} of NumPy arrays; config: with the file's conventions; report: lines
    for the user."""

    variables: Mapping
    config: ConfigDict
    report: list[str]


def convert(
    source: str,
    path: str | Path,
    config: ConfigDict,
    classes: Classes,
    *,
    options: Options = Options(),  # noqa: B008 - immutable
    source_config: SourceConfig | None = None,
    overridden: Sequence[str] = (),
) -> Converted:
    """Reads a weight file for the model of `config`. Writes nothing.

    Args:
      source: 'detectron2' (its zoo, a trainer's checkpoint, ImageNet weights of MSRA and Caffe2), 'torchvision', or
        'cadene' (senet154 of pretrained-models, for `backbone_only`).
      path: the file.
      config: the whole config. A copy of it gets the conventions of the file (see `conventions`).
      classes: of the data set, K of them.
      options: see `Options`.
      source_config: the config the model was trained with.
      overridden: fields of `config` that the user set, which win over the file's conventions.

    Raises:
      ConversionError: the file cannot be read or does not fit; every missing, unused and mis-shaped tensor is listed.
    """
    file = read_weights(path)
    tensors, family, eps = _in_detectron2_names(source, file, options)
    if source_config is not None and source_config.background_logit:
        tensors = _without_background_logit(tensors)
    settings = settle(
        family,
        tensors,
        whole=not options.backbone_only,
        channels=options.channels,
        source_config=_chosen_settings(source_config, options),
    )
    config = config.copy_and_resolve_references()
    config.unlock()
    report = [f"{path}: {len(tensors)} tensors", *apply_settings(config, settings, overridden=overridden)]
    tensors = _for_architecture(tensors, config, options, eps)
    if file.cast:
        report.append(f"{len(file.cast)} tensors converted to float32: {_names(file.cast)}")
    if source_config is not None and source_config.num_classes != len(classes) and not options.new_classes:
        raise ConversionError(class_count_message(path, source_config.num_classes, len(classes)))
    if not options.backbone_only:
        check_cell_anchors(tensors, config)

    model = build_model(config, len(classes), class_frequencies(classes))
    key = jax.random.key(config.seed)

    def initial_variables(key):  # a loss's memory belongs to training and has no place in a file
        found = init_model(model, key)
        return flatten({name: found[name] for name in ("params", "batch_stats")})

    wanted = jax.eval_shape(initial_variables, key)
    shapes = {name: leaf.shape for name, leaf in wanted.items()}
    table = detectron2_table(config, channels=settings["channels"].value)
    match = match_tensors(tensors, shapes, table)
    fresh = _check(match, path, tensors, config, options, len(classes))
    arrays = {name: np.ascontiguousarray(array) for name, array in match.arrays.items() if name not in fresh}
    faulty = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if faulty:
        raise ConversionError(f"{path} holds NaN or infinite numbers in {_names(faulty)}")
    report.append(f"{len(arrays)} of {len(shapes)} arrays of the model loaded")
    if fresh:
        # Compiled for these alone: the initialisers of a whole ResNet take most of a minute to compile.
        initial = jax.jit(lambda key: {k: v for k, v in initial_variables(key).items() if k in fresh})(key)
        arrays |= {name: np.asarray(array) for name, array in initial.items()}
        report.append(f"freshly initialised (seed {config.seed}): {_names(fresh)}")
    unused = _explained(match.unused)
    if options.backbone_only and "" in unused:
        unused["no part of the backbone"] = unused.pop("")
    report += [f"not used, {reason}: {_names(found)}" for reason, found in unused.items()]
    variables = {"params": {}, "batch_stats": {}}
    variables |= traverse_util.unflatten_dict({name: arrays[name] for name in shapes}, sep="/")
    return Converted(variables, config.lock(), report)


def save(converted: Converted, classes: Classes, workdir: str | Path) -> None:
    """Writes WORKDIR/checkpoints/0 and config.json: a run that predict, --mode=eval and train.init_from take.

    Raises:
      ConversionError: WORKDIR has a checkpoint already, or the checkpoint could not be written.
      CheckpointError: WORKDIR cannot be made or written.
    """
    directory = Path(workdir) / "checkpoints"
    if any(directory.glob("[0-9]*")):
        raise ConversionError(f"{directory} holds checkpoints already; choose another --workdir, or remove them")
    state = TrainState(
        step=np.int32(0),
        params=converted.variables["params"],
        batch_stats=converted.variables["batch_stats"],
        opt_state={},
        ema_params=None,
    )
    with Checkpoints(workdir, converted.config, classes) as checkpoints:
        checkpoints.check_space(state)
        checkpoints.save(state)
        checkpoints.wait()
        if checkpoints.last_save_failed:
            raise ConversionError(f"the checkpoint could not be written to {directory} (see above)")


class Exported(NamedTuple):
    """tensors: what was written; report: lines for the user."""

    tensors: dict[str, np.ndarray]
    report: list[str]


def export_detectron2(workdir: str | Path, out: Path, *, checkpoint: str = "best", channels: str = BGR) -> Exported:
    """Writes a checkpoint's weights as a .pkl of detectron2's names and layouts, which DetectionCheckpointer loads.

    Args:
      workdir: a run's directory, or one checkpoint.
      out: the file; an existing one is not overwritten.
      checkpoint: 'best', 'latest' or a step. Weights are the moving average where the run kept one.
      channels: order of the first convolution's inputs, detectron2's INPUT.FORMAT.

    Raises:
      CheckpointError: no such checkpoint. ConversionError: `out` exists or cannot be written, or detectron2 has no such
        model (a SENet).
    """
    if out.exists():
        raise ConversionError(f"{out} exists already; choose another --out, or remove it")
    found = load_detector(workdir, checkpoint=checkpoint)
    if found.config.model.backbone.kind == "senet":
        raise ConversionError(f"{workdir} has a SENet backbone, which detectron2 does not have")
    arrays = {name: np.asarray(array) for name, array in flatten(found.variables).items()}
    tensors = to_detectron2(arrays, detectron2_table(found.config, channels=channels))
    content = {"model": tensors, "__author__": "eql_jax", "matching_heuristics": False}
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write_pickle(content, file)
        os.replace(temporary, out)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise ConversionError(f"{out} cannot be written: {e.strerror or e}") from e
    report = [f"{out}: {len(tensors)} tensors of step {found.step}. In detectron2 set"]
    report += [f"  {line}" for line in _detectron2_settings(found.config.model, len(found.classes), channels)]
    return Exported(tensors, report)


def _detectron2_settings(m: ConfigDict, num_classes: int, channels: str) -> list[str]:
    """Lines 'KEY value' of what config.model is in detectron2, the defaults of its FPN configs left out."""
    b, h, c4, step = m.backbone, m.box_head, m.architecture == "c4", -1 if channels == BGR else 1
    heads = "Res5ROIHeads" if c4 else "CascadeROIHeads" if m.cascade.ious else "StandardROIHeads"
    lines = [
        "MODEL.META_ARCHITECTURE GeneralizedRCNN",
        f"MODEL.BACKBONE.NAME build_resnet_{'' if c4 else 'fpn_'}backbone",
        f"MODEL.ROI_HEADS.NAME {heads}",
        f"MODEL.MASK_ON {m.with_mask}",
        f"INPUT.FORMAT {channels.upper()}",
        f"MODEL.PIXEL_MEAN {list(m.pixel_mean)[::step]}",
        f"MODEL.PIXEL_STD {list(m.pixel_std)[::step]}",
        f"MODEL.RESNETS.DEPTH {b.depth}",
        f"MODEL.RESNETS.STRIDE_IN_1X1 {b.stride_in_1x1}",
        f"MODEL.RESNETS.NORM {_NORM_NAMES[b.norm]}",
    ]
    if b.groups != 1 or b.width_per_group:
        lines += [
            f"MODEL.RESNETS.NUM_GROUPS {b.groups}",
            f"MODEL.RESNETS.WIDTH_PER_GROUP {b.width_per_group or b.width // b.groups}",
        ]
    if b.deform_stages:
        lines += [
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE {[stage in b.deform_stages for stage in (2, 3, 4, 5)]}",
            f"MODEL.RESNETS.DEFORM_MODULATED {b.deform_modulated}",
            f"MODEL.RESNETS.DEFORM_NUM_GROUPS {b.deform_groups}",
        ]
    if m.cascade.ious:
        lines += [
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS {list(m.cascade.ious)}",
            f"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS {[[w, w, w / 2, w / 2] for w in m.cascade.box_weights]}",
        ]
    lines.append(f"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG {h.class_agnostic_boxes}")
    lines.append(f"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE {h.box_loss!r}, SMOOTH_L1_BETA {h.box_loss_beta}")
    if h.num_convs and not c4:
        lines += [
            f"MODEL.ROI_BOX_HEAD.NUM_CONV {h.num_convs}, CONV_DIM {h.conv_dim}, NORM {_NORM_NAMES[h.norm]!r}",
            f"MODEL.ROI_BOX_HEAD.NUM_FC {h.num_fc}",
        ]
    if m.with_mask:
        k = m.mask_head
        lines += [
            f"MODEL.ROI_MASK_HEAD.NUM_CONV {k.num_convs}, NORM {_NORM_NAMES[k.norm]!r}",
            f"MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK {k.class_agnostic}",
        ]
    return [
        *lines,
        f"MODEL.ROI_HEADS.NUM_CLASSES {num_classes}",
        f"MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO {m.roi.sampling_ratio}, the same for ROI_MASK_HEAD",
        f"a box predictor for the loss '{h.loss}'"
        + (
            " (detectron2's own)"
            if h.loss == "softmax"
            else f" ({configured_loss(m, ClassFrequencies(num_classes)).num_logits} logits"
            + (f", by cosines times {h.cosine_temperature:g})" if h.classifier == "cosine" else ")")
        ),
    ]


# ---------------------------------------------------------------------------------------------------- reading
def _in_detectron2_names(
    source: str, file: WeightFile, options: Options
) -> tuple[dict[str, np.ndarray], Family, float]:
    """The tensors by detectron2's names, without prefixes where the file has none; the family; eps of the norms."""
    tensors, is_caffe2 = file.tensors, names.is_caffe2(list(file.tensors))
    if source == "cadene":
        if not options.backbone_only:
            raise ConversionError(f"{file.path}: SENets are ImageNet classifiers; --backbone-only takes the backbone")
        tensors = names.cadene_to_detectron2(tensors)
    if source == "torchvision":
        tracked = any(name.endswith("num_batches_tracked") for name in tensors)
        tensors = names.torchvision_to_detectron2(tensors)
        tensors = names.move_background_last(tensors, options.class_rows)
        eps = options.norm_eps if options.norm_eps is not None else (1e-5 if tracked or options.backbone_only else 0.0)
    else:
        if is_caffe2:
            tensors = names.caffe2_to_detectron2(tensors)
        eps = 1e-5 if options.norm_eps is None else options.norm_eps
    groups, _ = groups_of(tensors)
    return dict(tensors), family_of(source, file.author, is_caffe2, groups), eps


def _for_architecture(
    tensors: Mapping[str, np.ndarray], config: ConfigDict, options: Options, eps: float
) -> dict[str, np.ndarray]:
    """With the prefixes and the complete norms of the config's backbone."""
    tensors = names.with_prefix(tensors, config.model.architecture, backbone_only=options.backbone_only)
    if config.model.backbone.norm != "group_norm":
        tensors = names.complete_norms(tensors)
    if eps != 1e-5:  # the norm here adds 1e-5 to the variance
        shift = np.float32(eps - 1e-5)
        tensors = {k: v + shift if k.endswith(".running_var") else v for k, v in tensors.items()}
    return tensors


def _chosen_settings(source_config: SourceConfig | None, options: Options) -> dict[str, Setting] | None:
    if source_config is None or not options.backbone_only:
        return source_config and source_config.settings
    kept = ("channels", "model.pixel_", "model.backbone.")
    return {k: v for k, v in source_config.settings.items() if k.startswith(kept)}


def _without_background_logit(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the last row of the classifier, which detectron2's sigmoid loss neither trains nor reads."""
    part = re.compile(r"roi_heads\.box_predictor\.(\d+\.)?cls_score\.")
    return {k: v[:-1] if part.match(k) else v for k, v in tensors.items()}


# ---------------------------------------------------------------------------------------------------- checking
def _check(
    match: Match,
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    config: ConfigDict,
    options: Options,
    num_classes: int,
) -> list[str]:
    """Paths to initialise afresh.

    Raises:
      ConversionError: the file does not fit.
    """
    fresh = []
    if options.backbone_only:
        # Offsets begin at zero on weights of plain convolutions.
        plain = not any(".conv2_offset." in name for name in tensors)
        offsets = {p for p, name in match.names.items() if plain and ".conv2_offset." in name}
        fresh = [p for p, name in match.names.items() if p in offsets or not names.is_backbone(name)]
    elif options.new_classes:
        fresh = sorted(match.of_classes)
    skip = set(fresh)
    missing = [(p, name) for p, name in match.missing if p not in skip]
    misshaped = [m for m in match.misshaped if m[0] not in skip]
    unused = _explained(match.unused).get("", [])
    if options.backbone_only:
        unused = [name for name in unused if names.is_backbone(name)]
    if not (missing or misshaped or unused):
        return fresh
    blocks = [f"{path} does not fit the model; nothing was written."]
    if missing:
        blocks += [f"missing in the file ({len(missing)}):", *(f"  {name} -> {p}" for p, name in missing)]
    if misshaped:
        blocks += [f"of another shape ({len(misshaped)}):"]
        blocks += [f"  {name} is {have}, the model wants {want} -> {p}" for p, name, have, want in misshaped]
    if unused:
        shapes = (f"  {name} {tensors[name].shape}" for name in unused)
        blocks += [f"not used by the model ({len(unused)}):", *shapes]
    backbone_only, new_classes = options.backbone_only, options.new_classes
    blocks += hints(tensors, config, num_classes, backbone_only=backbone_only, new_classes=new_classes)
    raise ConversionError("\n".join(blocks))


def _explained(unused: Sequence[str]) -> dict[str, list[str]]:
    """{reason: names}; '' holds those without one."""
    found: dict[str, list[str]] = {}
    for name in unused:
        reason = next((why for pattern, why in _UNUSED if re.fullmatch(pattern, name)), "")
        found.setdefault(reason, []).append(name)
    return found


def _names(found: Sequence[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
