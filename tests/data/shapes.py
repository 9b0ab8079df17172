"""Images of flat shapes, one colour a class, and a check that ground truth is where the colours are."""

import json

import numpy as np
from PIL import Image, ImageDraw

from eql_jax.data.annotations import load_annotations
from eql_jax.data.transforms import Size
from tests.data.mapper import mask_box, pasted

BACKGROUND = (126, 126, 126)
# Half way from a colour to the background is 62 levels of at least one channel.
COLOURS = np.array(
    [
        (250, 0, 0),
        (0, 250, 0),
        (0, 0, 250),
        (250, 250, 0),
        (250, 0, 250),
        (0, 250, 250),
        (250, 250, 250),
        (0, 0, 0),
        (250, 125, 0),
    ]
)


def disk(x, y, radius):
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def box(x, y, width, height):
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float64)


def corner(x, y, width, height):
    """An L: the upper right quarter of a box is missing."""
    w, h = width / 2, height / 2
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x + width, y + h], [x + width, y + height], [x, y + height]])


def write_shapes(folder, images, *, crowds=(), as_runs=(), suffix="jpg"):
    """Draws images and returns their `Annotations`.

    Args:
      folder: for the files.
      images: list of (width, height, [(class, polygon float [P, 2]), ..]); later objects are drawn over earlier ones.
      crowds: annotation ids (1, 2, ..) that are crowd regions.
      as_runs: annotation ids whose masks are stored as run lengths.
      suffix: of the files.
    """
    from pycocotools import mask as mask_api

    content = {"images": [], "annotations": [], "categories": []}
    for i in range(len(COLOURS)):
        content["categories"].append({"id": i + 1, "name": f"c{i}", "synset": f"c{i}.n.01", "frequency": "f"})
    (folder / "images").mkdir(parents=True)
    for image_id, (width, height, objects) in enumerate(images, start=1):
        fine = 4  # drawn four times as large, so that edges lie where the polygons say, to a quarter of a pixel
        picture = Image.new("RGB", (fine * width, fine * height), BACKGROUND)
        pen = ImageDraw.Draw(picture)
        for klass, polygon in objects:
            pen.polygon([tuple(point) for point in polygon * fine - 0.5], fill=tuple(COLOURS[klass % len(COLOURS)]))
            (x1, y1), (x2, y2) = polygon.min(axis=0), polygon.max(axis=0)
            annotation_id = len(content["annotations"]) + 1
            segmentation = [np.round(polygon, 2).ravel().tolist()]
            if annotation_id in as_runs or annotation_id in crowds:
                rle = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
                segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            content["annotations"].append(
                {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": klass + 1,
                    "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
                    "area": 1.0,
                    "iscrowd": int(annotation_id in crowds),
                    "segmentation": segmentation,
                }
            )
        name = f"{image_id:012d}.{suffix}"
        picture = picture.resize((width, height), Image.Resampling.BOX)
        picture.save(folder / "images" / name, **({"quality": 98, "subsampling": 0} if suffix == "jpg" else {}))
        content["images"].append(
            {
                "id": image_id,
                "width": width,
                "height": height,
                "file_name": name,
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        )
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return load_annotations(path, folder / "images", strict=True)


def coloured(image, klass):
    """bool [H, W]: the pixels of a class's colour."""
    return np.abs(image.astype(int) - COLOURS[klass % len(COLOURS)]).max(axis=2) < 62


def core(mask):
    """The mask without its outermost pixels: where no rounding of an outline matters."""
    inner = np.pad(mask, 1)
    return mask & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]


def check_example(example, *, min_area=600, covered=False):
    """The masks of each class together, put into their boxes, are the pixels of its colour; the box of a class's only
    object is that of these pixels. What a pasted object leaves of another may be narrow, so with `covered` the
    outermost pixels decide less. Returns how many classes were large enough to say so."""
    size = Size(*example["image"].shape[:2])
    valid = example["image_size"]
    assert not example["image"][valid[0] :].any()
    assert not example["image"][:, valid[1] :].any()
    classes = example["gt_classes"]
    checked = 0
    for klass in range(len(COLOURS)):
        seen = coloured(example["image"], klass)
        seen[valid[0] :] = seen[:, valid[1] :] = False  # padding is black, a colour as well
        rows = np.flatnonzero(classes == klass)
        stated = np.zeros(size, bool)
        for row in rows:
            stated |= pasted(example["gt_masks"][row], example["gt_boxes"][row], size)
        if max(seen.sum(), stated.sum()) < min_area:
            continue
        iou = (seen & stated).sum() / (seen | stated).sum()
        if covered:
            assert iou > 0.85, (klass, iou, seen.sum(), stated.sum())
            # Up to a twentieth of an object may be seen of one that was dropped.
            assert (core(seen) & ~stated).sum() <= 0.05 * seen.sum(), klass
            assert (core(stated) & ~seen).sum() <= 0.01 * seen.sum(), klass
        else:
            assert iou > (0.95 if seen.sum() > 1500 else 0.9), (klass, iou, seen.sum(), stated.sum())
        if len(rows) == 1:
            outer, inner = mask_box(seen), mask_box(core(seen) & stated if covered else seen)
            grown = (example["gt_boxes"][rows[0]] - outer) * (-1, -1, 1, 1)
            shrunk = (inner - example["gt_boxes"][rows[0]]) * (-1, -1, 1, 1)
            assert max(grown.max(), shrunk.max()) <= 1.3, (klass, outer, inner, example["gt_boxes"][rows[0]])
        checked += 1
    return checked


def rows_of(batch):
    """The examples of a batch."""
    return [{key: value[row] for key, value in batch.items()} for row in range(len(batch["image"]))]
