"""One function per stage of inference: the stage's recorded input in, its difference from the recorded output out.

Used by test_detectron2_inference.py on the run in tests/testdata and by check_golden.py on any recorded run.
"""

import jax
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as mask_utils

from eql_jax.evaluation.paste import paste_masks, scale_boxes
from eql_jax.evaluation.results import detections_to_results
from eql_jax.models.mask_rcnn import BOX_WEIGHTS
from eql_jax.models.rpn import RPNOutput
from eql_jax.ops import assign_levels, decode_boxes
from eql_jax.ops.detections import select_detections
from eql_jax.training.eval_step import make_detector
from tests.models.golden import LEVELS, Golden, relative_difference


def first(golden: Golden, prefix: str) -> tuple[np.ndarray, int]:
    """An array that is recorded in full (`prefix`) or in its first N rows (`prefix_firstN`), and N."""
    for key, array in golden.arrays.items():
        if key == prefix or key.startswith(f"{prefix}_first"):
            return array, len(array)
    raise KeyError(prefix)


def backbone(golden: Golden) -> dict[str, float]:
    """Image -> res2..res5, relative."""

    def run(model, image, size):
        return model.backbone(model.normalize(image, size), train=False)

    stages = golden.apply(run, golden.padded_image(), golden.image_size)
    named = {f"res{i + 2}": x for i, x in enumerate(stages)}
    return {k: relative_difference(x, golden.nhwc(k)) for k, x in named.items() if k in golden.arrays}


def fpn(golden: Golden) -> dict[str, float]:
    """Recorded res2..res5 -> p2..p6, relative."""
    stages = [golden.nhwc(f"res{i}") for i in (2, 3, 4, 5)]
    pyramid = golden.apply(lambda model, x: model.fpn(x, train=False), stages)
    return {level: relative_difference(x, golden.nhwc(level)) for level, x in zip(LEVELS, pyramid, strict=True)}


def rpn(golden: Golden) -> dict[str, float]:
    """Recorded p2..p6 -> logits and deltas of every level, relative."""
    out = golden.apply(lambda model, x: model.rpn(x), golden.pyramid)
    found = {}
    for level, logits, deltas in zip(LEVELS, out.logits, out.deltas, strict=True):
        found[f"rpn_logits_{level}"] = relative_difference(logits[0], golden.arrays[f"rpn_logits_{level}"])
        found[f"rpn_deltas_{level}"] = relative_difference(deltas[0], golden.arrays[f"rpn_deltas_{level}"])
    return found


def anchors(golden: Golden) -> dict[str, float]:
    """Anchors of every level, pixels."""
    own = golden.model.bind(golden.variables).anchors(golden.pyramid)
    named = {f"anchors_{level}": x for level, x in zip(LEVELS, own, strict=True)}
    return {k: float(np.abs(x - golden.arrays[k]).max()) for k, x in named.items() if k in golden.arrays}


def proposals(golden: Golden) -> dict[str, float]:
    """Recorded RPN outputs -> proposals: unmatched (a share), boxes (pixels), logits (absolute), levels (a share).

    A proposal is matched with the recorded one within .01 pixels whose logit is nearest: boxes of several levels may be
    clipped to the same image borders.
    """
    stack = lambda name: [jnp.asarray(golden.arrays[f"rpn_{name}_{k}"][None]) for k in LEVELS]  # noqa: E731
    out = RPNOutput(stack("logits"), stack("deltas"))

    def run(model, out, size):
        return model.proposals(out, model.anchors(golden.pyramid), size, train=False)

    found = jax.tree.map(lambda x: np.asarray(x[0]), golden.apply(run, out, golden.image_size))
    boxes, logits = found.boxes[found.valid], found.logits[found.valid]
    expected = golden.arrays["proposal_boxes"]
    assert boxes.shape == expected.shape and (np.diff(logits) <= 0).all()
    distance = np.abs(boxes[:, None] - expected[None]).max(-1)
    cost = np.where(distance <= 0.01, np.abs(logits[:, None] - golden.arrays["proposal_logits"][None]), np.inf)
    nearest = cost.argmin(1)
    matched = np.isfinite(cost.min(1))
    assert len(np.unique(nearest[matched])) == matched.sum(), "two proposals for one recorded"
    rows = np.flatnonzero(matched)
    recorded_levels = golden.arrays["proposal_level"][nearest[rows]]  # p6 counts as p5, from which it is pooled
    return {
        "unmatched": float(1 - matched.mean()),
        "boxes": float(distance[rows, nearest[rows]].max()),
        "logits": float(cost[rows, nearest[rows]].max()),
        "levels": float((assign_levels(boxes[rows], strides=(4, 8, 16, 32)) != recorded_levels).mean()),
    }


