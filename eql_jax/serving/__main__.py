"""Exports a trained detector for serving, see docs/serving.md.

python -m eql_jax.serving --workdir=runs/NAME --out=served
python -m eql_jax.serving --workdir=runs/NAME --out=served --batch 4 --size 800 1344 --canvas 640 640 \\
        --platforms cpu cuda tpu
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eql_jax.training.errors import UserError
from eql_jax.training.xla_flags import set_xla_flags


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", required=True, help="directory of a training run, or one checkpoint in it (a path)"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest or a step of the run")
    parser.add_argument("--batch", type=int, default=1, help="images of a batch (%(default)s)")
    sides = {"type": int, "nargs": 2, "metavar": ("H", "W")}
    parser.add_argument("--size", **sides, help="padded size the model sees; the first of data.buckets by default")
    parser.add_argument("--canvas", **sides, help="size that the image files fit in; as --size by default")
    parser.add_argument(
        "--platforms", nargs="+", default=["cpu"], help="of cpu, cuda, rocm and tpu; none has to be here (cpu)"
    )
    parser.add_argument(
        "--resized", action="store_true", help="images come resized already; else the programme resizes them"
    )
    parser.add_argument(
        "--candidates", type=int, help="(proposal, class) pairs that enter NMS; as the config by default"
    )
    parser.add_argument(
        "--mask_threshold", type=float, default=0.5, help="probability of a mask's pixels (%(default)s)"
    )
    parser.add_argument(
        "--paste_chunk", type=int, default=16, help="masks pasted at a time, which bounds the memory (%(default)s)"
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Exports as the command line says."""
    from eql_jax.models import build_model  # flax takes seconds: after the command line has been looked at
    from eql_jax.serving.export import export_serving
    from eql_jax.training.inference_model import load_detector
    from eql_jax.training.tail import class_frequencies

    loaded = load_detector(options.workdir, checkpoint=options.checkpoint)
    size = tuple(options.size or loaded.config.data.buckets[0])
    path = export_serving(
        options.out,
        build_model(loaded.config, len(loaded.classes), class_frequencies(loaded.classes)),
        loaded.config,
        loaded.variables,
        loaded.classes,
        image_size=size,
        canvas_size=tuple(options.canvas or size),
        batch=options.batch,
        platforms=options.platforms,
        resize=not options.resized,
        candidates=loaded.config.model.test.candidates if options.candidates is None else options.candidates,
        mask_threshold=options.mask_threshold,
        paste_chunk=options.paste_chunk,
        step=loaded.step,
    )
    print(f"{path}: step {loaded.step}, batches of {options.batch} images of up to {size[0]} x {size[1]}")
    for file in sorted(options.out.iterdir()):
        print(f"  {file.name}  {file.stat().st_size / 1e3:,.0f} kB")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, or 2 when the user has to put something right."""
    options = parse_arguments(arguments)
    try:
        set_xla_flags()
        run(options)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
