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

from eql_jax.convert import names
from eql_jax.convert.conventions import BGR, Setting, apply_settings, check_cell_anchors, family_of, settle
from eql_jax.convert.errors import ConversionError
from eql_jax.convert.files import WeightFile, read_weights
from eql_jax.convert.source_config import SourceConfig
from eql_jax.convert.table import Match, detectron2_table, match_tensors, to_detectron2
from eql_jax.convert.unpickle import write_pickle
from eql_jax.models import build_model, init_model
from eql_jax.training.checkpoints import Checkpoints, load_for_inference
from eql_jax.training.compatibility import Classes, flatten
from eql_jax.training.state import TrainState

# Tensors of a file that no parameter is made of, and why that is right.
_UNUSED = (
    (r".*\.num_batches_tracked", "a counter of BatchNorm"),
    (r"proposal_generator\.anchor_generator\.cell_anchors\.\d", "compared with the config's anchors"),
    (r"pixel_(mean|std)", "taken into the config"),
    (r"classifier\.(weight|bias|w|b)", "the ImageNet classifier"),
)
_SHOWN = 12  # names that a list in a message gives


class Options(NamedTuple):
    """What the command line asks for.

    Attributes:
      channels: 'bgr' or 'rgb', None: as the file's family has it.
      backbone_only: take the ResNet and initialise the rest.
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
      source: 'detectron2' (its zoo, a trainer's checkpoint, MSRA's ImageNet weights) or 'torchvision'.
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
    tensors, family = _in_detectron2_names(source, file, options)
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
    if file.cast:
        report.append(f"{len(file.cast)} tensors converted to float32: {_names(file.cast)}")
    if source_config is not None and source_config.num_classes != len(classes) and not options.new_classes:
        raise ConversionError(_class_count_message(path, source_config.num_classes, len(classes)))
    if not options.backbone_only:
        check_cell_anchors(tensors, config)

    model = build_model(config, len(classes))
    key = jax.random.key(config.seed)
    wanted = flatten(jax.eval_shape(lambda: init_model(model, key)))
    shapes = {name: leaf.shape for name, leaf in wanted.items()}
    table = detectron2_table(config, channels=settings["channels"].value)
    match = match_tensors(tensors, shapes, table)
    fresh = _check(match, path, tensors, options, len(classes))
    arrays = {name: np.ascontiguousarray(array) for name, array in match.arrays.items() if name not in fresh}
    faulty = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if faulty:
        raise ConversionError(f"{path} holds NaN or infinite numbers in {_names(faulty)}")
    report.append(f"{len(arrays)} of {len(shapes)} arrays of the model loaded")
    if fresh:
        # Compiled for these alone: the initialisers of a whole ResNet take most of a minute to compile.
        initial = jax.jit(lambda key: {k: v for k, v in flatten(init_model(model, key)).items() if k in fresh})(key)
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
      CheckpointError: no such checkpoint. ConversionError: `out` exists or cannot be written.
    """
    if out.exists():
        raise ConversionError(f"{out} exists already; choose another --out, or remove it")
    found = load_for_inference(workdir, checkpoint=checkpoint)
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
    m, step = found.config.model, -1 if channels == BGR else 1
    report = [
        f"{out}: {len(tensors)} tensors of step {found.step}. In detectron2 set",
        f"  INPUT.FORMAT {channels.upper()}",
        f"  MODEL.PIXEL_MEAN {list(m.pixel_mean)[::step]}",
        f"  MODEL.PIXEL_STD {list(m.pixel_std)[::step]}",
        f"  MODEL.RESNETS.DEPTH {m.backbone.depth}",
        f"  MODEL.RESNETS.STRIDE_IN_1X1 {m.backbone.stride_in_1x1}",
        f"  MODEL.ROI_HEADS.NUM_CLASSES {len(found.classes)}",
        f"  MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO {m.roi.sampling_ratio}, the same for ROI_MASK_HEAD",
        f"  a box predictor for the loss '{m.box_head.loss}'"
        + (" (detectron2's own)" if m.box_head.loss == "softmax" else " (K logits, no background column)"),
    ]
    return Exported(tensors, report)


# ---------------------------------------------------------------------------------------------------- reading
def _in_detectron2_names(source: str, file: WeightFile, options: Options):
    tensors, is_caffe2 = file.tensors, names.is_caffe2(list(file.tensors))
    if source == "torchvision":
        tracked = any(name.endswith("num_batches_tracked") for name in tensors)
        tensors = names.torchvision_to_detectron2(tensors)
        tensors = names.move_background_last(tensors, options.class_rows)
        eps = options.norm_eps if options.norm_eps is not None else (1e-5 if tracked or options.backbone_only else 0.0)
    else:
        if is_caffe2:
            tensors = names.caffe2_to_detectron2(tensors)
        eps = 1e-5 if options.norm_eps is None else options.norm_eps
    tensors = names.complete_norms(names.with_prefix(tensors))
    if eps != 1e-5:  # the norm here adds 1e-5 to the variance
        shift = np.float32(eps - 1e-5)
        tensors = {k: v + shift if k.endswith(".running_var") else v for k, v in tensors.items()}
    return tensors, family_of(source, file.author, is_caffe2)