def box_head(golden: Golden) -> dict[str, float]:
    """Recorded pyramid and proposals -> RoIAlign, hidden layer, logits, deltas and decoded boxes."""
    boxes = jnp.asarray(golden.arrays["proposal_boxes"][None])
    pooled = golden.apply(lambda model, x, b: model.pool(x, b, model.config.box_head.pool_size), golden.pyramid, boxes)
    found = {}
    expected, n = first(golden, "box_roialign")
    found["box_roialign"] = relative_difference(pooled[:n], expected.transpose(0, 2, 3, 1))

    def head(model, pooled):
        hidden = model.box_head.hidden(pooled)
        return hidden, model.box_head.logits(hidden), model.box_head.all_deltas(hidden)

    hidden, logits, deltas = golden.apply(head, pooled)
    expected, n = first(golden, "box_fc_out")
    found["box_fc_out"] = relative_difference(hidden[:n], expected)
    found["box_logits"] = relative_difference(logits, golden.arrays["box_logits"])
    expected, n = first(golden, "box_deltas")
    found["box_deltas"] = relative_difference(deltas[:n].reshape(n, -1), expected)
    expected, n = first(golden, "decoded_boxes")
    decoded = decode_boxes(deltas[:n], boxes[0, :n], weights=BOX_WEIGHTS)
    # Not clipped, and up to thousands of pixels: compared as features are.
    found["decoded_boxes"] = relative_difference(decoded.reshape(n, -1), expected)
    return found


def match_detections(golden: Golden, boxes, classes, proposal_index) -> tuple[np.ndarray, np.ndarray]:
    """Rows here and rows of the recording that are the same detection: by (proposal, class), and with
    proposal_index None by (class, nearest box)."""
    expected_boxes, expected_classes = golden.arrays["det_boxes"], golden.arrays["det_classes"]
    if proposal_index is not None:
        recorded = {
            key: i for i, key in enumerate(zip(golden.arrays["det_proposal_idx"], expected_classes, strict=True))
        }
        pairs = [(i, recorded.get(key)) for i, key in enumerate(zip(proposal_index, classes, strict=True))]
        pairs = [(i, j) for i, j in pairs if j is not None]
    else:
        distance = np.abs(boxes[:, None] - expected_boxes[None]).max(-1)
        distance[classes[:, None] != expected_classes[None]] = np.inf
        pairs, taken = [], set()
        for i in range(len(boxes)):
            j = int(distance[i].argmin())
            if distance[i, j] <= 0.01 and j not in taken:
                taken.add(j)
                pairs.append((i, j))
    own, theirs = np.array(pairs, int).reshape(-1, 2).T
    return own, theirs


def compare_detections(golden: Golden, boxes, scores, classes, proposal_index) -> dict[str, float]:
    """unmatched (share of the recorded detections), boxes (pixels), scores (absolute)."""
    own, theirs = match_detections(golden, boxes, classes, proposal_index)
    total = len(golden.arrays["det_boxes"])
    assert len(boxes) == total, (len(boxes), total)
    return {
        "unmatched": 1 - len(own) / total,
        "boxes": float(np.abs(boxes[own] - golden.arrays["det_boxes"][theirs]).max()),
        "scores": float(np.abs(scores[own] - golden.arrays["det_scores"][theirs]).max()),
    }


def detections(golden: Golden) -> dict[str, float]:
    """Recorded proposals and class logits (and deltas computed from the recorded pyramid) -> detections."""
    boxes = jnp.asarray(golden.arrays["proposal_boxes"][None])
    t = golden.config.model.test

    def run(model, pyramid, boxes, logits):
        pooled = model.pool(pyramid, boxes, model.config.box_head.pool_size)
        deltas = model.box_head.all_deltas(model.box_head.hidden(pooled))
        return select_detections(
            model.scores(logits),
            deltas,
            boxes[0],
            golden.image_size[0],
            box_weights=BOX_WEIGHTS,
            score_threshold=t.score_threshold,
            iou_threshold=t.nms_iou,
            max_detections=t.detections_per_image,
            candidates=logits.size,
        )

    found = golden.apply(run, golden.pyramid, boxes, jnp.asarray(golden.arrays["box_logits"]))
    found = jax.tree.map(np.asarray, found)
    real = found.classes >= 0
    picked = (x[real] for x in (found.boxes, found.scores, found.classes, found.proposal_index))
    return compare_detections(golden, *picked)


