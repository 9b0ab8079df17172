"""What weights expect of the images and the model around them, and where that is known from.

None of it can be seen in the weights: a model fed RGB for BGR, or with its stride in the other convolution, loads
without a complaint and detects badly. So every convention is written down with its origin, in this order: the command
line, the config the model was trained with (--source-config), arrays in the file, the family of the file, and last what
the source does unless told otherwise, which is reported as assumed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from eql_jax.convert.errors import ConversionError
from eql_jax.ops.anchors import cell_anchors

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)
BGR, RGB = "bgr", "rgb"
_ALWAYS_REPORTED = ("model.pixel_mean", "model.pixel_std", "model.backbone.stride_in_1x1", "model.roi.sampling_ratio")


class Family(NamedTuple):
    """A kind of weight file: the channel order of its first convolution and the fields of the config it settles.

    backbone: fields that hold for a backbone alone too; whole: those of a whole detector.
    """

    title: str
    channels: str
    backbone: Mapping[str, Any]
    whole: Mapping[str, Any]
    assumed: bool


_MSRA = {
    "model.pixel_mean": IMAGENET_MEAN,
    "model.pixel_std": (1.0, 1.0, 1.0),
    "model.backbone.stride_in_1x1": True,
}
_TORCHVISION = {
    "model.pixel_mean": IMAGENET_MEAN,
    "model.pixel_std": IMAGENET_STD,
    "model.backbone.stride_in_1x1": False,
}
# ResNeXts that Facebook trained in Caffe2 (X-101-32x8d), as the model zoo's configs have them. 64x4d is a conversion
# from Torch, with the stride in the same place and, in Detectron's configs, no division by a std.
_CAFFE2_RESNEXT = {**_MSRA, "model.pixel_std": IMAGENET_STD, "model.backbone.stride_in_1x1": False}
_CAFFE2_64X4D = {**_MSRA, "model.backbone.stride_in_1x1": False}
_DETECTRON2_HEADS = {"model.roi.sampling_ratio": 0, "model.roi.aligned": True, "model.rpn.round_anchors": False}
FAMILIES = {
    "detectron2": Family("detectron2's defaults", BGR, _MSRA, _DETECTRON2_HEADS, True),
    "caffe2": Family("MSRA's ImageNet weights of Caffe2", BGR, _MSRA, _DETECTRON2_HEADS, False),
    "detectron2 resnext": Family("detectron2's ResNeXt configs", BGR, _CAFFE2_RESNEXT, _DETECTRON2_HEADS, True),
    "caffe2 resnext": Family("ResNeXt of Caffe2", BGR, _CAFFE2_RESNEXT, _DETECTRON2_HEADS, False),
    "caffe2 64x4d": Family("ResNeXt 64x4d in Detectron's configs", BGR, _CAFFE2_64X4D, _DETECTRON2_HEADS, True),
    "cadene": Family("Cadene's SENets", RGB, _TORCHVISION, {}, False),
    "torchvision in detectron2's names": Family(
        "torchvision's weights in detectron2's names", RGB, _TORCHVISION, _DETECTRON2_HEADS, False
    ),
    "torchvision": Family(
        "torchvision's models",
        RGB,
        _TORCHVISION,
        {
            "model.roi.sampling_ratio": 2,
            "model.roi.aligned": False,
            "model.rpn.round_anchors": True,
            "model.box_head.loss": "softmax",
        },
        False,
    ),
}


class Setting(NamedTuple):
    """A value and where it is known from."""

    value: Any
    origin: str


def family_of(source: str, author: str, is_caffe2: bool, groups: int = 1) -> Family:
    """The family of a file: `source` is the command's word, `author` what the file says of itself, `groups` are those
    of its 3x3 convolutions."""
    if source in ("torchvision", "cadene"):
        return FAMILIES[source]
    if is_caffe2:
        return FAMILIES["caffe2" if groups == 1 else "caffe2 64x4d" if groups == 64 else "caffe2 resnext"]
    if author == "torchvision":
        return FAMILIES["torchvision in detectron2's names"]
    return FAMILIES["detectron2" if groups == 1 else "detectron2 resnext"]


def settle(
    family: Family,
    tensors: Mapping[str, np.ndarray],
    *,
    whole: bool,
    channels: str | None,
    source_config: Mapping[str, Setting] | None,
) -> dict[str, Setting]:
    """{'channels': .., 'model.pixel_std': ..., ...}: the conventions of a file, by the order in the module's head.

    Args:
      family: of the file.
      tensors: the file's, under detectron2's names; pixel_mean and pixel_std are read if they are there.
      whole: whether the file is a whole detector.
      channels: 'bgr' or 'rgb' from the command line.
      source_config: what `source_config.read_source_config` found.
    """
    origin = f"{family.title} (assumed: the file does not say)" if family.assumed else family.title
    found = {"channels": Setting(family.channels, origin)}
    fields = {**family.backbone, **(family.whole if whole else {})}
    found |= {field: Setting(value, origin) for field, value in fields.items()}
    if source_config:
        found |= source_config
    if channels is not None:
        found["channels"] = Setting(channels, "command line")
    step = -1 if found["channels"].value == BGR else 1
    for name in ("pixel_mean", "pixel_std"):
        if name in tensors and not (source_config and f"model.{name}" in source_config):
            values = tuple(round(float(v), 6) for v in tensors[name].ravel()[::step])
            found[f"model.{name}"] = Setting(values, f"{name} in the file")
    return found


def apply_settings(config: ConfigDict, settings: Mapping[str, Setting], *, overridden: Sequence[str]) -> list[str]:
    """Sets the fields in an unlocked copy of the whole config, but for those that the user set; returns what to report.

    The conventions of the input are always reported, other fields where the config had another value.
    """
    lines = [f"channels: {settings['channels'].value} ({settings['channels'].origin})"]
    for field, (value, origin) in settings.items():
        if field == "channels":
            continue
        section, _, name = field.rpartition(".")
        group = config
        for part in section.split("."):
            group = group[part]
        current = group.get(name, "none")  # options of a loss need not be there
        if field in overridden:
            note = "" if current == value else f"; {origin}: {value}"
            lines.append(f"{field}: {current} (command line{note})")
            continue
        change = "" if current == value else f", the config had {current}"
        group[name] = value
        if change or field in _ALWAYS_REPORTED:
            lines.append(f"{field}: {value} ({origin}{change})")
    return lines


def check_cell_anchors(tensors: Mapping[str, np.ndarray], config: ConfigDict) -> None:
    """Compares the anchors that old checkpoints carry with the config's.

    Raises:
      ConversionError: another number of levels, or another anchor by more than .01 pixels.
    """
    prefix = "proposal_generator.anchor_generator.cell_anchors."
    stored = {int(name.removeprefix(prefix)): x for name, x in tensors.items() if name.startswith(prefix)}
    if not stored:
        return
    sizes = config.model.rpn.anchor_sizes
    ratios = tuple(config.model.rpn.aspect_ratios)
    levels = [sizes] if config.model.architecture == "c4" else [(size,) for size in sizes]
    own = {level: cell_anchors(of_level, ratios) for level, of_level in enumerate(levels)}
    for level in sorted(stored.keys() | own.keys()):
        a, b = stored.get(level), own.get(level)
        if a is None or b is None or a.shape != b.shape or np.abs(a - b).max() > 0.01:
            show = ["absent" if x is None else np.round(x, 1).tolist() for x in (a, b)]
            raise ConversionError(
                f"the file's anchors of level {level} are {show[0]}, the config's {show[1]}; set "
                "config.model.rpn.anchor_sizes and aspect_ratios (height / width) as the model was trained with"
            )
