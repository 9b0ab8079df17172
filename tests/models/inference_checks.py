"""One function per stage of inference: the stage's recorded input in, its difference from the recorded output out.

`run_stages` runs all stages of a model in one compiled programme, each on its recorded input where there is one; the
functions after it compare. Used by test_detectron2_inference.py and test_detectron2_variants_*.py on the runs in
tests/testdata, and by check_golden.py on any recorded run.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pycocotools import mask as mask_utils

from eql_jax.evaluation.paste import paste_masks, scale_boxes
from eql_jax.evaluation.results import detections_to_results
from eql_jax.models.rpn import RPNOutput
from eql_jax.ops import assign_levels, decode_boxes
from eql_jax.ops.detections import select_detections
from eql_jax.training.eval_step import make_detector
from tests.models.golden import Golden, relative_difference


def recorded(golden: Golden, prefix: str) -> tuple[np.ndarray, slice]:
    """An array that is recorded in full (`prefix`) or in some rows (`prefix_firstN`, `prefix_everyN`), and which."""
    for key, array in golden.arrays.items():
        if key == prefix:
            return array, slice(None)
        if key.startswith(f"{prefix}_first"):
            return array, slice(len(array))
        if key.startswith(f"{prefix}_every"):
            return array, slice(None, None, int(key.removeprefix(f"{prefix}_every")))
    raise KeyError(prefix)


def run_stages(golden: Golden) -> dict[str, Any]:
    """All stages in one programme; NumPy arrays by the name of what they are, without the axis of the one image.

    A stage whose input was not recorded gets what the model makes of the image, and an image that was not recorded is
    taken up from res2.
    """
    a = golden.arrays
    inputs: dict[str, Any] = {"size": golden.image_size, "boxes": jnp.asarray(a["proposal_boxes"][None])}
    if "image_bgr_hwc" in a:
        inputs["image"] = golden.padded_image()
    else:
        inputs["image"] = np.zeros((1, *a["padded_size"], 3), np.uint8)
    if all(level in a for level in golden.levels):
        inputs["pyramid"] = golden.pyramid
    if not golden.is_c4 and all(f"res{i}" in a for i in (2, 3, 4, 5)):
        inputs["stages"] = [golden.nhwc(f"res{i}") for i in (2, 3, 4, 5)]
    if all(f"rpn_logits_{level}" in a for level in golden.levels):
        stack = lambda name: [jnp.asarray(a[f"rpn_{name}_{k}"][None]) for k in golden.levels]  # noqa: E731
        inputs["rpn"] = RPNOutput(stack("logits"), stack("deltas"))
    inputs["det_boxes"] = jnp.asarray(a["det_boxes"][None])
    inputs["det_classes"] = jnp.asarray(a["det_classes"], jnp.int32)
    if golden.num_stages:
        inputs["stage_boxes"] = [jnp.asarray(_stage_boxes(golden, k)[None]) for k in range(golden.num_stages)]
        last = golden.num_stages - 1
        inputs["scores"] = jnp.asarray(a["mean_scores"][:, : golden.model.num_classes])
        inputs["deltas"] = jnp.asarray(a[f"stage{last}_box_deltas"][:, None])
    else:
        inputs["logits"] = jnp.asarray(a["box_logits"])
    with contextlib.nullcontext() if "image_bgr_hwc" in a else golden.from_res2():
        return jax.tree.map(np.asarray, golden.apply(lambda model, x: _stages(golden, model, x), inputs))


def _stage_boxes(golden: Golden, stage: int) -> np.ndarray:
    return golden.arrays[f"stage{stage}_proposal_boxes" if stage else "proposal_boxes"]


def _stages(golden: Golden, model, x: dict[str, Any]) -> dict[str, Any]:
    """The programme of `run_stages`."""
    c, found = golden.config.model, {}
    maps = model.backbone(model.normalize(x["image"], x["size"]), train=False)
    found |= {f"res{i + 2}": m[0] for i, m in enumerate(maps)}
    own = maps[2:] if golden.is_c4 else model.fpn(maps, train=False)
    if "stages" in x:
        found |= dict(zip(golden.levels, (m[0] for m in model.fpn(x["stages"], train=False)), strict=True))
    elif not golden.is_c4:
        found |= dict(zip(golden.levels, (m[0] for m in own), strict=True))
    pyramid = x.get("pyramid", own)
    rpn = model.rpn(pyramid)
    for level, logits, deltas in zip(golden.levels, rpn.logits, rpn.deltas, strict=True):
        found |= {f"rpn_logits_{level}": logits[0], f"rpn_deltas_{level}": deltas[0]}
    found["proposals"] = model.proposals(x.get("rpn", rpn), model.anchors(pyramid), x["size"], train=False)
    found |= _cascade(golden, model, pyramid, x) if golden.num_stages else _box_head(golden, model, pyramid, x)

    total = model.num_classes * x["boxes"].shape[1]
    found["detections"] = select_detections(
        x["scores"] if golden.num_stages else model.box_head.scores(x["logits"]),
        x["deltas"] if golden.num_stages else found["box_deltas"],
        x["stage_boxes"][-1][0] if golden.num_stages else x["boxes"][0],
        x["size"][0],
        box_weights=model.output_weights,
        score_threshold=c.test.score_threshold,
        iou_threshold=c.test.nms_iou,
        max_detections=c.test.detections_per_image,
        candidates=total,
    )
    if not golden.is_c4:
        found["mask_roialign"] = model.pool(pyramid, x["det_boxes"], c.mask_head.pool_size)
    found["mask_logits"] = model.mask_logits(pyramid, x["det_boxes"], x["det_classes"])
    found["end_to_end"] = model.detect_boxes(own, x["size"], candidates=total)
    found["masks"] = model.masks(own, found["end_to_end"].boxes, found["end_to_end"].classes)
    return found


def _box_head(golden: Golden, model, pyramid, x) -> dict[str, Any]:
    boxes, size = x["boxes"], golden.config.model.box_head.pool_size
    found = {"box_roialign": model.pool(pyramid, boxes[:, :64], size)}
    if golden.is_c4:
        found["res5_out"] = model.shared(pyramid, boxes[:, :64])
    hidden = model.box_hidden(pyramid, boxes)
    found["box_feature_mean" if golden.is_c4 else "box_fc_out"] = hidden
    found |= {"box_logits": model.box_head.logits(hidden), "box_deltas": model.box_head.all_deltas(hidden)}
    # Not clipped, and up to thousands of pixels: compared as features are.
    return found | {"decoded_boxes": decode_boxes(found["box_deltas"], boxes[0], weights=model.output_weights)}


def _cascade(golden: Golden, model, pyramid, x) -> dict[str, Any]:
    found, scores = {}, 0.0
    found["box_roialign"] = model.pool(pyramid, x["boxes"][:, :64], golden.config.model.box_head.pool_size)
    for k, boxes in enumerate(x["stage_boxes"]):
        logits, deltas = model.run_stage(k, pyramid, boxes)
        found |= {f"stage{k}_box_logits": logits[0], f"stage{k}_box_deltas": deltas[0]}
        scores += model.box_heads[k].scores(logits[0]) / golden.num_stages
        found[f"stage{k + 1}_proposal_boxes"] = model.refine(k, boxes, deltas, x["size"])[0]
    decoded = decode_boxes(deltas[0], boxes[0], weights=model.output_weights)
    return found | {"mean_scores": scores, "final_boxes": decoded}


def backbone(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Image -> res2..res5, relative."""
    return _maps(golden, found, ("res2", "res3", "res4", "res5"))


