"""The detector of test-time augmentation, exact against detectron2's GeneralizedRCNNWithTTA.

    every view, plain and mirrored:  features -> boxes -> pixels of the file  --+
    all views:                       score > 1e-8, clip, NMS per class, best D <-+
    every view again:                the merged boxes in its pixels -> masks, mirrored back -> their mean

B images of a batch, V views (mirrored ones counted), D detections of an image, M side of a mask.

Masks are made from the features of the first pass, which stay on the device until their view has had its turn: some
1.3 GB for an image of 3:4 at shorter sides 600 to 1400, mirrored, with 256 float32 channels. Computing them again
would take less memory and most of the time of the first pass once more.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from eql_jax.models import MaskRCNN
from eql_jax.models.per_image import map_images
from eql_jax.ops import tta
from eql_jax.training.eval_step import Detector, make_detector


class ViewBoxes(NamedTuple):
    """What the first pass found in a view: boxes [B,D,4] in pixels of the file, scores [B,D], classes [B,D] (-1 in
    padding), exact [B] (see ops.detections); pyramid: the view's features, None where no mask is made from them."""

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    exact: jax.Array
    pyramid: list[jax.Array] | None


class _View(NamedTuple):
    """image [B,H,W,3], size [B,2] and mirrored, a bool scalar: the image is still to be mirrored."""

    image: jax.Array
    size: jax.Array
    mirrored: jax.Array


def make_test_detector(model: MaskRCNN, config: ConfigDict, mesh: Mesh | None = None) -> Detector:
    """What --mode=eval and prediction run: `make_tta_detector` where eval.tta.shorter_sides has any, else
    `make_detector`. Batches must be made with `augmented=True`."""
    return (make_tta_detector if config.eval.tta.shorter_sides else make_detector)(model, config, mesh)


def make_tta_detector(model: MaskRCNN, config: ConfigDict, mesh: Mesh | None = None) -> Detector:
    """Returns detector(variables, batch) -> dict of NumPy arrays, the fields of models.Detections.

    Boxes are in pixels of the file: `image_size` of the batch is its original_size. proposal_index is the row in the
    union of all views: view after view, each plain and then mirrored, D rows each.

    variables: {'params': .., 'batch_stats': ..}. batch: of `data.tta_views.ViewsLayout`, any padded sizes.
    Two programmes are compiled for each padded size of a view (boxes; masks) and one to merge, and none for a new
    size of an image. Where the candidates that entered NMS cannot prove a view's result exact, that view is run again
    with eight times as many, as `make_detector` does.

    config: reads eval.tta, model.with_mask, model.test and model.rpn.post_nms_test.
    mesh: shards the batch over its 'data' axis; B must be a multiple of that. None: one device.
    """
    options = config.eval.tta
    t = config.model.test
    total = model.num_classes * config.model.rpn.post_nms_test
    mean_masks = config.model.with_mask and options.masks

    def find(variables, image, size, file_size, mirrored, candidates: int) -> ViewBoxes:
        image = jnp.where(mirrored, map_images(tta.mirror_image)(image, size), image)
        pyramid = model.apply(variables, image, size, method="features")
        found = model.apply(variables, pyramid, size, candidates=candidates, method="detect_boxes")
        boxes = tta.boxes_from_view(found.boxes, size, file_size, mirrored)
        return ViewBoxes(boxes, found.scores, found.classes, found.exact, pyramid if mean_masks else None)

    def merge(boxes, scores, classes, file_size):
        def one(boxes, scores, classes, file_size):
            return tta.merge_detections(
                boxes,
                scores,
                classes,
                file_size,
                iou_threshold=t.nms_iou,
                max_detections=t.detections_per_image,
            )

        joined = (jnp.concatenate(parts, axis=1) for parts in (boxes, scores, classes))
        return map_images(one)(*joined, file_size)

    def view_masks(variables, pyramid, size, file_size, mirrored, boxes, classes):
        boxes = tta.boxes_to_view(boxes, size, file_size, mirrored)
        masks = model.apply(variables, pyramid, boxes, classes, method="masks")
        return jnp.where(mirrored, masks[..., ::-1], masks)

    def plain_masks(variables, image, size, file_size, boxes, classes):
        boxes = tta.scale_boxes(boxes, file_size, size)
        return model.apply(variables, image, size, boxes, classes, method="masks_of_boxes")

    on_devices, compiled = _placement(mesh)
    find = compiled(find, "v b b b v", static=5)
    merge = compiled(merge, "b b b b")
    view_masks = compiled(view_masks, "v b b b v b b")
    plain_masks = compiled(plain_masks, "v b b b b b")

    def detector(variables: Mapping, batch: Mapping) -> dict[str, np.ndarray]:
        file_size = on_devices(batch["original_size"])
        sides = [
            (on_devices(batch[f"view{i}/image"]), on_devices(batch[f"view{i}/image_size"]))
            for i in range(len(options.shorter_sides))
        ]
        mirrored = (False, True) if options.flip else (False,)
        views = [_View(image, size, np.bool_(flip)) for image, size in sides for flip in mirrored]

        candidates = min(t.candidates, total)
        found = [find(variables, view.image, view.size, file_size, view.mirrored, candidates) for view in views]
        while candidates < total:
            open_ = [i for i, boxes in enumerate(found) if not np.all(boxes.exact)]
            if not open_:
                break
            candidates = min(8 * candidates, total)
            for i in open_:
                image, size, flip = views[i]
                found[i] = None  # its features go before they come again
                found[i] = find(variables, image, size, file_size, flip, candidates)

        merged = merge(*zip(*((f.boxes, f.scores, f.classes) for f in found), strict=True), file_size)
        masks = jnp.zeros((*merged.classes.shape, 0, 0), jnp.float32)
        if mean_masks:
            pyramids = [f.pyramid for f in found]
            del found
            masks = None
            for view in views:
                arguments = (pyramids.pop(0), view.size, file_size, view.mirrored, merged.boxes, merged.classes)
                new = view_masks(variables, *arguments)
                masks = new if masks is None else masks + new
                del arguments  # and the features with it
        elif config.model.with_mask:
            last = len(options.shorter_sides)
            image, size = batch[f"view{last}/image"], batch[f"view{last}/image_size"]
            masks = plain_masks(variables, on_devices(image), on_devices(size), file_size, merged.boxes, merged.classes)
        result = {k: np.asarray(v) for k, v in merged._asdict().items()}
        return result | {"masks": np.asarray(masks) / np.float32(len(views) if mean_masks else 1)}

    return detector


def _placement(mesh: Mesh | None) -> tuple[Callable, Callable]:
    """(puts an array by image on the devices, compiles a function whose arguments are "v": replicated or "b": by
    image, given in order; static: the position of one that is neither)."""
    if mesh is None:
        return jax.device_put, lambda function, _, static=(): jax.jit(function, static_argnums=static)
    by_image = NamedSharding(mesh, P("data"))
    kinds = {"v": NamedSharding(mesh, P()), "b": by_image}

    def compiled(function, arguments: str, static=()):
        shardings = tuple(kinds[kind] for kind in arguments.split())
        jitted = jax.jit(function, static_argnums=static, in_shardings=shardings, out_shardings=by_image)

        def call(*values):
            with jax.set_mesh(mesh):
                return jitted(*values)

        return call

    return lambda array: jax.device_put(array, by_image), compiled
