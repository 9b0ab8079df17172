"""A detector as one function of arrays, from uint8 images to masks as bits in the pixels of the image files.

Shapes: B images, H W padded size that the model sees, Hc Wc canvas that the image files fit on, D detections of an
image, K classes. Boxes are float32 XYXY.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from eql_jax.models import MaskRCNN
from eql_jax.ops.paste import paste_mask_bits, scale_boxes
from eql_jax.ops.resize import resize_images

ServingArrays = dict[str, jax.Array]


def make_serving_function(
    model: MaskRCNN,
    config: ConfigDict,
    *,
    image_size: tuple[int, int],
    canvas_size: tuple[int, int],
    resize: bool = True,
    candidates: int | None = None,
    mask_threshold: float = 0.5,
    paste_chunk: int = 16,
) -> Callable[[Mapping, jax.Array, jax.Array, jax.Array], ServingArrays]:
    """Returns serve(variables, image, image_size, original_size) -> arrays; traceable by jit, any batch size.

    Its arguments:
      variables: {'params': .., 'batch_stats': ..}.
      image: uint8 RGB; with `resize` [B,Hc,Wc,3], the pixels of the files; else [B,H,W,3], resized already. Each image
        lies at the top left; what is around it is not looked at.
      image_size: integers [B,2], (height, width) that each image is, or is to be, resized to.
      original_size: integers [B,2], (height, width) of each file.

    Its result, by falling score:
      boxes: float32 [B,D,4] in pixels of the file, clipped to it.
      scores: float32 [B,D].
      classes: int32 [B,D], 0..K-1.
      masks: uint8 [B,D,Wc,ceil(Hc/8)], bits by columns (see ops.paste); not there if the model has no mask head.
      exact: bool [B], False if more candidates could have changed the result (see ops.detections).
      What is no detection has score 0, class -1 and no pixels: the end is filled up so, and a box that is empty once it
      is clipped to the file becomes so where it stands.

    Args:
      model: of models.build_model.
      config: reads model.test.candidates.
      image_size: (H, W).
      canvas_size: (Hc, Wc). Masks come on it also where images come resized.
      resize: whether the function resizes the images, as Pillow does (ops.resize).
      candidates: (proposal, class) pairs that enter NMS; None: as the config has it. There is no second try with more.
      mask_threshold: a pixel belongs to the object from this probability on.
      paste_chunk: masks that are pasted at a time, see ops.paste.
    """
    candidates = config.model.test.candidates if candidates is None else candidates

    def serve(variables: Mapping, image: jax.Array, image_sizes: jax.Array, original_sizes: jax.Array) -> ServingArrays:
        if resize:
            image = resize_images(image, original_sizes, image_sizes, canvas_size=image_size)
        found = model.apply(variables, image, image_sizes, candidates=candidates, method="detect")
        boxes = scale_boxes(found.boxes, from_size=image_sizes, to_size=original_sizes)
        valid = boxes.valid & (found.classes >= 0)
        result = {
            "boxes": jnp.where(valid[..., None], boxes.boxes, 0.0),
            "scores": jnp.where(valid, found.scores, 0.0),
            "classes": jnp.where(valid, found.classes, -1),
            "exact": found.exact,
        }
        if found.masks.shape[-1]:
            count = valid.shape[1]
            bits = paste_mask_bits(
                found.masks.reshape(-1, *found.masks.shape[2:]),
                result["boxes"].reshape(-1, 4),
                jnp.repeat(original_sizes, count, axis=0),
                canvas_size=canvas_size,
                threshold=mask_threshold,
                chunk=paste_chunk,
            )
            result["masks"] = bits.reshape(*valid.shape, *bits.shape[1:])
        return result

    return serve
