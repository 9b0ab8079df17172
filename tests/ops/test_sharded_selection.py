"""The selecting operations under a mesh: inside a shard_map they agree with one device and need no communication."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from eql_jax.ops.detections import select_detections
from eql_jax.ops.matching import match_boxes
from eql_jax.ops.proposals import select_proposals
from eql_jax.ops.sampling import sample_anchors, sample_rois
from tests.ops import numpy_boxes

COLLECTIVES = r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\("


def test_shard_map_equals_one_device_without_collectives():
    rng = np.random.default_rng(0)
    images, size = 8, (100, 100)
    anchors = numpy_boxes.random_boxes(rng, 80, clusters=20)
    logits = rng.normal(size=(images, 80)).astype(np.float32)
    deltas = rng.normal(size=(images, 80, 4)).astype(np.float32) * 0.1
    gt = np.stack([numpy_boxes.random_boxes(rng, 6) for _ in range(images)])
    gt_valid = np.arange(6) < rng.integers(0, 7, (images, 1))
    keys = jax.random.split(jax.random.key(0), images)

    def one_image(logits, deltas, gt, gt_valid, key):
        proposals = select_proposals([logits], [deltas], [anchors], size, pre_nms=60, post_nms=30, iou_threshold=0.7)
        of_anchors = match_boxes(
            jnp.asarray(anchors), gt, gt_valid=gt_valid, positive_iou=0.7, negative_iou=0.3, low_quality=True
        )
        labels = sample_anchors(of_anchors.labels, num=16, positive_fraction=0.5, key=key)
        of_rois = match_boxes(
            proposals.boxes,
            gt,
            gt_valid=gt_valid,
            boxes_valid=proposals.valid,
            positive_iou=0.5,
            negative_iou=0.5,
        )
        rois = sample_rois(of_rois.labels, num=16, positive_fraction=0.25, key=key)
        scores = jax.nn.sigmoid(jnp.stack([logits, -logits], axis=-1))
        detections = select_detections(
            scores,
            deltas[:, None],
            jnp.asarray(anchors),
            size,
            score_threshold=0.1,
            iou_threshold=0.5,
            max_detections=20,
            candidates=50,
        )
        return proposals, labels, rois, detections

    batch = (logits, deltas, gt, gt_valid, keys)
    expected = jax.jit(jax.vmap(one_image))(*batch)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    batch = jax.device_put(batch, jax.NamedSharding(mesh, spec))
    mapped = jax.shard_map(jax.vmap(one_image), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    compiled = jax.jit(mapped).lower(*batch).compile()
    assert re.findall(COLLECTIVES, compiled.as_text()) == []
    for mine, theirs in zip(jax.tree.leaves(compiled(*batch)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
