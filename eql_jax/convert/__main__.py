"""Weights of detectron2 and torchvision into a workdir, and back.

    python -m eql_jax.convert detectron2 MODEL.pkl --config=configs/lvis_v1_r50_eql.py --workdir=runs/zoo
    python -m eql_jax.convert detectron2 R-50.pkl --backbone-only --config=... --workdir=runs/msra_r50
    python -m eql_jax.convert cadene senet154.pth --backbone-only --config=... --workdir=runs/senet154
    python -m eql_jax.convert torchvision maskrcnn.pth --config=... --annotations=instances_val2017.json --workdir=DIR
    python -m eql_jax.convert --to detectron2 --workdir=runs/lvis_v1_r50_eql --out=model.pkl

The file may be a model-zoo pickle, a .pth that torch.save wrote (PyTorch is not needed), or ImageNet weights. It is
read with an allow-list: no code in it is run. What it expects of its input (channel order, pixel mean and std, where
the stride is) is taken from --source-config, the trainer's config.yaml, else from the file or its family; the report
says from where. The workdir can be evaluated (train.py --mode=eval), predicted with, or trained from
(--config.train.init_from). Any field of the config can be set as --config.a.b=value.

Exit status: 0, or 2 when nothing was written because something has to be put right.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from eql_jax.data.categories import PACKAGED_SOURCES, class_statistics, packaged_statistics
from eql_jax.data.validation import AnnotationError
from eql_jax.training import config as config_lib
from eql_jax.training.compatibility import Classes
from eql_jax.training.errors import ConfigError, UserError, user_input


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line and the --config.* words in it."""
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", nargs="?", choices=("detectron2", "torchvision", "cadene"), help="where the file comes from")
    add("file", nargs="?", type=Path, help="the weights, .pkl or .pth")
    add("--config", help="the config of the model (a Python file or the config.json of a run)")
    add("--workdir", required=True, type=Path, help="where the checkpoint goes; with --to: where it is read")
    add("--annotations", help="LVIS or COCO JSON that names the classes (default: those of config.data.frequencies)")
    add("--source-config", type=Path, help="the complete config.yaml of the detectron2 model")
    add("--channels", choices=("bgr", "rgb"), help="channel order that the file's first convolution expects")
    add("--backbone-only", action="store_true", help="take the backbone, initialise everything else")
    add("--new-classes", action="store_true", help="initialise the layers that have rows per class")
    add("--norm-eps", type=float, help="eps of the file's norms (torchvision's published COCO models: 0)")
    add("--to", choices=("detectron2",), help="the way back: write a checkpoint's weights in detectron2's form")
    add("--checkpoint", default="best", help="with --to: best (default), latest or a step")
    add("--out", type=Path, help="with --to: the .pkl to write")
    options, overrides = parser.parse_known_args(arguments)
    if options.to:
        given = [f for f in ("source", "config", "annotations", "source_config") if getattr(options, f)]
        if given or overrides or options.backbone_only or options.new_classes or options.norm_eps is not None:
            parser.error(
                "--to writes what the workdir holds; only --workdir, --checkpoint, --channels and --out go with it"
            )
        if options.out is None:
            parser.error("--to detectron2 needs --out, the .pkl to write")
    else:
        if options.source is None or options.file is None:
            parser.error(
                "expected the source and the file: detectron2 MODEL.pkl, torchvision MODEL.pth or cadene MODEL.pth"
            )
        if options.config is None:
            parser.error("--config is missing: the config of the model that the weights are for")
        if options.out is not None or options.checkpoint != "best":
            parser.error("--out and --checkpoint go with --to")
        if options.source != "detectron2" and options.source_config:
            parser.error("--source-config is for detectron2")
    return options, overrides


def model_classes(config, annotations: str | None) -> Classes:
    """The classes of the model: those of an annotation file, or of the config's packaged frequencies.

    Raises:
      ConfigError: neither names them.
      AnnotationError, OSError: the annotation file cannot be used.
    """
    from eql_jax.data.annotations import load_annotations

    source = config.data.frequencies
    path = annotations or config.data.train_annotations
    if path:
        options = {"check_files": False, "require_annotations": False, "masks": config.model.with_mask}
        found = load_annotations(path, Path(path).parent, **options)
        return Classes.of(class_statistics(found, source if source in PACKAGED_SOURCES else "train_annotations"))
    if source in PACKAGED_SOURCES:
        return Classes.of(packaged_statistics(source))
    raise ConfigError(
        f"config.data.frequencies is {source!r}, which does not name the classes; give --annotations, the JSON of the "
        f"data set, or set it to one of {', '.join(PACKAGED_SOURCES)}"
    )


def run_import(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """The way in."""
    from configs import base  # beside the package, as for train.py
    from eql_jax.convert import run
    from eql_jax.convert.source_config import read_source_config

    config = config_lib.load_config(options.config, overrides, base=base.get_config())
    with user_input():
        classes = model_classes(config, options.annotations)
    overridden = [match["key"] for word in overrides if (match := config_lib.OVERRIDE.fullmatch(word))]
    converted = run.convert(
        options.source,
        options.file,
        config,
        classes,
        options=run.Options(
            channels=options.channels,
            backbone_only=options.backbone_only,
            new_classes=options.new_classes,
            norm_eps=options.norm_eps,
            class_rows=_coco_rows(classes) if options.source == "torchvision" else None,
        ),
        source_config=read_source_config(options.source_config) if options.source_config else None,
        overridden=overridden,
    )
    config_lib.validate(converted.config, base=base.get_config())
    run.save(converted, classes, options.workdir)
    print("\n".join(converted.report))
    print(f"written: {options.workdir}, {len(classes)} classes")


def _coco_rows(classes: Classes) -> tuple[int, ...] | None:
    """torchvision's COCO models have a row for every category id from 1 to 90, also the ten that COCO does not use."""
    return classes.ids if len(classes) == 80 and classes.ids[-1] == 90 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options, overrides = parse_arguments(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        if options.to:
            from eql_jax.convert import run

            exported = run.export_detectron2(
                options.workdir, options.out, checkpoint=options.checkpoint, channels=options.channels or "bgr"
            )
            print("\n".join(exported.report))
        else:
            run_import(options, overrides)
    except (UserError, AnnotationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