def mask_head(golden: Golden) -> dict[str, float]:
    """Recorded pyramid and detections -> pooled features and mask logits of each detection's class."""
    boxes, classes = jnp.asarray(golden.arrays["det_boxes"][None]), jnp.asarray(golden.arrays["det_classes"])
    size = golden.config.model.mask_head.pool_size
    pooled = golden.apply(lambda model, x, b: model.pool(x, b, size), golden.pyramid, boxes)
    expected, n = first(golden, "mask_roialign")
    logits = golden.apply(lambda model, x, c: model.mask_head(x, c), pooled, classes)
    found = {
        "mask_roialign": relative_difference(pooled[:n], expected.transpose(0, 2, 3, 1)),
        "mask_logits": relative_difference(logits, golden.arrays["mask_logits"]),
    }
    maps = [key for key in golden.arrays if key.startswith("mask_logits_all_classes_first")]
    if maps:
        stored = golden.arrays[maps[0]]  # [n, K or 1, M, M]
        n, k = stored.shape[:2]
        every = golden.apply(
            lambda model, x, c: model.mask_head(x, c), jnp.repeat(pooled[:n], k, axis=0), jnp.tile(jnp.arange(k), n)
        )
        found["mask_logits_all_classes"] = relative_difference(every, stored.reshape(n * k, *stored.shape[2:]))
    return found


def recorded_masks(golden: Golden) -> np.ndarray:
    """The pasted masks, bool [D,H,W]."""
    width = int(golden.arrays["out_size"][1])
    return np.unpackbits(golden.arrays["out_masks_packed"], axis=-1)[..., :width].astype(bool)


def pasted(golden: Golden) -> dict[str, float]:
    """Recorded boxes and mask logits -> boxes (pixels) and masks (share of other pixels) at the output size."""
    size = tuple(golden.arrays["out_size"].tolist())
    scaled = scale_boxes(
        golden.arrays["det_boxes"], from_size=tuple(golden.arrays["image_size"].tolist()), to_size=size
    )
    probabilities = np.asarray(jax.nn.sigmoid(golden.arrays["mask_logits"]))[scaled.index]
    masks = paste_masks(probabilities, scaled.boxes, size=size)
    expected = recorded_masks(golden)
    assert masks.shape == expected.shape and (scaled.boxes.shape == golden.arrays["out_boxes"].shape)
    np.testing.assert_array_equal(expected.sum((1, 2)), golden.arrays["out_mask_area"])
    return {
        "boxes": float(np.abs(scaled.boxes - golden.arrays["out_boxes"]).max()),
        "pixels": float((masks != expected).mean()),
    }


def end_to_end(golden: Golden) -> dict[str, float]:
    """Image -> detections, mask probabilities and pasted masks, by the detector and the writer of evaluation.

    Detections are matched by class and nearest box, since proposals may come in another order.
    """
    detector = make_detector(golden.model, golden.config)
    batch = {"image": golden.padded_image(), "image_size": np.asarray(golden.image_size)}
    found = {k: v[0] for k, v in detector(golden.variables, batch).items() if k != "exact"}
    real = found["classes"] >= 0
    boxes, scores, classes, masks = (found[k][real] for k in ("boxes", "scores", "classes", "masks"))
    differences = compare_detections(golden, boxes, scores, classes, None)
    own, theirs = match_detections(golden, boxes, classes, None)
    recorded = np.asarray(jax.nn.sigmoid(golden.arrays["mask_logits"]))
    differences["mask_probabilities"] = float(np.abs(masks[own] - recorded[theirs]).max())

    size = tuple(golden.arrays["out_size"].tolist())
    batch |= {"image_id": np.array([1]), "original_size": np.array([size])}
    one = {"boxes": boxes[own], "scores": np.ones(len(own)), "classes": classes[own], "masks": masks[own]}
    results = detections_to_results(
        {k: v[None] for k, v in one.items()}, batch, range(golden.model.num_classes), max_detections=len(own)
    )
    assert len(results) == len(own)
    pasted = mask_utils.decode([r["segmentation"] | {"counts": r["segmentation"]["counts"].encode()} for r in results])
    different = (pasted.transpose(2, 0, 1).astype(bool) != recorded_masks(golden)[theirs]).mean(axis=(1, 2))
    differences["pixels"] = float(different.mean())
    corners = np.array([r["bbox"] for r in results])
    corners[:, 2:] += corners[:, :2]
    differences["output_boxes"] = float(np.abs(corners - golden.arrays["out_boxes"][theirs]).max())
    return differences
