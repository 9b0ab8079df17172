"""Tables of Open Images to an annotation file: worked by hand, with faulty lines of every kind."""

import csv
import gzip
import json

import numpy as np
import pytest
from PIL import Image

from eql_jax.data import open_images_csv, open_images_file
from eql_jax.data.annotations import load_annotations
from eql_jax.data.categories import class_statistics
from eql_jax.data.open_images import convert, find_images, image_number, main
from eql_jax.data.validation import AnnotationError
from eql_jax.evaluation import evaluate

HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
CLASSES = '/m/pet,Pet\n/m/cat,Cat\n/m/dog,"Dog, any"\n/m/car,Car\n'
# Animal is no class; Kitten is below Cat; Car has two parents, of which one is a class.
HIERARCHY = {
    "LabelName": "/m/entity",
    "Subcategory": [
        {
            "LabelName": "/m/animal",
            "Subcategory": [
                {
                    "LabelName": "/m/pet",
                    "Subcategory": [
                        {"LabelName": "/m/cat", "Subcategory": [{"LabelName": "/m/kitten"}]},
                        {"LabelName": "/m/dog", "Part": [{"LabelName": "/m/car"}]},
                    ],
                }
            ],
        },
        {"LabelName": "/m/car"},
    ],
}
A, B, C = "000000000000000a", "00000000000000b0", "1230000000000c00"


def box(image, label, x1, x2, y1, y2, group=0):
    return f"{image},xclick,{label},1,{x1},{x2},{y1},{y2},0,0,{group},0,0"


class Tables:
    """Files of a data set in a folder; `convert` makes the annotation file and reads it."""

    def __init__(self, folder):
        self.folder = folder
        self.write("classes.csv", CLASSES)
        self.write("sizes.csv", f"ImageID,Width,Height\n{A},100,200\n{B},640,480\n{C},50,50\n")
        self.write("hierarchy.json", json.dumps(HIERARCHY))

    def write(self, name, text):
        (self.folder / name).write_text(text)
        return self.folder / name

    def boxes(self, *lines, head=HEAD):
        return self.write("boxes.csv", "\n".join([head, *lines]) + "\n")

    def labels(self, *lines):
        return self.write("labels.csv", "\n".join(["ImageID,Source,LabelName,Confidence", *lines]) + "\n")

    def convert(self, **options):
        options = {"sizes": self.folder / "sizes.csv"} | options
        out = self.folder / "out.json"
        made = convert(self.folder / "boxes.csv", self.folder / "classes.csv", out, **options)
        return made, json.loads(out.read_text())


@pytest.fixture
def tables(tmp_path):
    return Tables(tmp_path)


def summary(content):
    return [(a["image_id"], a["category_id"], a["bbox"], a["iscrowd"]) for a in content["annotations"]]


def test_by_hand(tables):
    tables.boxes(
        box(B, "/m/car", 0.25, 0.5, 0, 0.5),
        box(A, "/m/cat", 0.1, 0.2, 0.3, 0.4, group=1),
        box(A, "/m/dog", 0.123456, 0.9, 0.5, 1),
        box(B, "/m/cat", 0, 1, 0, 1, group=-1),
    )
    made, content = tables.convert()
    assert (made.images, made.boxes, made.groups, made.report.total) == (2, 4, 1, 0)
    # Images in the order of the boxes, boxes by image.
    assert content["images"] == [
        {"id": 0xB0, "width": 640, "height": 480, "file_name": f"{B}.jpg"}
        | {"neg_category_ids": [], "not_exhaustive_category_ids": []},
        {"id": 0xA, "width": 100, "height": 200, "file_name": f"{A}.jpg"}
        | {"neg_category_ids": [], "not_exhaustive_category_ids": []},
    ]
    assert summary(content) == [
        (0xB0, 4, [160, 0, 160, 240], 0),
        (0xB0, 2, [0, 0, 640, 480], 0),
        (0xA, 2, [10, 60, 10, 20], 1),
        (0xA, 3, [12.35, 100, 77.65, 100], 0),
    ]
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3, 4]
    assert [a["area"] for a in content["annotations"]] == [38400, 307200, 200, 7765]
    assert content["categories"][2] == {"id": 3, "name": "Dog, any", "synset": "/m/dog"} | {
        "image_count": 1,
        "instance_count": 1,
    }
    assert [c["image_count"] for c in content["categories"]] == [0, 1, 1, 1], "groups aside"


