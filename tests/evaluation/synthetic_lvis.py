"""A made-up LVIS data set with detections that has every case the protocol knows."""

import numpy as np
from pycocotools import mask as mask_utils

HEIGHT, WIDTH = 150, 210


def ellipse(box):
    """The ellipse in a box (xywh) as compressed RLE."""
    x, y, w, h = box
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 <= 1
    rle = mask_utils.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}


def octagon(box):
    x, y, w, h = box
    a, b = w * 0.3, h * 0.3
    points = [(x + a, y), (x + w - a, y), (x + w, y + b), (x + w, y + h - b), (x + w - a, y + h), (x + a, y + h)]
    return [[value for point in (*points, (x, y + h - b), (x, y + b)) for value in point]]


def jitter(rng, box, amount):
    x, y, w, h = box
    dx, dy = rng.normal(0, amount, 2) * (w, h)
    w, h = (w, h) * np.exp(rng.normal(0, amount, 2))
    x, y = np.clip([x + dx, y + dy], 0, [WIDTH - 2, HEIGHT - 2])
    return [round(float(v), 2) for v in (x, y, max(1, min(w, WIDTH - x)), max(1, min(h, HEIGHT - y)))]


def make_lvis(seed, *, num_images=9, num_classes=12, tied=False):
    """(dataset, results): classes 10, 20, ...; the last has no annotation, the one before no detection."""
    rng = np.random.default_rng(seed)
    ids = [10 * (i + 1) for i in range(num_classes)]
    annotated = ids[:-1]
    images, annotations, results = [], [], []

    def detect(image_id, category_id, box):
        score = float(rng.random())
        results.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "score": round(score, 1) if tied else score,
                "bbox": jitter(rng, box, 0.06),
                "segmentation": ellipse(jitter(rng, box, 0.06)),
            }
        )

    for number in range(num_images):
        image_id = 1000 - 7 * number  # falling, so that order of file and order of id differ
        present = set()
        for _ in range(0 if number == 3 else int(rng.integers(1, 9))):
            category_id = int(rng.choice(annotated)) if annotations else annotated[-1]
            present.add(category_id)
            w, h = rng.uniform(12, 130, 2)
            box = [round(float(v), 2) for v in (rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h), w, h)]
            annotations.append(
                {
                    "id": len(annotations),  # from 0: the official code would take a match with 0 for none
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": round(float(w * h * 0.8), 2),
                    "segmentation": ellipse(box) if rng.random() < 0.5 else octagon(box),
                }
            )
            for _ in range(rng.choice([0, 1, 1, 2])):  # missed, found, found twice
                if category_id != annotated[-1]:
                    detect(image_id, category_id, box)
        absent = [i for i in ids if i not in present]
        images.append(
            {
                "id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": sorted(rng.choice(absent, min(3, len(absent)), replace=False).tolist()),
                "not_exhaustive_category_ids": sorted(present)[:1],
            }
        )
        for _ in range(320 if number == 1 else 12):  # false, unverified and superfluous ones; one image over the limit
            category_id = int(rng.choice([i for i in ids if i != annotated[-1]]))
            w, h = rng.uniform(8, 60, 2)
            detect(image_id, category_id, [rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h), w, h])
    for result in results[5:200:40]:  # of no area: no false positives
        result["bbox"] = [*result["bbox"][:3], 0.0]
        result["segmentation"] = ellipse([0, 0, 0.1, 0.1])
    categories = [{"id": i, "name": f"shape_{i}", "frequency": "rcf"[k % 3]} for k, i in enumerate(ids)]
    rng.shuffle(categories)
    results.sort(key=lambda r: -r["image_id"])
    return {"images": images, "annotations": annotations, "categories": categories}, results
