"""Results files made up for the tests of ensembles."""

import json

import numpy as np

from tests.ensemble.reference import encoded


def mask_in_box(rng, box, size):
    """A blob in a box x, y, width, height: some pixels off at random."""
    x, y, w, h = (int(round(v)) for v in box)
    mask = np.zeros(size, np.uint8)
    mask[y : y + max(h, 1), x : x + max(w, 1)] = rng.random(mask[y : y + max(h, 1), x : x + max(w, 1)].shape) < 0.8
    return encoded(mask)


def make_files(seed, *, files=2, images=4, count=12, classes=3, masks=True, size=(40, 56), ties=False):
    """Lists of results that partly agree: boxes moved by some pixels, some of them at the border."""
    rng = np.random.default_rng(seed)
    found = [[] for _ in range(files)]
    for image_id in rng.permutation(images).tolist():
        corner = rng.uniform(-4, np.array(size)[::-1] - 8, (count, 2))
        side = rng.uniform(6, 24, (count, 2))
        category = rng.integers(1, classes + 1, count)
        for results in found:
            top_left = (corner + rng.normal(0, 1.5, (count, 2))).clip(0)
            sides = np.minimum(side + rng.normal(0, 1.5, (count, 2)), np.array(size)[::-1] - top_left).clip(1)
            scores = rng.choice([0.25, 0.5, 0.75], count) if ties else rng.random(count).round(4)
            order = np.argsort(-scores, kind="stable")
            for i in order.tolist():
                box = [*top_left[i].round(3).tolist(), *sides[i].round(3).tolist()]
                result = {
                    "image_id": image_id,
                    "category_id": int(category[i]),
                    "score": float(scores[i]),
                    "bbox": box,
                }
                if masks:
                    result["segmentation"] = mask_in_box(rng, box, size)
                results.append(result)
    return found


def annotations(images, classes=3, size=(40, 56), letters="rcf"):
    """An annotation file's content without objects."""
    return {
        "images": [{"id": i, "height": size[0], "width": size[1]} for i in range(images)],
        "annotations": [],
        "categories": [
            {"id": i + 1, "name": f"class_{i + 1}", **({"frequency": letters[i % len(letters)]} if letters else {})}
            for i in range(classes)
        ],
    }


def write(folder, **files):
    """Writes NAME.json for each, and returns the paths as strings."""
    paths = []
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content))
        paths.append(str(path))
    return paths
