"""A model's parameters as one safetensors file, for other programmes: names, arrays, and the classes they stand for.

Arrays are named by their path, 'params/backbone/res2_0/conv1/kernel' or 'batch_stats/..'. The metadata, texts as
safetensors has it: `format` ('eql_jax'), `version`, `step`, and as JSON `classes` (ids, names, frequency letters and
training counts by class index) and `config`.

    from safetensors.numpy import load_file  # elsewhere: plain arrays by name
    found = eql_jax.training.inference_model.load_for_inference("model.safetensors")  # here: as from a checkpoint
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from eql_jax.data.files import as_path, read_file, write_whole
from eql_jax.training.compatibility import flatten
from eql_jax.training.disk import check_writable
from eql_jax.training.errors import CheckpointError

SUFFIX = ".safetensors"
FORMAT, VERSION = "eql_jax", "1"


class ParameterFile(NamedTuple):
    """variables: {'params': .., 'batch_stats': ..} of NumPy arrays; config and classes: parsed JSON; step: int."""

    variables: dict[str, Any]
    config: dict[str, Any]
    classes: dict[str, Any]
    step: int


def write_parameters(
    path: str | Path, variables: Mapping[str, Any], *, config_json: str, classes: Mapping[str, Any], step: int
) -> int:
    """Writes the file, whole or not at all; returns the number of arrays. The file may be in a bucket.

    Raises:
        CheckpointError: the name does not end in .safetensors, or the folder cannot be written to or has no room.
    """
    from safetensors.numpy import save  # noqa: PLC0415, of exports alone

    path = as_path(path)
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path} is not a name for the exported parameters; expected one ending in {SUFFIX}")
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in flatten(jax.device_get(dict(variables))).items()}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "step": str(step),
        "classes": json.dumps(classes),
        "config": config_json,
    }
    check_writable(path.parent, needed_bytes=sum(a.nbytes for a in arrays.values()))
    with write_whole(path) as stream:
        stream.write(save(arrays, metadata=metadata))
    return len(arrays)


def read_parameters(path: str | Path) -> ParameterFile:
    """What `write_parameters` wrote, here or in a bucket.

    Raises:
        CheckpointError: no such file, or not one of these.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.numpy import load  # noqa: PLC0415

    path = as_path(path)
    try:
        data = read_file(path)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read ({e}); train.py --mode=export writes such a file") from e
    try:
        arrays = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        found = metadata.get("format"), metadata.get("version")
        if found == (FORMAT, VERSION):
            variables = {"params": {}, "batch_stats": {}} | unflatten_dict(arrays, sep="/")
            config, classes = json.loads(metadata["config"]), json.loads(metadata["classes"])
            return ParameterFile(variables, config, classes, int(metadata["step"]))
    except (SafetensorError, KeyError, ValueError) as e:
        raise CheckpointError(f"{path} is damaged ({type(e).__name__}: {e}); export it again") from e
    raise CheckpointError(
        f"{path} is a safetensors file of another origin (format, version: {found}); expected one of train.py "
        "--mode=export"
    )
