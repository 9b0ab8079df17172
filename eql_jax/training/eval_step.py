"""Running a trained model on batches: the detector that evaluation and prediction share."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from eql_jax.models import Detections, MaskRCNN

Detector = Callable[[Mapping, Mapping], dict[str, np.ndarray]]


def make_detector(model: MaskRCNN, config: ConfigDict, mesh: Mesh | None = None) -> Detector:
    """Returns detector(variables, batch) -> dict of NumPy arrays, the fields of models.Detections.

    variables: {'params': .., 'batch_stats': ..}. batch: at least image uint8 [B,H,W,3] and image_size int32 [B,2].
    One programme is compiled per padded size. Where the candidates that entered NMS cannot prove the result exact
    (ops.detections), the batch is run again with eight times as many, until they do or all pairs took part.

    mesh: shards the batch over its 'data' axis; B must be a multiple of that. None: one device.
    """
    total = model.num_classes * config.model.rpn.post_nms_test

    def run(variables, image, image_size, candidates: int) -> Detections:
        return model.apply(variables, image, image_size, candidates=candidates, method="detect")

    if mesh is None or mesh.size == 1:
        jitted = jax.jit(run, static_argnums=3)
    else:
        replicated, by_image = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
        jitted = jax.jit(run, static_argnums=3, in_shardings=(replicated, by_image, by_image), out_shardings=by_image)

    def detector(variables: Mapping, batch: Mapping) -> dict[str, np.ndarray]:
        candidates = min(config.model.test.candidates, total)
        inputs = batch["image"], batch["image_size"]
        if mesh is not None:
            inputs = jax.device_put(inputs, NamedSharding(mesh, P("data")))  # of several hosts jit takes no NumPy
        while True:
            if mesh is None:
                found = jitted(variables, *inputs, candidates)
            else:
                with jax.set_mesh(mesh):
                    found = jitted(variables, *inputs, candidates)
            if candidates == total or bool(np.all(found.exact)):
                return {k: np.asarray(v) for k, v in found._asdict().items()}
            candidates = min(8 * candidates, total)

    return detector