def test_image_numbers():
    assert image_number("0001eeaf4aed83f9") == 0x1EEAF4AED83F9 < 2**52
    assert image_number("fff1eeaf4aed83f9") == image_number("0001eeaf4aed83f9")  # reported where it happens
    named = image_number("my picture")
    assert 0 <= named < 2**52 and named == image_number("my picture") != image_number("my picture 2")


def test_boxes_of_the_hierarchy(tables):
    """A kitten, which is no class, is a cat and a pet; parts are no subcategories; a repeated box counts once."""
    tables.boxes(
        box(A, "/m/kitten", 0.1, 0.2, 0.3, 0.4),
        box(A, "/m/dog", 0.5, 0.6, 0.3, 0.4, group=1),
        box(A, "/m/pet", 0.5, 0.6, 0.3, 0.4, group=1),  # as the line before says already
        box(A, "/m/pet", 0.5, 0.6, 0.3, 0.4),  # no group: another one
        box(A, "/m/car", 0.5, 0.6, 0.3, 0.4),
        box(A, "/m/animal", 0.5, 0.6, 0.3, 0.4),
    )
    made, content = tables.convert(hierarchy=tables.folder / "hierarchy.json")
    kitten, there = [10, 60, 10, 20], [50, 60, 10, 20]
    assert summary(content) == [
        (0xA, 2, kitten, 0),
        (0xA, 1, kitten, 0),
        (0xA, 3, there, 1),
        (0xA, 1, there, 1),
        (0xA, 1, there, 0),
        (0xA, 4, there, 0),
    ]
    assert made.report.counts == {"unknown label": 1, "duplicate box": 1}
    assert made.report.examples["duplicate box"][0].file.endswith("boxes.csv:4")
    made, content = tables.convert()
    assert [c for _, c, _, _ in summary(content)] == [3, 1, 1, 4]
    assert made.report.counts == {"unknown label": 2}


def test_expanding_twice_is_expanding_once(tables):
    lines = [box(A, "/m/cat", 0.1, 0.2, 0.3, 0.4), box(A, "/m/pet", 0.1, 0.2, 0.3, 0.4), box(B, "/m/pet", 0, 1, 0, 1)]
    tables.boxes(*lines)
    _, plain = tables.convert()
    made, again = tables.convert(hierarchy=tables.folder / "hierarchy.json")
    assert sorted(summary(plain)) == sorted(summary(again)) and made.boxes == 3
    # In the other order, what the hierarchy makes is the one that was there.
    tables.boxes(lines[1], lines[0])
    made, _ = tables.convert(hierarchy=tables.folder / "hierarchy.json")
    assert made.boxes == 2 and made.report.total == 0 and "that was there already" in made.report.summary()


def test_labels(tables):
    tables.boxes(box(A, "/m/cat", 0.1, 0.2, 0.3, 0.4), box(B, "/m/car", 0.1, 0.2, 0.3, 0.4, group=1))
    tables.labels(
        f"{A},verification,/m/dog,0",
        f"{A},verification,/m/dog,0",  # twice is once
        f"{A},verification,/m/cat,0",  # a box of it is there
        f"{A},verification,/m/car,1",  # present, and no box
        f"{A},machine,/m/pet,0.7",
        f"{A},verification,/m/unheard,0",
        f"{B},verification,/m/car,1",
        f"{C},verification,/m/pet,0.0",  # an image without a box
        "00000000000000ff,verification,/m/pet,0",  # nobody knows its size
        f"{C},verification,/m/pet,maybe",
    )
    made, content = tables.convert(labels=tables.folder / "labels.csv")
    lists = {i["id"]: (i["neg_category_ids"], i["not_exhaustive_category_ids"]) for i in content["images"]}
    assert lists == {0xA: ([3], [4]), 0xB0: ([], []), image_number(C): ([1], [])}
    assert made.images == 3 and made.report.counts == {"bad line": 1}
    assert sorted(made.report.notes.values()) == [1, 1, 1, 1]
    # With the hierarchy, without a pet there is no cat and no dog, and a car is nothing else.
    _, content = tables.convert(labels=tables.folder / "labels.csv", hierarchy=tables.folder / "hierarchy.json")
    lists = {i["id"]: (i["neg_category_ids"], i["not_exhaustive_category_ids"]) for i in content["images"]}
    assert lists == {0xA: ([3], [4]), 0xB0: ([], []), image_number(C): ([1, 2, 3], [])}


