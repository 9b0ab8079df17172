"""An exported detector, loaded where only jax, numpy and flatbuffers can be imported, against the detector here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from eql_jax.data.buckets import choose_bucket
from eql_jax.data.transforms import Size, fit_size, output_size
from eql_jax.evaluation import detections_to_results, paste
from eql_jax.ops import resize_images
from eql_jax.serving import ServingError, load_serving
from eql_jax.serving import __main__ as command
from eql_jax.serving.export import export_serving
from eql_jax.serving.function import make_serving_function
from eql_jax.training import inference_model
from tests.serving.tiny import CANVAS, CLASSES, FILES, SIZE, tiny_config, tiny_images, tiny_model

PACKAGE = Path(__file__).parents[2] / "eql_jax" / "serving"
BATCH = 2
# Compiles in half the time, and gives the same numbers here and there.
UNOPTIMIZED = {"xla_backend_optimization_level": 0}

# Run with -I in a folder that holds copies of two modules and nothing else of this package.
ELSEWHERE = """
import sys
FOLDER, IMAGES, OUT = sys.argv[1:]

class Refuse:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in {"eql_jax", "flax", "optax", "orbax", "tensorflow", "ml_collections", "PIL", "pycocotools", "absl"}:
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, FOLDER)
import numpy as np
import loader, rle

with np.load(IMAGES) as file:
    images = [file[name] for name in file.files]
