"""One door to every kind of data set: an annotation JSON with its images, prepared records, TFDS."""

from __future__ import annotations

import os

from eql_jax.data.annotations import load_annotations
from eql_jax.data.files import as_path
from eql_jax.data.prepared import is_prepared, load_prepared
from eql_jax.data.records import Annotations
from eql_jax.data.tfds_lvis import PREFIX, load_tfds
from eql_jax.data.validation import AnnotationError


def needs_images(where: str | os.PathLike) -> bool:
    """Whether a data set comes with a folder of images of its own: an annotation JSON does."""
    text = os.fspath(where)
    return not text.startswith(PREFIX) and text.endswith((".json", ".json.gz"))


def open_annotations(
    where: str | os.PathLike, images: str | os.PathLike | None = None, *, strict: bool = False, masks: bool = True
) -> Annotations:
    """Opens a data set. All kinds give the same records and so the same batches, TFDS but for its masks.

    Args:
      where: path of an LVIS or COCO JSON, local or remote; a folder that `eql_jax.data.prepare` made; or
        'tfds:lvis/SPLIT'.
      images: the folder of the images of a JSON; TFDS's data folder, None or '' for its default; not used by prepared
        records, which hold the images.
      strict: the first faulty record raises, else faulty records are left out and counted in `report`.
      masks: False: masks are neither asked for nor read, see `load_annotations`.

    Raises:
      FileNotFoundError: something is not there.
      AnnotationError: it is there and cannot be used; the message says why and what to do.
      ImportError: a package for it is missing.
    """
    text = os.fspath(where)
    if text.startswith(PREFIX):
        return load_tfds(text, images or None, strict=strict, masks=masks)
    path = as_path(where)
    if is_prepared(path):
        return load_prepared(path, strict=strict, masks=masks)
    if path.is_dir():
        raise AnnotationError(
            f"{path} is a folder without prepared records: give the annotation JSON, or prepare it with "
            "python -m eql_jax.data.prepare"
        )
    if not images:
        raise AnnotationError(f"{path} is an annotation file, and the folder of its images is not given")
    return load_annotations(path, images, strict=strict, masks=masks)
