"""Several results files as one: the ensemble of several models on the images of one data set. NumPy and pycocotools.

    python -m eql_jax.ensemble --results A.json B.json --fuse wbf --out C.json

    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(spool(path, folder)) for path in ("A.json", "B.json")]
        summary = fuse_files(files, class_weights([1, 1]), FuseOptions("wbf"), "C.json")

More in docs/ensembles.md.
"""

from eql_jax.ensemble.boxes import Clusters, fuse_boxes, suppress
from eql_jax.ensemble.errors import EnsembleError
from eql_jax.ensemble.fuse import FuseOptions, fuse_files, fuse_image
from eql_jax.ensemble.masks import average_masks
from eql_jax.ensemble.spooled import SpooledResults, spool
from eql_jax.ensemble.weights import ClassWeights, class_weights

__all__ = [
    "ClassWeights",
    "Clusters",
    "EnsembleError",
    "FuseOptions",
    "SpooledResults",
    "average_masks",
    "class_weights",
    "fuse_boxes",
    "fuse_files",
    "fuse_image",
    "spool",
    "suppress",
]