FAULTS = {
    "bad line": [
        f"{A},xclick,/m/cat,1,0.1,0.2",
        box(A, "/m/cat", "x", 0.2, 0.3, 0.4),
        box(A, "/m/cat", "nan", 0.2, 0.3, 0.4),
        box(A, "/m/cat", 0.1, "inf", 0.3, 0.4),
        box(A, "/m/cat", "", 0.2, 0.3, 0.4),
        box(A, "/m/cat", 0.1, 0.2, 0.3, 0.4) + ",9",
        "x" * 140_000,
    ],
    "degenerate box": [
        box(A, "/m/cat", 0.2, 0.1, 0.3, 0.4),
        box(A, "/m/cat", 0.1, 0.2, 0.4, 0.4),
        box(A, "/m/cat", 0.1, 0.10002, 0.3, 0.4),  # two thousandths of a pixel
    ],
    "box outside": [box(A, "/m/cat", 1.1, 1.2, 0.3, 0.4), box(A, "/m/cat", -0.2, 0, 0.3, 0.4)],
    "unknown label": [box(A, "/m/unheard", 0.1, 0.2, 0.3, 0.4), box(A, "cat", 0.1, 0.2, 0.3, 0.4)],
    "image without size": [box("00000000000000ff", "/m/cat", 0.1, 0.2, 0.3, 0.4)],
    "duplicate image id": [box("f00000000000000a", "/m/cat", 0.1, 0.2, 0.3, 0.4)],
    "duplicate box": [box(A, "/m/cat", 0.5, 0.6, 0.5, 0.6), box(A, "/m/cat", "0.50", 0.600001, 0.5, 0.6)],
    "box partly outside": [],
}


@pytest.mark.parametrize("block", [1, 3, 1 << 16])
def test_faulty_lines_are_named_and_the_rest_goes_on(tables, monkeypatch, block):
    monkeypatch.setattr(open_images_csv, "_BLOCK", block)
    monkeypatch.setattr(open_images_file, "_BLOCK", block)
    sound = [box(A, "/m/cat", 0.5, 0.6, 0.5, 0.6), box(A, "/m/cat", -0.0005, 0.5, 0.7, 0.8)]
    clipped = box(A, "/m/dog", -0.2, 0.5, 0.3, 1.2)
    faulty = [line for lines in FAULTS.values() for line in lines]
    tables.boxes(*sound, *faulty, "", clipped)
    made, content = tables.convert()
    expected = {kind: len(lines) for kind, lines in FAULTS.items()} | {"box partly outside": 1}
    assert made.report.counts == expected
    assert [a[2] for a in summary(content)] == [[50, 100, 10, 20], [0, 140, 50, 20], [0, 60, 50, 140]]
    first = {kind: faulty.index(lines[0]) + 4 for kind, lines in FAULTS.items() if lines}
    first["box partly outside"] = len(faulty) + 5
    for kind, number in first.items():
        if kind not in ("image without size", "duplicate image id"):  # of the image, not of a line
            assert made.report.examples[kind][0].file == f"{tables.folder / 'boxes.csv'}:{number}", kind
    assert "boxes.csv:4, id " in made.report.summary()