def fpn(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Recorded res2..res5 (or the image, where they are not recorded) -> p2..p6, relative."""
    return {} if golden.is_c4 else _maps(golden, found, golden.levels)


def _maps(golden: Golden, found: dict[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    kept = [k for k in names if k in golden.arrays and k in found]
    return {k: relative_difference(found[k], golden.nhwc(k)[0]) for k in kept}


def rpn(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Recorded p2..p6 -> logits and deltas of every level, relative."""
    names = [f"rpn_{kind}_{level}" for level in golden.levels for kind in ("logits", "deltas")]
    return {k: relative_difference(found[k], golden.arrays[k]) for k in names if k in golden.arrays}


def anchors(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Anchors of every level, pixels."""
    shapes = [found[level] if level in found else golden.nhwc(level)[0] for level in golden.levels]
    own = golden.model.bind(golden.variables).anchors([x[None] for x in shapes])
    named = {f"anchors_{level}": x for level, x in zip(golden.levels, own, strict=True)}
    return {k: float(np.abs(x - golden.arrays[k]).max()) for k, x in named.items() if k in golden.arrays}


def proposals(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Recorded RPN outputs -> proposals: unmatched (a share), boxes (pixels), logits (absolute), levels (a share).

    A proposal is matched with the recorded one within .01 pixels whose logit is nearest: boxes of several levels may be
    clipped to the same image borders.
    """
    own = jax.tree.map(lambda x: x[0], found["proposals"])
    boxes, logits = own.boxes[own.valid], own.logits[own.valid]
    expected = golden.arrays["proposal_boxes"]
    assert boxes.shape == expected.shape and (np.diff(logits) <= 0).all()
    distance = np.abs(boxes[:, None] - expected[None]).max(-1)
    cost = np.where(distance <= 0.01, np.abs(logits[:, None] - golden.arrays["proposal_logits"][None]), np.inf)
    nearest = cost.argmin(1)
    matched = np.isfinite(cost.min(1))
    assert len(np.unique(nearest[matched])) == matched.sum(), "two proposals for one recorded"
    rows = np.flatnonzero(matched)
    differences = {
        "unmatched": float(1 - matched.mean()),
        "boxes": float(distance[rows, nearest[rows]].max()),
        "logits": float(cost[rows, nearest[rows]].max()),
    }
    if "proposal_level" in golden.arrays:  # p6 counts as p5, from which it is pooled
        levels = assign_levels(boxes[rows], strides=(4, 8, 16, 32))
        differences["levels"] = float((levels != golden.arrays["proposal_level"][nearest[rows]]).mean())
    return differences


def box_head(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Recorded pyramid and proposals -> RoIAlign, hidden layer (C4: res5 and its mean), logits, deltas and decoded
    boxes, relative; of a cascade logits and deltas of each stage on its recorded boxes."""
    differences = {}
    for name in ("box_roialign", "res5_out", "box_feature_mean", "box_fc_out", "box_logits", "box_deltas"):
        _compare(golden, found, name, differences)
    _compare(golden, found, "decoded_boxes", differences)
    for k in range(golden.num_stages):
        _compare(golden, found, f"stage{k}_box_logits", differences)
        _compare(golden, found, f"stage{k}_box_deltas", differences)
    return differences


def cascade(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Boxes that the stages hand on and the last one makes (pixels), and the averaged scores (absolute)."""
    if not golden.num_stages:
        return {}
    boxes = [f"stage{k}_proposal_boxes" for k in range(1, golden.num_stages)]
    differences = {k: float(np.abs(found[k] - golden.arrays[k]).max()) for k in (*boxes, "final_boxes")}
    expected = golden.arrays["mean_scores"]
    assert expected.shape[1] == golden.model.num_classes + 1
    return differences | {"mean_scores": float(np.abs(found["mean_scores"] - expected[:, :-1]).max())}


def _compare(golden: Golden, found: dict[str, Any], name: str, differences: dict[str, float]) -> None:
    """Adds the relative difference of an array that both have; maps are NHWC here and NCHW there."""
    try:
        expected, rows = recorded(golden, name)
    except KeyError:
        return
    own = found[name][rows]
    expected = expected.transpose(0, 2, 3, 1) if expected.ndim == 4 else expected.reshape(own.shape)
    differences[name] = relative_difference(own, expected)


def match_detections(golden: Golden, boxes, classes, proposal_index) -> tuple[np.ndarray, np.ndarray]:
    """Rows here and rows of the recording that are the same detection: by (proposal, class), and with
    proposal_index None by (class, nearest box)."""
    expected_boxes, expected_classes = golden.arrays["det_boxes"], golden.arrays["det_classes"]
    if proposal_index is not None:
        rows = {key: i for i, key in enumerate(zip(golden.arrays["det_proposal_idx"], expected_classes, strict=True))}
        pairs = [(i, rows.get(key)) for i, key in enumerate(zip(proposal_index, classes, strict=True))]
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


def detections(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Recorded proposals and class logits (of a cascade: mean scores, deltas of the last stage) -> detections."""
    own = found["detections"]
    real = own.classes >= 0
    picked = (x[real] for x in (own.boxes, own.scores, own.classes, own.proposal_index))
    return compare_detections(golden, *picked)


def mask_head(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Recorded pyramid and detections -> pooled features and mask logits of each detection's class."""
    differences = {}
    if "mask_roialign" in found:
        _compare(golden, found, "mask_roialign", differences)
    expected, rows = recorded(golden, "mask_logits")
    return differences | {"mask_logits": relative_difference(found["mask_logits"][rows], expected)}


def mask_classes(golden: Golden) -> dict[str, float]:
    """Recorded pyramid and the first detections -> mask logits of every class; a programme of its own."""
    maps = [key for key in golden.arrays if key.startswith("mask_logits_all_classes_first")]
    if not maps:
        return {}
    stored = golden.arrays[maps[0]]  # [n, K or 1, M, M]
    n, k = stored.shape[:2]
    boxes = jnp.repeat(jnp.asarray(golden.arrays["det_boxes"][:n]), k, axis=0)[None]
    every = golden.apply(
        lambda model, pyramid, b, c: model.mask_logits(pyramid, b, c), golden.pyramid, boxes, jnp.tile(jnp.arange(k), n)
    )
    return {"mask_logits_all_classes": relative_difference(every, stored.reshape(n * k, *stored.shape[2:]))}


def recorded_masks(golden: Golden) -> np.ndarray:
    """The pasted masks, bool [D,H,W]."""
    width = int(golden.arrays["out_size"][1])
    return np.unpackbits(golden.arrays["out_masks_packed"], axis=-1)[..., :width].astype(bool)


def pasted(golden: Golden) -> dict[str, float]:
    """Recorded boxes and mask logits -> boxes (pixels) and masks (share of other pixels) at the output size."""
    size = tuple(golden.arrays["out_size"].tolist())
    logits, rows = recorded(golden, "mask_logits")
    scaled = scale_boxes(
        golden.arrays["det_boxes"], from_size=tuple(golden.arrays["image_size"].tolist()), to_size=size
    )
    assert scaled.boxes.shape == golden.arrays["out_boxes"].shape == golden.arrays["det_boxes"].shape
    masks = paste_masks(np.asarray(jax.nn.sigmoid(logits)), scaled.boxes[rows], size=size)
    expected = recorded_masks(golden)
    if "out_mask_area" in golden.arrays:
        np.testing.assert_array_equal(expected.sum((1, 2)), golden.arrays["out_mask_area"])
    return {
        "boxes": float(np.abs(scaled.boxes - golden.arrays["out_boxes"]).max()),
        "pixels": float((masks != expected[rows]).mean()),
    }


def end_to_end(golden: Golden, found: dict[str, Any]) -> dict[str, float]:
    """Image -> detections, mask probabilities and pasted masks.

    Detections are matched by class and nearest box, since proposals may come in another order.
    """
    own = jax.tree.map(lambda x: x[0], found["end_to_end"])
    fields = {"boxes": own.boxes, "scores": own.scores, "classes": own.classes, "masks": found["masks"][0]}
    return compare_results(golden, fields)


def detector(golden: Golden) -> dict[str, float]:
    """As `end_to_end`, by the detector of evaluation; a programme of its own."""
    batch = {"image": golden.padded_image(), "image_size": np.asarray(golden.image_size)}
    found = make_detector(golden.model, golden.config)(golden.variables, batch)
    return compare_results(golden, {k: v[0] for k, v in found.items() if k != "exact"})


def compare_results(golden: Golden, found: dict[str, np.ndarray]) -> dict[str, float]:
    """Detections of the image (padding included) against the recorded ones, and what the writer of results makes of
    them: unmatched and pixels (shares), boxes and output_boxes (pixels), scores and mask_probabilities (absolute)."""
    real = found["classes"] >= 0
    boxes, scores, classes, masks = (found[k][real] for k in ("boxes", "scores", "classes", "masks"))
    differences = compare_detections(golden, boxes, scores, classes, None)
    own, theirs = match_detections(golden, boxes, classes, None)
    logits, rows = recorded(golden, "mask_logits")
    kept = {row: i for i, row in enumerate(range(len(golden.arrays["det_boxes"]))[rows])}
    pairs = [(i, kept[j]) for i, j in zip(own, theirs, strict=True) if j in kept]
    mine, stored = np.array(pairs).T
    probabilities = np.asarray(jax.nn.sigmoid(logits))
    differences["mask_probabilities"] = float(np.abs(masks[mine] - probabilities[stored]).max())

    size = tuple(golden.arrays["out_size"].tolist())
    batch = {"image_size": np.asarray(golden.image_size), "image_id": np.array([1]), "original_size": np.array([size])}
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
