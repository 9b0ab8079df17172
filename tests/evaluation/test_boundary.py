"""Boundary AP: by hand, and against masks eroded on the canvas of the whole image, in the official evaluation."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from eql_jax.data import polygons
from eql_jax.evaluation import boundary, evaluate, official
from eql_jax.evaluation.boundary import boundary_of, width_of_boundary
from eql_jax.evaluation.ground_truth import prepare_ground_truth
from eql_jax.evaluation.run_lengths import PackedMasks, crop_of
from tests.evaluation import reference
from tests.evaluation.synthetic_lvis import HEIGHT, WIDTH, make_lvis
from tests.evaluation.test_evaluator import make_coco
from tests.evaluation.test_fast import grid_case


def encode(mask):
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def square(size, x, y, side):
    mask = np.zeros(size, np.uint8)
    mask[y : y + side, x : x + side] = 1
    return mask


def test_width():
    # 2 % of the diagonals 800, 50 and 5, at least one pixel; .5 goes to the even number, as in the authors' code.
    assert width_of_boundary([[480, 640], [30, 40], [3, 4], [60, 45], [105, 140]]).tolist() == [16, 1, 1, 2, 4]


def test_boundary_by_hand():
    mask = square((7, 7), 1, 1, 5)
    np.testing.assert_array_equal(boundary_of(mask, 1), mask - square((7, 7), 2, 2, 3))
    np.testing.assert_array_equal(boundary_of(mask, 2), mask - square((7, 7), 3, 3, 1))
    np.testing.assert_array_equal(boundary_of(mask, 3), mask)
    full = np.ones((5, 5), np.uint8)
    np.testing.assert_array_equal(boundary_of(full, 1), full - square((5, 5), 1, 1, 3)), "borders are outlines"


def test_iou_by_hand():
    """A square of 40 pixels, found 2 pixels too far to the right in an image of diagonal 250: the boundary is 5 wide.

    Masks: 38 * 40 of 42 * 40, IoU .905: right at .50 to .90. Boundaries: frames of 40 * 40 - 30 * 30 = 700 pixels;
    their common part is 38 * 40 less the union of the two holes, 32 * 30: 560, IoU 560 / 840 = .667: right at .50 to
    .65, four of ten thresholds.
    """
    size = (150, 200)
    object_, found = square(size, 50, 50, 40), square(size, 52, 50, 40)
    image = {"id": 1, "height": 150, "width": 200, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [50, 50, 40, 40], "area": 1600}
    dataset = {
        "images": [image],
        "annotations": [{**annotation, "segmentation": encode(object_)}],
        "categories": [{"id": 1, "frequency": "f"}],
    }
    results = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": encode(found)}]
    result = evaluate(dataset, results, iou_types=["segm", "boundary"])
    assert result.metrics["segm"]["AP"] == pytest.approx(0.9)
    assert result.metrics["boundary"]["AP"] == pytest.approx(0.4)
    assert result.classes[0].ap == pytest.approx({"segm": 0.9, "boundary": 0.4})


@pytest.mark.parametrize("ahead, behind", [([3, 0], []), ([], [0, 2]), ([], [0]), ([0, 0, 3, 0], [0, 2, 0, 1, 0])])
def test_empty_runs(ahead, behind):
    """Run lengths with runs of no pixel, ahead, behind and at the very end, are the mask without them."""
    size = (40, 60)
    plain = encode(square(size, 20, 10, 25))
    first, *runs = polygons.decompress_counts(plain["counts"]).tolist()
    counts = [*ahead, first - sum(ahead), *runs[:-1], runs[-1] - sum(behind), *behind]
    rle = mask_utils.frPyObjects({"size": list(size), "counts": counts}, *size)
    odd = {"size": list(size), "counts": rle["counts"].decode()}
    assert sum(counts) == 2400 and odd["counts"] != plain["counts"]
    image = {"id": 1, "height": 40, "width": 60, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 10, 25, 25], "area": 625}
    for found, annotated in ((odd, plain), (plain, odd)):  # pycocotools stops where both have an empty run at once
        dataset = {"images": [image], "annotations": [{**annotation, "segmentation": annotated}]}
        dataset["categories"] = [{"id": 1, "frequency": "f"}]
        results = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": found}]
        assert evaluate(dataset, results, iou_types=["boundary"]).metrics["boundary"]["AP"] == pytest.approx(1)
    runs = PackedMasks.from_rles([odd])
    box = runs.measure(np.array([0])).boxes[0]
    crop = crop_of(runs.decode(np.array([0])).lengths, box, 40)
    x1, y1, x2, y2 = box.tolist()
    inside = crop[:, : 60 - x1]  # pycocotools' box may be wider than the image
    np.testing.assert_array_equal(inside, square(size, 20, 10, 25)[y1:y2, x1:x2])
    assert inside.sum() == crop.sum() == 625


def test_memory_of_large_masks(monkeypatch):
    """Cut by the size of the masks, the same numbers; what is held at a time does not grow with the edges."""
    dataset, results = make_lvis(4)
    expected = evaluate(dataset, results, iou_types=["boundary"])
    made = []

    class Counting(boundary._Boundaries):
        def __init__(self, shapes, index):
            super().__init__(shapes, index)
            made.append(int((self._boxes[:, 2:] - self._boxes[:, :2]).prod(axis=1).sum()))

    monkeypatch.setattr(boundary, "_Boundaries", Counting)
    monkeypatch.setattr(boundary, "_BLOCK_BYTES", 100_000)
    monkeypatch.setattr(boundary, "_EDGE_BYTES", 10)
    assert evaluate(dataset, results, iou_types=["boundary"]) == expected
    assert len(made) > 4 and max(a + b for a, b in zip(made[::2], made[1::2], strict=True)) < 100_000 + 2 * 150 * 210


# --------------------------------------------------------------------------------------------- the whole canvas


def canvas_boundary(mask):
    """Plain: a pixel of the mask is on the boundary if any pixel within d (a square) is outside, or off the image."""
    d = max(1, round(0.02 * np.hypot(*mask.shape)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), d, d, d, d, cv2.BORDER_CONSTANT, value=0)
    sums = cv2.boxFilter(padded, cv2.CV_32S, (2 * d + 1, 2 * d + 1), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return mask & (sums[d:-d, d:-d] < (2 * d + 1) ** 2)


def canvas_evaluation(dataset, results):
    """The official evaluation with another IoU; crowd regions and the area stay those of masks."""

    class Evaluation(official._evaluation_class()):
        def compute_iou(self, img_id, cat_id):
            masks = super().compute_iou(img_id, cat_id)
            gt, dt = self._get_gt_dt(img_id, cat_id)
            if not len(gt) or not len(dt):
                return masks
            order = np.argsort([-d["score"] for d in dt], kind="mergesort")
            found = [eroded(dt[i]["segmentation"]) for i in order]
            annotated = [eroded(g["segmentation"]) for g in gt]
            ious = np.array([[reference.mask_iou(d, g) for g in annotated] for d in found])
            return np.minimum(ious, masks)

    def eroded(rle):
        return canvas_boundary(reference.to_mask(rle, *rle["size"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "_evaluation_class", lambda: Evaluation)
        ground_truth = prepare_ground_truth(dataset)
        kept = [{k: v for k, v in r.items() if k != "bbox"} for r in results]
        return official.run_official(ground_truth, kept, iou_type="segm", max_detections=300)


@pytest.mark.parametrize("make", [lambda: make_lvis(4), lambda: make_lvis(5, tied=True), lambda: grid_case(5)])
def test_equals_the_whole_canvas(make):
    dataset, results = make()
    found = evaluate(dataset, results, iou_types=["boundary"])
    expected = canvas_evaluation(dataset, results)
    np.testing.assert_allclose(found.curves["boundary"].precision, expected.eval["precision"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.curves["boundary"].recall, expected.eval["recall"], rtol=0, atol=1e-9)
    assert found.metrics["boundary"] == pytest.approx(expected.results, abs=1e-9)
    masks = evaluate(dataset, results, iou_types=["segm"]).metrics["segm"]
    assert found.metrics["boundary"]["AP"] <= masks["AP"]


def test_crowds():
    dataset, results = make_coco(6)
    found = evaluate(dataset, results, iou_types=["boundary"])
    assert found.metrics["boundary"] == pytest.approx(canvas_evaluation(dataset, results).results, abs=1e-9)


def test_the_official_backend_has_the_same_boundaries():
    dataset, results = make_lvis(4)
    fast, other = (evaluate(dataset, results, iou_types=["boundary"], backend=b) for b in ("fast", "official"))
    assert fast == other


def test_borders_of_the_image_and_shapes_with_holes():
    """Random blots, some across all the image, give the boundary of the plain definition."""
    rng = np.random.default_rng(0)
    d = int(width_of_boundary([HEIGHT, WIDTH]))
    for _ in range(20):
        mask = cv2.GaussianBlur(rng.random((HEIGHT, WIDTH)), (0, 0), rng.uniform(3, 15)) > rng.uniform(0.45, 0.52)
        mask = mask.astype(np.uint8)
        np.testing.assert_array_equal(boundary_of(mask, d), canvas_boundary(mask))


def test_opencv_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="pip install opencv-python-headless"):
        boundary_of(np.ones((3, 3), np.uint8), 1)