def test_columns_of_other_versions(tables):
    """Challenge files of the object detection API have seven columns, in another order; V7's class file has a head."""
    tables.boxes(f"{A},/m/cat,0.1,0.2,0.3,0.4,1", head="ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf")
    tables.write("classes.csv", "LabelName,DisplayName\n" + CLASSES)
    assert summary(tables.convert()[1]) == [(0xA, 2, [10, 60, 10, 20], 1)]
    tables.boxes(f"0.4,0.1,0.3,{A},0.2,/m/cat", head="YMax, XMin, YMin, ImageID, XMax, LabelName")
    assert summary(tables.convert()[1]) == [(0xA, 2, [10, 60, 10, 20], 0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.boxes("x", head="ImageID,LabelName"), "boxes.csv has no column XMin, XMax, YMin, YMax: its first"),
        (lambda t: t.write("boxes.csv", ""), "has no column ImageID"),
        (lambda t: t.boxes(), "no box of .* can be used"),
        (lambda t: t.write("classes.csv", "\n"), "classes.csv has no class"),
        (lambda t: t.write("classes.csv", "/m/a,A\n/m/a,B\n"), "classes.csv:2: label /m/a comes twice"),
        (lambda t: t.write("classes.csv", "/m/a\n"), "classes.csv:1: found .* expected a label and a name"),
        (lambda t: t.write("classes.csv", '"' + "x" * 140_000), "classes.csv is no CSV"),
        (lambda t: t.write("hierarchy.json", "[]"), "is no hierarchy of labels"),
        (lambda t: t.write("hierarchy.json", '{"categories": []}'), "is no hierarchy of labels"),
        (lambda t: t.write("hierarchy.json", '{"Subcategory": [{"Name": 3}]}'), "is no hierarchy of labels"),
        (lambda t: (t.folder / "boxes.csv").write_bytes(gzip.compress(b"x" * 9)[:-9]), "damaged gzip file"),
        (lambda t: t.write("sizes.csv", "ImageID,Width\n"), "sizes.csv has no column Height"),
    ],
)
def test_files_that_cannot_be_used(tables, change, message):
    tables.boxes(box(A, "/m/cat", 0.1, 0.2, 0.3, 0.4))
    change(tables)
    with pytest.raises(AnnotationError, match=message):
        tables.convert(hierarchy=tables.folder / "hierarchy.json")
    assert not (tables.folder / "out.json").exists()


def test_sizes_that_are_none(tables):
    tables.boxes(box(A, "/m/cat", 0.1, 0.2, 0.3, 0.4), box(B, "/m/cat", 0.1, 0.2, 0.3, 0.4))
    tables.write("sizes.csv", f"ImageID,Width,Height\n{A},0,5\n{A},1e3,5\n{B},5,-5\n{B},640,480\n")
    made, content = tables.convert()
    assert [image["id"] for image in content["images"]] == [0xB0]
    assert made.report.counts == {"bad line": 3, "image without size": 1}