detector = loader.load_serving(FOLDER + "/served")
batch = detector.prepare(images)
found = {name: np.asarray(array) for name, array in detector(*batch).items()}
rles = [rle.bits_to_rles(bits, size=size) for bits, size in zip(found["masks"], batch.original_size)]
counts = np.array([[r["counts"] for r in one] for one in rles])
np.savez(OUT, counts=counts, category_ids=detector.category_ids, image_size=batch.image_size, **found)
"""


@pytest.fixture(scope="module")
def detector():
    """config, model and variables."""
    config = tiny_config()
    return config, *tiny_model(config)


@pytest.fixture(scope="module")
def folder(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "served"
    config, model, variables = detector
    export_serving(
        folder,
        model,
        config,
        variables,
        CLASSES,
        image_size=SIZE,
        canvas_size=CANVAS,
        batch=BATCH,
        platforms=("cpu", "tpu"),
        paste_chunk=6,
        step=7,
    )
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.slow
def test_equals_the_detector_in_another_process(detector, folder, tmp_path):
    for module in ("loader.py", "rle.py"):
        shutil.copy(PACKAGE / module, folder.parent)
    np.savez(tmp_path / "images.npz", *tiny_images())
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), *(f"--{k}={v}" for k, v in UNOPTIMIZED.items())])
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, folder.parent, tmp_path / "images.npz", tmp_path / "found.npz"],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as file:
        served = dict(file.items())

    # The detector as evaluation has it, on images resized by the same rule, with masks pasted on the host.
    config, model, variables = detector
    canvas = np.zeros((BATCH, *CANVAS, 3), np.uint8)
    for row, image in enumerate(tiny_images()):
        canvas[row, : image.shape[0], : image.shape[1]] = image
    sizes = np.array(
        [fit_size(output_size(*s, shorter_side=48, longest_side=64), Size(*SIZE)) for s in FILES], np.int32
    )
    np.testing.assert_array_equal(served["image_size"], sizes)

    def detect(variables, image, file_size, image_size):
        image = resize_images(image, file_size, image_size, canvas_size=SIZE)
        return model.apply(variables, image, image_size, method="detect")

    arguments = variables, canvas, np.array(FILES, np.int32), sizes
    found = jax.jit(detect, compiler_options=UNOPTIMIZED)(*arguments)._asdict()
    found = {name: np.asarray(array) for name, array in found.items()}
    batch = {"image_id": np.arange(BATCH), "image_size": sizes, "original_size": np.array(FILES)}
    results = detections_to_results(found, batch, CLASSES.ids)

    np.testing.assert_array_equal(served["exact"], found["exact"])
    assert not (served["scores"][served["classes"] < 0]).any()
    assert len({result["category_id"] for result in results}) > 1 and len(results) > 15
    place = 0
    for row in range(BATCH):
        boxes = paste.scale_boxes(found["boxes"][row], from_size=sizes[row], to_size=FILES[row])
        np.testing.assert_array_equal(boxes.index, np.flatnonzero(served["classes"][row] >= 0))
        np.testing.assert_array_equal(boxes.boxes, served["boxes"][row, boxes.index])
        for i in np.flatnonzero(served["classes"][row] >= 0):
            result, place = results[place], place + 1
            assert result["image_id"] == row
            assert result["category_id"] == served["category_ids"][served["classes"][row, i]]
            assert np.float32(result["score"]) == served["scores"][row, i]
            assert result["segmentation"]["counts"] == served["counts"][row, i], (row, i)
    assert place == len(results)
    assert len(set(served["counts"].ravel())) > 12  # masks of many shapes


def test_the_folder_describes_itself(folder):
    description = json.loads((folder / "serving.json").read_text())
    assert sorted(p.name for p in folder.iterdir()) == [
        "serving.cpu.stablehlo",
        "serving.json",
        "serving.tpu.stablehlo",
        "weights.npz",
    ]
    assert description["step"] == 7 and description["candidates"] == 48
    assert description["categories"][1] == {"id": 5, "name": "dog"}
    outputs = {o["name"]: (o["dtype"], o["shape"]) for o in description["outputs"]}
    assert outputs["masks"] == ("uint8", [2, 10, 90, 10]) and outputs["boxes"] == ("float32", [2, 10, 4])
    assert description["inputs"][0] == {"name": "image", "dtype": "uint8", "shape": [2, 76, 90, 3]}
    # The weights are beside the programme, not in it.
    assert (folder / "serving.cpu.stablehlo").stat().st_size < 300_000


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (333, 500), (37, 51), (1, 90), (600, 600)])
def test_sizes_are_those_of_evaluation(folder, size):
    limits = {"shorter_side": 48, "longest_side": 64}
    expected = fit_size(output_size(*size, **limits), Size(*SIZE))
    assert load_serving(folder).resized_size(*size) == expected
    assert choose_bucket(*size, buckets=(Size(*SIZE),), **limits).fits  # the 64 x 64 of these tests
    served = load_serving(folder)
    served.image_size = (40, 64)
    assert served.resized_size(*size) == fit_size(output_size(*size, **limits), Size(40, 64))


def test_batches_are_checked(folder):
    served = load_serving(folder)
    image, image_size, original_size = served.prepare(tiny_images()[:1])
    assert original_size.tolist() == [[76, 90], [76, 90]] and not image[1].any()
    with pytest.raises(ServingError, match=r"image is uint8 \[1, 76, 90, 3\], expected uint8 \[2, 76, 90, 3\]"):
        served(image[:1], image_size, original_size)
    with pytest.raises(ServingError, match=r"image is float32"):
        served(image.astype(np.float32), image_size, original_size)
    with pytest.raises(ServingError, match=r"image_size is int32 \[1, 2\], expected integers \[2, 2\]"):
        served(image, image_size[:1], original_size)
    with pytest.raises(ServingError, match=r"original_size of image 1 is \[76, 91\].*at most \[76, 90\]"):
        served(image, image_size, original_size + np.array([[0, 0], [0, 1]]))
    with pytest.raises(ServingError, match=r"3 images, expected at most 2"):
        served.prepare([image[0]] * 3)
    with pytest.raises(ServingError, match=r"image 1 is uint8 \[77, 5, 3\].*at most 76 x 90"):
        served.prepare([image[0], np.zeros((77, 5, 3), np.uint8)])
    served.resizes = False
    with pytest.raises(ServingError, match="resized already"):
        served.prepare([])


def change(folder, **fields):
    path = folder / "serving.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_folders_are_checked(copy):
    with pytest.raises(ServingError, match="weights.npz does not belong.*found nothing, expected"):
        weights = dict(np.load(copy / "weights.npz").items())
        np.savez(copy / "weights.npz", **dict(list(weights.items())[1:]))
        load_serving(copy)
    (copy / "weights.npz").write_bytes(b"PK")
    with pytest.raises(ServingError, match="weights.npz cannot be read"):
        load_serving(copy)
    (copy / "serving.cpu.stablehlo").write_bytes(b"nothing")
    with pytest.raises(ServingError, match="serving.cpu.stablehlo cannot be read by jax"):
        load_serving(copy)
    (copy / "serving.cpu.stablehlo").unlink()
    with pytest.raises(ServingError, match="serving.cpu.stablehlo is missing"):
        load_serving(copy)
    change(copy, programs={"tpu": "serving.tpu.stablehlo"})
    with pytest.raises(ServingError, match="programmes for tpu, and this process runs on cpu"):
        load_serving(copy)
    change(copy, format=99)
    with pytest.raises(ServingError, match="format version 99, expected 1"):
        load_serving(copy)
    (copy / "serving.json").write_text("{}")
    with pytest.raises(ServingError, match="no description"):
        load_serving(copy)
    (copy / "serving.json").unlink()
    with pytest.raises(ServingError, match="serving.json is missing"):
        load_serving(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.with_mask": False},
        {"model.cascade.ious": (0.5, 0.6), "model.box_head.class_agnostic_boxes": True},
        {"model.architecture": "c4", "model.box_head.pool_size": 8, "model.rpn.anchor_sizes": (8, 24)},
    ],
)
def test_all_models_can_be_served(changes):
    """Shapes alone, of images that come resized."""
    config = tiny_config(**changes)
    model, variables = tiny_model(config)
    serve = make_serving_function(model, config, image_size=SIZE, canvas_size=CANVAS, resize=False)
    sizes = np.ones((3, 2), np.int32)
    shapes = jax.eval_shape(serve, variables, np.zeros((3, *SIZE, 3), np.uint8), sizes, sizes)
    assert shapes["boxes"].shape == (3, 10, 4)
    assert shapes["masks"].shape == (3, 10, 90, 10) if config.model.with_mask else "masks" not in shapes


def test_command(detector, tmp_path, monkeypatch, capsys):
    config, _, variables = detector
    loaded = inference_model.InferenceModel(config, CLASSES, variables["params"], variables["batch_stats"], 12)
    monkeypatch.setattr(inference_model, "load_for_inference", lambda path, checkpoint="best": loaded)
    arguments = ["--workdir=run", f"--out={tmp_path / 'out'}"]
    assert command.main([*arguments, "--canvas", "80", "100", "--candidates", "20", "--resized"]) == 0
    assert "step 12, batches of 1 images of up to 64 x 64" in capsys.readouterr().out
    served = load_serving(tmp_path / "out")
    assert served.description["candidates"] == 20 and served.canvas_size == (80, 100) and not served.resizes
    assert served.description["inputs"][0]["shape"] == [1, 64, 64, 3]
    for wrong, message in {
        ("--size", "60", "64"): "multiples of 32",
        ("--batch", "0"): "expected 1 or more",
        ("--candidates", "0"): "expected 1 or more",
        ("--platforms", "vpu"): "some of cpu, cuda",
        ("--mask_threshold", "0"): "above 0",
    }.items():
        assert command.main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err
