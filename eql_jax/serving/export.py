"""Writes a detector's serving function as StableHLO, with its weights beside it: what `loader` reads.

The folder holds serving.json (the description, written last: a folder without it is not whole), weights.npz (float32
arrays by path, an argument of the programmes) and one serving.PLATFORM.stablehlo for each platform, which differ in how
convolutions are written (ops.conv).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import export
from ml_collections import ConfigDict

from eql_jax.models import MaskRCNN
from eql_jax.ops.conv import conv_implementation
from eql_jax.serving.function import make_serving_function
from eql_jax.serving.loader import DESCRIPTION, FORMAT
from eql_jax.training.compatibility import Classes, flatten
from eql_jax.training.errors import ConfigError

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WEIGHTS = "weights.npz"


def export_serving(
    folder: str | Path,
    model: MaskRCNN,
    config: ConfigDict,
    variables: Mapping[str, Any],
    classes: Classes,
    *,
    image_size: tuple[int, int],
    canvas_size: tuple[int, int],
    batch: int,
    platforms: Sequence[str] = ("cpu",),
    resize: bool = True,
    candidates: int | None = None,
    mask_threshold: float = 0.5,
    paste_chunk: int = 16,
    step: int | None = None,
) -> Path:
    """Exports a detector; returns the path of serving.json.

    Args:
      folder: is made; files of an earlier export there are replaced.
      model, config: of the checkpoint; reads model.* and data.eval_shorter_side, data.longest_side.
      variables: {'params': .., 'batch_stats': ..}, arrays.
      classes: their ids and names go into the description.
      image_size: (height, width) that the model sees, multiples of 32 for architecture 'fpn'.
      canvas_size: (height, width) of the largest image files.
      batch: images of a batch.
      platforms: of PLATFORMS; none of them has to be at hand.
      resize, candidates, mask_threshold, paste_chunk: see `make_serving_function`.
      step: of the checkpoint, noted in the description.

    Raises:
      ConfigError: a size, the batch, a platform or an option is out of range.
    """
    candidates = config.model.test.candidates if candidates is None else candidates
    _check(config, image_size, canvas_size, batch, platforms, candidates, mask_threshold, paste_chunk)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    weights = flatten({name: variables.get(name, {}) for name in ("params", "batch_stats")})
    weights = {name: np.asarray(array) for name, array in weights.items()}
    with open(folder / WEIGHTS, "wb") as file:
        np.savez(file, **weights)

    serve = make_serving_function(
        model,
        config,
        image_size=image_size,
        canvas_size=canvas_size,
        resize=resize,
        candidates=candidates,
        mask_threshold=mask_threshold,
        paste_chunk=paste_chunk,
    )
    inputs = {
        "image": jax.ShapeDtypeStruct((batch, *(canvas_size if resize else image_size), 3), jnp.uint8),
        "image_size": jax.ShapeDtypeStruct((batch, 2), jnp.int32),
        "original_size": jax.ShapeDtypeStruct((batch, 2), jnp.int32),
    }
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    programs, outputs = {}, {}
    for platform in dict.fromkeys(platforms):
        # Made anew for each: jit would give what it traced for another platform.
        def run(weights, image, image_size, original_size):
            return serve(unflatten_dict(weights, sep="/"), image, image_size, original_size)

        with conv_implementation("cpu" if platform == "cpu" else "xla"):
            exported = export.export(jax.jit(run), platforms=[platform])(shapes, *inputs.values())
        programs[platform] = f"serving.{platform}.stablehlo"
        (folder / programs[platform]).write_bytes(exported.serialize())
        outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)

    description = {
        "format": FORMAT,
        "jax": jax.__version__,
        "config": config.name,
        "step": step,
        "programs": programs,
        "weights": WEIGHTS,
        "inputs": _described(inputs),
        "outputs": _described(outputs),
        "batch": batch,
        "image_size": list(image_size),
        "canvas_size": list(canvas_size),
        "resize": resize,
        "shorter_side": config.data.eval_shorter_side,
        "longest_side": config.data.longest_side,
        "candidates": candidates,
        "mask_threshold": mask_threshold,
        "mask_layout": "byte (x, i) of a mask holds pixels 8 i .. 8 i + 7 of column x, the first in the highest bit",
        "categories": [{"id": i, "name": name} for i, name in zip(classes.ids, classes.names, strict=True)],
    }
    path = folder / DESCRIPTION
    path.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return path


def _described(arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": str(a.dtype), "shape": list(a.shape)} for name, a in arrays.items()]


def _check(config, image_size, canvas_size, batch, platforms, candidates, mask_threshold, paste_chunk) -> None:
    if config.model.architecture == "fpn" and any(side % 32 for side in image_size):
        raise ConfigError(f"--size is {list(image_size)}, expected multiples of 32, as the feature pyramid needs")
    if min(*image_size, *canvas_size, batch, candidates, paste_chunk) < 1:
        raise ConfigError(
            f"--size {list(image_size)}, --canvas {list(canvas_size)}, --batch {batch}, --candidates {candidates} and "
            f"--paste_chunk {paste_chunk}: expected 1 or more"
        )
    if not 0 < mask_threshold <= 1:
        raise ConfigError(f"--mask_threshold is {mask_threshold}, expected above 0 and at most 1")
    unknown = [platform for platform in platforms if platform not in PLATFORMS]
    if unknown or not platforms:
        raise ConfigError(f"--platforms has {unknown or 'none'}, expected some of {', '.join(PLATFORMS)}")
