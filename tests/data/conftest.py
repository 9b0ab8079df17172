"""A small data set drawn with Pillow: a factory for annotation dicts, and one that writes them with their images."""

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from configs.base import get_config
from eql_jax.data.records import ImageRecord, empty_objects
from eql_jax.data.render import draw_on_canvas
from eql_jax.data.transforms import Size
from eql_jax.data.views import View


class WrittenDataset(NamedTuple):
    """Paths of a data set on disk."""

    json: Path
    images: Path


def resize_and_pad(picture, *, size, bucket, flip=False):
    """An RGB picture on its canvas as the pipeline draws it: through a lossless file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    none = np.zeros(0, np.int32)
    record = ImageRecord(1, Path("x.png"), *picture.size, none, none, empty_objects(), stream.getvalue())
    view = View(Size(picture.height, picture.width), Size(*size), flip, 0, 0, Size(*bucket))
    canvas = np.zeros((*bucket, 3), np.uint8)
    draw_on_canvas(canvas, record, view, fast=False)
    return canvas


def rectangle(x, y, w, h):
    """A rectangle as a COCO polygon."""
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def make_content(sizes, *, objects_per_image=2, num_categories=3, seed=0):
    """An LVIS v1 dict: images of (width, height) in `sizes`, ids 101, 102, ..., with rectangles as objects."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i, (width, height) in enumerate(sizes):
        image_id = 101 + i
        images.append(
            {
                "id": image_id,
                "width": width,
                "height": height,
                "coco_url": f"http://images.cocodataset.org/train2017/{image_id:012d}.jpg",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        )
        for _ in range(objects_per_image):
            w, h = (int(rng.integers(4, side // 2)) for side in (width, height))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": 10 * int(rng.integers(1, num_categories + 1)),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": rectangle(x, y, w, h),
                }
            )
    categories = [
        {"id": 10 * i, "name": f"shape{i}", "synset": f"shape{i}.n.01", "frequency": "rcf"[i % 3]}
        for i in range(1, num_categories + 1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def write_dataset(tmp_path):
    """Writes a content dict and its images (objects drawn in white on noise) and returns the paths."""

    def write(content, *, folder="train2017", draw=True):
        images = tmp_path / "images"
        (images / folder).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(1)
        for image in content["images"] if draw else []:
            noise = rng.integers(0, 90, (image["height"], image["width"], 3), dtype=np.uint8)
            picture = Image.fromarray(noise)
            pen = ImageDraw.Draw(picture)
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"] and isinstance(annotation["segmentation"], list):
                    for part in annotation["segmentation"]:
                        if len(part) >= 6:
                            pen.polygon(part, fill=(255, 255, 255))
            picture.save(images / folder / f"{image['id']:012d}.jpg", quality=95)
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return WrittenDataset(path, images)

    return write


@pytest.fixture
def config():
    """The base config at 64 pixels, batches of 4."""
    config = get_config()
    with config.unlocked():
        config.seed = 7
        config.train.batch_size = 4
        config.eval.batch_size = 4
        config.data.shorter_side = (48, 64)
        config.data.eval_shorter_side = 64
        config.data.longest_side = 96
        config.data.buckets = ((64, 96), (96, 64))
        config.data.max_objects = 5
        config.data.mask_size = 16
        config.data.workers = 2
    return config


@pytest.fixture
def larger(write_dataset):
    """Sixty images, three of them unusable: enough work to be killed in."""
    from tests.data.prepared_files import spoil_images  # which goes back to this file

    paths = write_dataset(make_content([(320, 240)] * 60, objects_per_image=3))
    spoil_images(paths)
    return paths
