"""The page that shows a training set: its numbers, its pictures, its charts."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from eql_jax.data.browse import browse, draw_row, largest_threshold, parse_arguments
from eql_jax.data.categories import ClassStatistics
from eql_jax.visualize.charts import class_histogram, tail_ratio_chart
from tests.data.conftest import make_content


@pytest.fixture
def page(write_dataset, tmp_path):
    content = make_content([(96, 64), (64, 96), (90, 60), (96, 64), (90, 60), (96, 64)], objects_per_image=3)
    content["categories"][0]["name"] = "<b>shape & co</b>"
    paths = write_dataset(content)
    words = [
        "--config=configs/custom.py",
        f"--out={tmp_path / 'page'}",
        "--steps=2",
        "--start_step=3",
        "--lambda=0.7",
        f"--config.data.train_annotations={paths.json}",
        f"--config.data.train_images={paths.images}",
        "--config.data.buckets=((64,96),(96,64))",
        "--config.data.shorter_side=(48,64)",
        "--config.data.longest_side=96",
        "--config.train.batch_size=2",
    ]
    path = browse(*parse_arguments(words))
    return content, path.read_text(encoding="utf-8")


def test_page(page):
    content, text = page
    assert "Batch of step 3: 2 images" in text and "Batch of step 4: 2 images" in text
    assert "images trained on</td><td style='text-align:left'>6 of 6" in text
    assert "<b>shape" not in text and "&lt;b&gt;shape &amp; co&lt;/b&gt;" in text
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    assert len(pictures) == 4
    for encoded in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).size in ((640, 427), (427, 640))

    # The tail, counted here from the JSON.
    images_of = {
        c["id"]: {a["image_id"] for a in content["annotations"] if a["category_id"] == c["id"]}
        for c in content["categories"]
    }
    counts = np.array([len(images) for images in images_of.values()])
    tail = counts / 6 < 0.7
    assert f"{tail.sum()} of 3 classes are in fewer than 0.7 of 6 images" in text
    assert f"tail ratio {100 * counts[tail].sum() / counts.sum():.2f} %" in text
    for probability in re.findall(r"sampling probability ([0-9.e-]+)", text):
        assert float(probability) == pytest.approx(1 / 6, rel=1e-2)  # all classes are in more than 1 % of the images


def test_page_of_a_mixed_data_set(write_dataset, tmp_path):
    """Each set's share and classes, and under each picture the set it is from; objects without masks are drawn."""
    content = make_content([(96, 64), (64, 96), (90, 60), (96, 64)], objects_per_image=2)
    paths = write_dataset(content)
    for image in content["images"]:
        image["neg_category_ids"] = [30]
    for annotation in content["annotations"]:
        annotation["category_id"] = 10
        del annotation["segmentation"]
    other = tmp_path / "a<b>.json"
    other.write_text(json.dumps(content))
    words = [
        "--config=configs/custom.py",
        f"--out={tmp_path / 'page'}",
        f"--config.data.train_annotations={paths.json}",
        f"--config.data.train_images={paths.images}",
        f"--config.data.extra_sets=(({str(other)!r},{str(paths.images)!r},'',0.5),)",
        "--config.data.buckets=((96,96),)",
        "--config.data.shorter_side=(48,64)",
        "--config.data.longest_side=96",
        "--config.train.batch_size=2",
    ]
    text = browse(*parse_arguments(words)).read_text(encoding="utf-8")
    assert (
        "a&lt;b&gt;.json: 0.5 of the images drawn, 4 of 4 trained on; annotates 3 classes, negatives: verified" in text
    )
    assert "boxes only" in text and "a<b>" not in text
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert len(captions) == 4
    names = [re.match(r"image (10[1-4]) of set ([01]) ", caption)[2] for caption in captions]
    assert sorted(names) == ["0", "0", "1", "1"]
    for name, caption in zip(names, captions, strict=True):
        assert caption.endswith(f"negatives of {3 if name == '0' else 2} classes")


def test_an_object_is_drawn_where_it_is():
    """A white square on black: its pixels, and only they, are tinted in the colour of its class."""
    image = np.zeros((1, 640, 640, 3), np.uint8)
    image[0, 200:400, 100:500] = 255
    mask = np.ones((1, 1, 28, 28), np.uint8)
    batch = {
        "image": image,
        "gt_boxes": np.array([[[100, 200, 500, 400]]], np.float32),
        "gt_classes": np.array([[0]], np.int32),
        "gt_ignore": np.zeros((1, 1), bool),
        "gt_masks": mask,
    }
    statistics = ClassStatistics(("square",), ("r",), np.array([1]), np.array([1]), 1, np.array([5]))
    drawn = np.asarray(draw_row(batch, 0, statistics, np.array([5])))
    inside, outside = drawn[230:370, 130:470], drawn[450:, :]
    assert (outside == 0).all()
    assert len(np.unique(inside.reshape(-1, 3), axis=0)) == 1 and (inside[0, 0] != 255).any()


def test_histogram_has_a_bar_for_every_class():
    counts = np.array([5, 1000, 60, 0])
    svg = class_histogram(["a", "b", "c", "d<"], "rfcr", counts, tail=np.array([True, False, True, True]))
    titles = re.findall(r"<title>(.*?)</title>", svg)
    assert titles == [
        "b (f): 1,000 images",
        "c (c): 60 images, tail",
        "a (r): 5 images, tail",
        "d&lt; (r): 0 images, tail",
    ]
    heights = [float(h) for h in re.findall(r'height="([0-9.]+)" fill="#', svg)]
    assert heights == sorted(heights, reverse=True) and heights[-1] == 0
    # Equal factors are equal steps: 1000 to 60 against the axis of 1 .. 10,000 from half an image on.
    assert (heights[0] - heights[1]) / heights[0] == pytest.approx(np.log(1000 / 60) / np.log(2000), rel=0.01)


def test_tail_ratio_chart_marks_the_threshold():
    svg = tail_ratio_chart(np.geomspace(1e-4, 1, 9), np.linspace(0, 1, 9), threshold=1e-2, ratio=0.5)
    assert "lambda 0.01: tail ratio 50.00 %" in svg
    x, y = map(float, re.search(r'<circle cx="([0-9.]+)" cy="([0-9.]+)"', svg).groups())
    assert x == pytest.approx(64 + (1120 - 80) / 2, abs=0.1) and y == pytest.approx((34 + 300) / 2, abs=0.1)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05, 0.1, 0.5, 1.0])
def test_largest_threshold(share):
    from eql_jax.losses.tail import tail_mask_from_threshold, tail_ratio

    counts = np.round(np.random.default_rng(0).pareto(0.7, 300) * 3 + 1).astype(int)
    images = int(counts.max()) + 1234
    threshold = largest_threshold(counts, images, share)

    def ratio(value):
        return tail_ratio(counts, tail_mask_from_threshold(counts / images, value))

    assert ratio(threshold) <= share
    next_one = counts[counts / images >= threshold].min() / images  # the next class to join the tail
    assert threshold == pytest.approx(next_one, rel=1e-3)
    assert share == 1 or ratio(np.nextafter(next_one, 1)) > share


def test_arguments():
    for words in (["--steps=-1"], ["--lambda=2"]):
        with pytest.raises(SystemExit):
            parse_arguments(["--config=c.py", "--out=x", *words])
