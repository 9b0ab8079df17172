"""Pure functions on arrays that detectors are built from; they need jax and numpy alone.

All have static shapes; padding is marked by masks called `valid`. Convolution, pooling and RoIAlign take a batch; the
others work on one image, and `jax.vmap` gives the batch. Results that only select (labels, samples, kept boxes) carry
no gradient, as detectron2 detaches them.
"""

from eql_jax.ops.anchors import pyramid_anchors
from eql_jax.ops.boxes import area, clip_boxes, decode_boxes, encode_boxes, nonempty, pairwise_ioa, pairwise_iou
from eql_jax.ops.conv import conv2d, conv_implementation, conv_transpose_2x2, max_pool
from eql_jax.ops.deform_conv import deform_conv2d
from eql_jax.ops.detections import Detections, select_detections
from eql_jax.ops.masks import class_conv_1x1, crop_and_resize_masks
from eql_jax.ops.matching import Matches, match_boxes
from eql_jax.ops.nms import NMSResult, nms, nms_sorted
from eql_jax.ops.paste import ScaledBoxes, paste_mask_bits, scale_boxes
from eql_jax.ops.proposals import Proposals, select_proposals
from eql_jax.ops.resize import resize_images
from eql_jax.ops.roi_align import assign_levels, multilevel_roi_align
from eql_jax.ops.sampling import RoISample, sample_anchors, sample_rois
from eql_jax.ops.topk import TopK, top_k

__all__ = [
    "Detections",
    "Matches",
    "NMSResult",
    "Proposals",
    "RoISample",
    "ScaledBoxes",
    "TopK",
    "area",
    "assign_levels",
    "class_conv_1x1",
    "clip_boxes",
    "conv2d",
    "conv_implementation",
    "conv_transpose_2x2",
    "crop_and_resize_masks",
    "decode_boxes",
    "deform_conv2d",
    "encode_boxes",
    "match_boxes",
    "max_pool",
    "multilevel_roi_align",
    "nms",
    "nms_sorted",
    "nonempty",
    "pairwise_ioa",
    "pairwise_iou",
    "paste_mask_bits",
    "pyramid_anchors",
    "resize_images",
    "sample_anchors",
    "sample_rois",
    "scale_boxes",
    "select_detections",
    "select_proposals",
    "top_k",
]