def test_images_of_a_folder(tables, tmp_path, capsys):
    """Sizes from the files, in folders too; what is missing or damaged is left out with its boxes."""
    folder = tmp_path / "pictures"
    (folder / "train_a").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / f"{A}.jpg")
    Image.new("RGB", (16, 64)).save(folder / "train_a" / f"{B}.png")
    (folder / f"{C}.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("")
    tables.boxes(*(box(image, "/m/cat", 0.25, 0.5, 0, 0.5) for image in (A, B, C, "00000000000000ff")))
    tables.labels(f"{A},verification,/m/dog,0")
    out = tmp_path / "train.json.gz"
    words = ["--boxes", "boxes.csv", "--classes", "classes.csv", "--labels", "labels.csv"]
    words = [str(tmp_path / word) if word.endswith(".csv") else word for word in words]
    assert main([*words, "--images", str(folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 images, 2 boxes, 0 of them groups" in printed
    assert "1 x missing image" in printed and "1 x unreadable image" in printed
    content = json.loads(gzip.decompress(out.read_bytes()))
    assert [i["file_name"] for i in content["images"]] == [f"{A}.jpg", f"train_a/{B}.png"]
    assert [a[2] for a in summary(content)] == [[10, 0, 10, 15], [4, 0, 4, 32]]
    # What was written is a data set here, and an evaluation of its own boxes is perfect.
    annotations = load_annotations(out, folder, masks=False)
    assert annotations.report.total == 0 and [image.width for image in annotations.images] == [40, 16]
    assert annotations.images[0].neg_classes.tolist() == [2]
    results = [a | {"score": 0.9} for a in content["annotations"]]
    assert evaluate(out, results, iou_types=["bbox"]).metrics["bbox"]["AP"] == pytest.approx(1)
    first = out.read_bytes()
    assert main([*words, "--images", str(folder), "--out", str(out)]) == 0
    assert out.read_bytes() == first, "the same files give the same bytes"
    with pytest.raises(FileNotFoundError):
        find_images(folder / "none")


def test_the_command_says_what_is_wrong(tables, capsys):
    words = [f"--boxes={tables.folder / 'none.csv'}", f"--classes={tables.folder / 'classes.csv'}"]
    out = f"--out={tables.folder / 'out.json'}"
    with pytest.raises(SystemExit):
        main([*words, out])
    assert main([*words, out, f"--sizes={tables.folder / 'sizes.csv'}"]) == 2
    assert "none.csv does not exist" in capsys.readouterr().err


def test_groups_and_negatives_in_the_data_set(tables, tmp_path):
    """Groups are ignore regions of training and no images of their class; statistics count what the file counts."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (100, 200)).save(tmp_path / "pictures" / f"{A}.jpg")
    tables.boxes(box(A, "/m/cat", 0.1, 0.2, 0.3, 0.4, group=1), box(A, "/m/dog", 0.1, 0.2, 0.3, 0.4))
    made, content = tables.convert(images=tmp_path / "pictures")
    annotations = load_annotations(tmp_path / "out.json", tmp_path / "pictures", masks=False)
    assert annotations.images[0].objects.ignore.tolist() == [True, False]
    statistics = class_statistics(annotations, "train_annotations")
    assert statistics.image_counts.tolist() == [c["image_count"] for c in content["categories"]] == [0, 0, 1, 0]
    assert statistics.num_images == made.images == 1


def test_many_lines_against_plain_python(tables):
    """2,000 random boxes on 3 images, converted line by line with the csv module, and repeated boxes by comparison."""
    rng = np.random.default_rng(5)
    lines = []
    for _ in range(2000):
        x, y = np.sort(rng.integers(0, 9, 2)) / 8, np.sort(rng.integers(0, 9, 2)) / 8
        label = ["/m/pet", "/m/cat", "/m/dog", "/m/car", "/m/kitten"][rng.integers(5)]
        lines.append(box([A, B, C][rng.integers(3)], label, *x, *y, group=int(rng.random() < 0.2)))
    path = tables.boxes(*lines)
    made, content = tables.convert(hierarchy=tables.folder / "hierarchy.json")
    sizes = {A: (100, 200), B: (640, 480), C: (50, 50)}
    targets = {"/m/pet": (1,), "/m/cat": (2, 1), "/m/dog": (3, 1), "/m/car": (4,), "/m/kitten": (2, 1)}
    expected = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            width, height = sizes[row["ImageID"]]
            x1, x2 = (float(row[key]) * width for key in ("XMin", "XMax"))
            y1, y2 = (float(row[key]) * height for key in ("YMin", "YMax"))
            if x1 < x2 and y1 < y2:
                for category in targets[row["LabelName"]]:
                    corners = (x1, y1, round(x2 - x1, 2), round(y2 - y1, 2))
                    expected[image_number(row["ImageID"]), category, corners, int(row["IsGroupOf"])] = True
    found = [(i, c, tuple(b), g) for i, c, b, g in summary(content)]
    assert len(found) == len(set(found)) == made.boxes
    assert set(found) == set(expected)
    by_image = {}
    for key in expected:  # in the order of the file within an image
        by_image.setdefault(key[0], []).append(key)
    assert found == [key for keys in by_image.values() for key in keys]