def _chosen_settings(source_config: SourceConfig | None, options: Options) -> dict[str, Setting] | None:
    if source_config is None or not options.backbone_only:
        return source_config and source_config.settings
    kept = ("channels", "model.pixel_", "model.backbone.")
    return {k: v for k, v in source_config.settings.items() if k.startswith(kept)}


def _without_background_logit(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops the last row of the classifier, which detectron2's sigmoid loss neither trains nor reads."""
    part = "roi_heads.box_predictor.cls_score."
    return {k: v[:-1] if k.startswith(part) else v for k, v in tensors.items()}


# ---------------------------------------------------------------------------------------------------- checking
def _check(
    match: Match, path: str | Path, tensors: Mapping[str, np.ndarray], options: Options, num_classes: int
) -> list[str]:
    """Paths to initialise afresh.

    Raises:
      ConversionError: the file does not fit.
    """
    fresh = []
    if options.backbone_only:
        every = [*match.arrays, *(m[0] for m in (*match.missing, *match.misshaped))]
        fresh = [p for p in every if p.split("/")[1] != "backbone"]
    elif options.new_classes:
        fresh = sorted(match.of_classes)
    skip = set(fresh)
    missing = [(p, name) for p, name in match.missing if p not in skip]
    misshaped = [m for m in match.misshaped if m[0] not in skip]
    unused = _explained(match.unused).get("", [])
    if options.backbone_only:
        unused = [name for name in unused if name.startswith(names.BOTTOM_UP)]
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
    blocks += _hints(match, missing, misshaped, unused, tensors, num_classes)
    raise ConversionError("\n".join(blocks))


def _explained(unused: Sequence[str]) -> dict[str, list[str]]:
    """{reason: names}; '' holds those without one."""
    found: dict[str, list[str]] = {}
    for name in unused:
        reason = next((why for pattern, why in _UNUSED if re.fullmatch(pattern, name)), "")
        found.setdefault(reason, []).append(name)
    return found


def _hints(match: Match, missing, misshaped, unused, tensors, num_classes: int) -> list[str]:
    """What the differences look like."""
    hints = []
    joined = " ".join(tensors)
    others = {
        "roi_heads.res5.": "a C4 model (the heads run res5), which is not built here",
        "roi_heads.box_head.0.": "a Cascade R-CNN, which is not built here",
        ".conv2_offset": "a model with deformable convolutions, which is not built here",
        "keypoint_head": "a keypoint model, which is not built here",
        "head.cls_subnet": "a RetinaNet, which is not built here",
    }
    hints += [f"The file is of {what}." for part, what in others.items() if part in joined]
    if not hints and any(re.search(r"\.conv2\.weight$", m[1]) and m[2][1] != m[3][1] for m in misshaped):
        hints.append("Grouped 3x3 convolutions: a ResNeXt, or another model.backbone.width.")
    if not hints and any(re.search(r"res4\.(6|22)\.", name) for name in unused):
        hints.append("The file's res4 has more blocks: set config.model.backbone.depth=101.")
    if any("/res4_6/" in p for p, _ in missing) and not hints:
        hints.append("The file's res4 has fewer blocks: set config.model.backbone.depth=50.")
    rows = [m for m in misshaped if m[1] == "roi_heads.box_predictor.cls_score.bias"]
    if rows and rows[0][2][0] == rows[0][3][0] + 1:
        hints.append("One row more than classes: a softmax head; set config.model.box_head.loss=softmax.")
    elif rows and rows[0][2][0] == rows[0][3][0] - 1:
        hints.append("One row less than classes and background: a sigmoid head; set config.model.box_head.loss=eql.")
    elif rows:
        hints.append(_class_count_message("The file", rows[0][2][0], num_classes))
    if len(missing) > 20 and not any(p.split("/")[1] == "backbone" for p, _ in missing):
        hints.append("The file holds a backbone alone: --backbone-only takes it and initialises the rest.")
    return hints


def _class_count_message(what: str | Path, found: int, expected: int) -> str:
    return (
        f"{what} has {found} classes, the data set {expected}. Give --annotations of the data set it was trained on, "
        "or --new-classes to load everything but the layers with rows per class"
    )


def _names(found: Sequence[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
