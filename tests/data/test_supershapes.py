"""The embedded data set against recounts of its annotations, masks rendered by pycocotools and hand-worked cases."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from eql_jax.data.records import frequency_letter
from eql_jax.data.shapes import catalogue, contours, plan
from eql_jax.data.shapes.polygons import mask_to_polygons
from eql_jax.data.shapes.scene import DIFFICULTIES, SUBPIXELS, draw_scene
from eql_jax.data.supershapes import SupershapesPaths, ensure_supershapes

SMALL = dict(num_classes=20, train_images=150, val_images=40, image_size=64, seed=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SupershapesPaths:
    return ensure_supershapes(tmp_path_factory.mktemp("shapes") / "set", workers=2, progress=False, **SMALL)


@pytest.fixture(scope="module")
def documents(made) -> dict[str, dict]:
    return {
        "train": json.loads(made.train_annotations.read_text()),
        "val": json.loads(made.val_annotations.read_text()),
    }


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _polygon_mask(polygons: list[list[float]], size: int) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, size, size))).astype(bool)


# ------------------------------------------------------------------ the files


def test_same_bytes_for_the_same_seed_whatever_the_number_of_workers(made, tmp_path):
    again = ensure_supershapes(tmp_path / "again", workers=1, progress=False, **SMALL)
    assert _bytes(again.images) == _bytes(made.images)
    other = ensure_supershapes(tmp_path / "other", workers=1, progress=False, **(SMALL | {"seed": 6}))
    ours, theirs = _bytes(made.images), _bytes(other.images)
    assert ours.keys() == theirs.keys()
    assert all(ours[name] != theirs[name] for name in ours)


def test_lvis_keys_ids_and_files(made, documents):
    seen_ids, names = set(), {}
    for split, document in documents.items():
        assert set(document) == {"info", "licenses", "categories", "images", "annotations"}
        for image in document["images"]:
            assert set(image) == {
                "id", "width", "height", "license", "date_captured", "coco_url", "flickr_url", "neg_category_ids",
                "not_exhaustive_category_ids",
            }  # fmt: skip
            assert image["coco_url"].endswith(f"/{split}/{image['id']:012d}.jpg")
            picture = cv2.imread(str(made.images / split / f"{image['id']:012d}.jpg"))
            assert picture.shape == (image["height"], image["width"], 3) == (64, 64, 3)
            assert image["id"] not in seen_ids  # train and val have no id in common
            seen_ids.add(image["id"])
        assert len(list((made.images / split).iterdir())) == len(document["images"])
        for annotation in document["annotations"]:
            assert set(annotation) == {"id", "image_id", "category_id", "area", "bbox", "segmentation"}
        ids = [a["id"] for a in document["annotations"]]
        assert ids == list(range(1, len(ids) + 1))
        assert [c["id"] for c in document["categories"]] == list(range(1, 21))
        names[split] = [(c["id"], c["name"], c["synset"], c["def"], c["frequency"]) for c in document["categories"]]
    assert names["train"] == names["val"]
    assert len({name for _, name, *_ in names["train"]}) == 20


def test_counts_and_letters_are_those_of_a_recount(documents):
    for document in documents.values():
        images, instances = {}, {}
        for a in document["annotations"]:
            images.setdefault(a["category_id"], set()).add(a["image_id"])
            instances[a["category_id"]] = instances.get(a["category_id"], 0) + 1
        for c in document["categories"]:
            assert c["image_count"] == len(images[c["id"]])
            assert c["instance_count"] == instances[c["id"]] >= c["image_count"]
    for c in documents["train"]["categories"]:
        assert c["frequency"] == ("r" if c["image_count"] <= 10 else "c" if c["image_count"] <= 100 else "f")
    assert {c["frequency"] for c in documents["train"]["categories"]} == {"r", "c", "f"}


def test_training_counts_are_lvis_quantiles_and_validation_is_balanced(documents):
    table = json.loads((Path(plan.__file__).parents[1] / "counts" / "lvis_v1.json").read_text())
    lvis = sorted(row[4] for row in table["categories"])
    quantiles = [lvis[int((i + 0.5) / 20 * 1203)] for i in range(20)]
    scale = 150 * (360952 / 99388) / sum(quantiles)
    expected = [min(max(round(q * scale), 1), 135) for q in quantiles]
    counts = [c["image_count"] for c in documents["train"]["categories"]]
    assert sorted(counts) == expected
    assert counts != sorted(counts) and counts != sorted(counts)[::-1]  # the seed decides who is frequent
    assert {c["image_count"] for c in documents["val"]["categories"]} == {round(40 * (360952 / 99388) / 20)}


def test_federated_fields(documents):
    for split, document in documents.items():
        present: dict[int, list[int]] = {image["id"]: [] for image in document["images"]}
        for a in document["annotations"]:
            present[a["image_id"]].append(a["category_id"])
        flagged = 0
        for image in document["images"]:
            here, negative = present[image["id"]], image["neg_category_ids"]
            assert 1 <= len(set(here)) <= plan.MAX_CLASSES_PER_IMAGE
            assert not set(here) & set(negative)
            assert negative == sorted(set(negative)) and len(negative) == 10
            assert set(image["not_exhaustive_category_ids"]) <= set(here)
            flagged += bool(image["not_exhaustive_category_ids"])
        assert flagged <= 0.1 * len(document["images"])
        if split == "train":
            assert flagged


def test_areas_and_boxes_are_those_of_the_rendered_masks(documents):
    off = []
    for a in documents["val"]["annotations"]:
        mask = _polygon_mask(a["segmentation"], 64)
        y, x = np.nonzero(mask)
        perimeter = 2 * (a["bbox"][2] + a["bbox"][3])
        assert abs(mask.sum() - a["area"]) <= 0.25 * perimeter + 2
        x0, y0, w, h = a["bbox"]
        assert 0 <= x0 and 0 <= y0 and x0 + w <= 64 and y0 + h <= 64
        rendered = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        off.append(np.abs(np.array([x0, y0, x0 + w, y0 + h]) - rendered))
        corners = np.concatenate([np.reshape(p, (-1, 2)) for p in a["segmentation"]])
        np.testing.assert_allclose([*corners.min(0), *corners.max(0)], [x0, y0, x0 + w, y0 + h], atol=0.011)
    assert np.mean(off) < 0.5 and np.max(off) <= 2  # a needle's tip covers no pixel's centre


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize("difficulty", ["normal", "hard"])
def test_polygons_cover_the_visible_pixels_and_no_object_is_hidden(difficulty):
    settings = DIFFICULTIES[difficulty]
    shapes = [c.contour for c in catalogue.shape_classes(40, lookalikes=settings.lookalikes)]
    agreement, covered = [], 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        classes = rng.choice(40, 1 + seed % 7, replace=False).tolist()
        scene = draw_scene(rng, classes=classes, contours=shapes, size=128, difficulty=settings)
        assert {o.class_index for o in scene.objects} == set(classes)
        assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8
        for index, item in enumerate(scene.objects):
            assert settings.visible <= item.visible <= 1
            covered += item.visible < 0.999
            fine = (scene.labels == index + 1).astype(np.float32)
            share = cv2.resize(fine, (128, 128), interpolation=cv2.INTER_AREA)
            if share.sum() < 15**2:
                continue
            for scale, pixels in ((1, share >= 0.5), (SUBPIXELS, fine > 0)):
                mask = _polygon_mask([[v * scale for v in p] for p in item.polygons], 128 * scale)
                agreement.append((mask & pixels).sum() / (mask | pixels).sum())
            area = sum(cv2.contourArea(np.float32(p).reshape(-1, 2)) for p in item.polygons)
            assert area == pytest.approx(fine.sum() / SUBPIXELS**2, rel=0.03)
    assert len(agreement) > 120 and covered > 10
    by_pixels, by_subpixels = np.reshape(agreement, (-1, 2)).T
    assert by_pixels.min() > 0.9 and by_pixels.mean() > 0.97  # a thin shape's edge pixels are a tenth of it
    assert by_subpixels.min() > 0.95 and by_subpixels.mean() > 0.98


def test_colour_tells_nothing_about_the_class():
    shapes = [c.contour for c in catalogue.shape_classes(20)]
    colours = [[] for _ in range(20)]
    for seed in range(250):
        rng = np.random.default_rng([9, seed])
        classes = rng.choice(20, 4, replace=False).tolist()
        scene = draw_scene(rng, classes=classes, contours=shapes, size=64, difficulty=DIFFICULTIES["normal"])
        for index, item in enumerate(scene.objects):
            inside = scene.labels[2::4, 2::4] == index + 1
            colours[item.class_index].append(scene.image[inside].mean(0))
    counts = np.array([len(c) for c in colours])
    means, everything = np.array([np.mean(c, 0) for c in colours]), np.concatenate([np.array(c) for c in colours])
    between = (counts[:, None] * (means - everything.mean(0)) ** 2).sum(0) / 19
    within = sum(((np.array(c) - m) ** 2).sum(0) for c, m in zip(colours, means, strict=True)) / (counts.sum() - 20)
    assert counts.min() > 20
    assert (between / within < 2.4).all()  # the .999 quantile of F(19, 1000) is 2.3


@pytest.mark.parametrize("size", [48, 200])
def test_objects_grow_with_the_picture(size):
    shapes = [c.contour for c in catalogue.shape_classes(20)]
    extents = []
    for seed in range(30):
        scene = draw_scene(
            np.random.default_rng(seed), classes=[seed % 20], contours=shapes, size=size,
            difficulty=DIFFICULTIES["normal"],
        )  # fmt: skip
        extents += [np.ptp(np.reshape(o.polygons[0], (-1, 2)), axis=0).max() / size for o in scene.objects]
    assert 0.25 < np.mean(extents) < 0.5 and max(extents) <= 1


# ------------------------------------------------------------------ polygons


def _large(rows: list[str]) -> np.ndarray:
    """A mask of 10 x 10 cells per character."""
    return np.kron(np.array([[c == "#" for c in row] for row in rows], np.uint8), np.ones((10, 10), np.uint8))


def test_rectangle_is_traced_along_its_edges():
    polygons = mask_to_polygons(np.ones((3, 8), np.uint8), offset=(4, 2), scale=0.25, least_area=0.0)
    assert len(polygons) == 1
    assert sorted(map(tuple, np.reshape(polygons[0], (-1, 2)))) == [(1, 0.5), (1, 1.25), (3, 0.5), (3, 1.25)]


@pytest.mark.parametrize(
    "rows",
    [
        ["#####", "##..#", "##..#", "#####"],  # a hole
        ["#######", "#.#.#.#", "#######", "##.####", "#######"],  # four holes
        ["####", "#..#", "#..#", "##.#"],  # open
        ["##..", "##..", "..##"],  # two parts that touch at a corner
        ["##..", "##..", "....", "...#"],  # two parts
        ["#######", "#.....#", "#.###.#", "#.###.#", "#.....#", "#######"],  # one inside a hole of the other
    ],
)
@pytest.mark.parametrize("slit", [False, True])
def test_polygons_have_neither_holes_nor_overlaps(rows, slit):
    mask = _large(rows)
    if slit:  # one cell wide: no hole any more, but its outline runs along both sides of the slit
        mask[:, 17] = 0
    polygons = mask_to_polygons(mask, offset=(0, 0), scale=1.0, least_area=1.0)
    count = np.zeros(mask.shape, int)
    for polygon in polygons:
        filled = np.zeros(mask.shape, np.uint8)
        ring = np.round((np.reshape(polygon, (-1, 2)) - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(filled, [ring], 1, cv2.LINE_8, 4)
        count += filled
    kernel = np.ones((3, 3), np.uint8)
    inside = cv2.erode(mask, kernel, borderValue=0) > 0
    closed = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel)  # a slit may stay open or be closed
    outside = cv2.dilate(closed, kernel) == 0
    assert (count[inside] >= 1).all() and not count[outside].any()
    area = sum(cv2.contourArea(np.float32(p).reshape(-1, 2)) for p in polygons)
    assert 0.99 * mask.sum() <= area <= 1.01 * closed.sum()


def test_small_parts_are_left_out_but_not_the_only_one():
    two = ["######.....", "######.....", "######...##", "######...##"]
    mask = np.array([[c == "#" for c in row] for row in two], np.uint8)
    assert len(mask_to_polygons(mask, offset=(0, 0), scale=1.0, least_area=5.0)) == 1
    assert len(mask_to_polygons(mask, offset=(0, 0), scale=1.0, least_area=4.0)) == 2
    for tiny in (np.ones((1, 1), np.uint8), np.ones((1, 9), np.uint8)):
        (polygon,) = mask_to_polygons(tiny, offset=(0, 0), scale=1.0, least_area=100.0)
        assert cv2.contourArea(np.float32(polygon).reshape(-1, 2)) == tiny.size
    with pytest.raises(ValueError, match="empty"):
        mask_to_polygons(np.zeros((4, 4), np.uint8), offset=(0, 0), scale=1.0, least_area=1.0)


# ------------------------------------------------------------------ classes and plan


def test_catalogue_is_a_prefix_of_itself_distinct_and_of_unit_size():
    everything = catalogue.shape_classes(catalogue.MAX_CLASSES)
    assert len({c.name for c in everything}) == len({c.synset for c in everything}) == 1203
    forty = catalogue.shape_classes(40)
    assert [c.name for c in forty] == [c.name for c in everything[:40]]
    for c in everything[::7]:
        x, y = c.contour.T
        area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
        diameter = np.sqrt(((c.contour[:, None] - c.contour[None]) ** 2).sum(-1).max())
        assert diameter * np.sqrt(4 * area / np.pi) == pytest.approx(1, rel=1e-3)
        assert not contours.has_hairs(c.contour)

    def nearest(classes) -> float:
        table = np.stack([catalogue.descriptor(c.contour) for c in classes]).astype(float)
        squares = (table**2).sum(1)
        distances = squares[:, None] + squares - 2 * table @ table.T
        return float(np.sqrt((distances + 1e12 * np.eye(len(table))).min()))

    assert nearest(forty) > 400
    assert nearest(everything[:200]) > 250
    assert nearest(everything) > 100
    alike = catalogue.shape_classes(40, lookalikes=True)
    assert len({c.name for c in alike}) == 40
    assert 100 < nearest(alike) < 300
    with pytest.raises(ValueError, match="1204"):
        catalogue.shape_classes(1204)


def test_descriptor_ignores_rotation_and_reflection():
    shapes = [c.contour for c in catalogue.shape_classes(40)]
    for contour in shapes:
        base = catalogue.descriptor(contour).astype(float)
        for angle, flip in ((0.7, 1), (2.0, -1)):
            matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([1, flip])
            turned = catalogue.descriptor(contour @ matrix.T).astype(float)
            assert np.linalg.norm(turned - base) < 100  # these classes are over 400 apart


@pytest.mark.parametrize("num_classes,num_images", [(20, 400), (40, 3000), (1203, 900)])
def test_plans_hold_exactly_the_counts(num_classes, num_images):
    for counts in (
        plan.long_tail_counts(num_classes=num_classes, num_images=num_images),
        plan.balanced_counts(num_classes=num_classes, num_images=num_images),
    ):
        table = plan.spread(np.random.default_rng(1), counts=counts, num_images=num_images)
        np.testing.assert_array_equal(table.sum(0), counts)
        sizes = table.sum(1)
        assert sizes.min() >= 1 and sizes.max() <= plan.MAX_CLASSES_PER_IMAGE
        assert counts.min() >= 1 and counts.max() <= 0.9 * num_images


def test_with_all_lvis_classes_and_images_the_counts_are_those_of_lvis():
    counts = plan.long_tail_counts(num_classes=1203, num_images=99388)
    np.testing.assert_array_equal(counts, plan.lvis_image_counts())
    assert counts.sum() == 360952
    letters = [frequency_letter(int(c)) for c in counts]
    assert [letters.count(x) for x in "rcf"] == [337, 461, 405]


def test_a_full_plan_still_fits():
    counts = np.full(14, 5)  # 70 incidences fill 10 images of 7 to the brim
    table = plan.spread(np.random.default_rng(0), counts=counts, num_images=10)
    assert (table.sum(1) == 7).all() and (table.sum(0) == 5).all()
    with pytest.raises(ValueError, match="val_images=10 images cannot hold 100 classes"):
        plan.balanced_counts(num_classes=100, num_images=10)


@pytest.mark.parametrize("version", ["v1", "v0.5"])
def test_packaged_lvis_counts_add_up(version):
    path = Path(plan.__file__).parents[1] / "counts" / f"lvis_{version}.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    assert table["columns"] == ["id", "name", "synset", "frequency", "image_count", "instance_count"]
    rows = table["categories"]
    assert [row[0] for row in rows] == list(range(1, table["totals"]["categories"] + 1))
    assert {x: sum(row[3] == x for row in rows) for x in "rcf"} == table["totals"]["by_frequency"]
    assert sum(row[4] for row in rows) == table["totals"]["image_count"]
    assert sum(row[5] for row in rows) == table["totals"]["instance_count"]
    assert "CC BY 4.0" in table["attribution"]


# ------------------------------------------------------------------ making it once
