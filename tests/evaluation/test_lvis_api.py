"""The official package works, and importing it leaves no trace in NumPy, in logging or in what is imported."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from eql_jax.evaluation import lvis_api

ROOT = Path(__file__).parents[2]


def run(code):
    """Runs code in a new interpreter, where nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_numpy_and_the_root_logger_are_left_alone():
    out = run(
        """
import logging, sys
import eql_jax.evaluation
assert not {"lvis", "cv2", "matplotlib"} & set(sys.modules), "importing the evaluation must not import the package"
root = logging.getLogger()
root.setLevel(logging.INFO)
assert root.handlers == []
from eql_jax.evaluation import lvis_api
api = lvis_api.load()
assert root.handlers == [] and root.level == logging.INFO
import numpy, lvis, lvis.eval
assert not hasattr(numpy, "float")
assert lvis.eval.np.float is float and lvis.eval.np.zeros is numpy.zeros
assert lvis_api.load() is api
print(api.LVISEval.__module__)
"""
    )
    assert out.strip() == "lvis.eval"


def test_a_handler_that_was_there_stays():
    run(
        """
import logging
root = logging.getLogger()
handler = logging.NullHandler()
root.addHandler(handler)
from eql_jax.evaluation import lvis_api
lvis_api.load()
assert root.handlers == [handler] and root.level == logging.WARNING
"""
    )


def test_opencv_without_libgl():
    out = run(
        """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
sys.meta_path.insert(0, Broken())
from eql_jax.evaluation import lvis_api
api = lvis_api.load()
assert "cv2" not in sys.modules, "the stand-in must not be found by others"
import lvis.vis
try:
    lvis.vis.cv2.findContours
except ImportError as error:
    print(error)
"""
    )
    assert "libGL.so.1" in out and "apt-get install libgl1" in out


def test_opencv_not_installed():
    run(
        """
import sys
sys.modules["cv2"] = None  # import cv2 then raises ModuleNotFoundError
from eql_jax.evaluation import lvis_api
lvis_api.load()
"""
    )


def test_package_missing_says_what_to_install():
    out = run(
        """
import sys
sys.modules["lvis"] = None
from eql_jax.evaluation import lvis_api
try:
    lvis_api.load()
except ImportError as error:
    print(error)
"""
    )
    assert "pip install lvis==0.5.3" in out


def test_in_memory_results_and_none_at_all():
    dataset = {
        "images": [{"id": 1, "height": 10, "width": 10, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16}],
        "categories": [{"id": 1, "name": "a", "frequency": "r"}],
    }
    truth = lvis_api.make_ground_truth(dataset)
    one = lvis_api.make_results(
        truth, [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 4, 4]}], max_detections=300
    )
    assert len(one.dataset["annotations"]) == 1 and one.dataset["annotations"][0]["area"] == 16
    none = lvis_api.make_results(truth, [], max_detections=300)
    assert none.get_ann_ids(img_ids=[1]) == [] and none.get_img_ids() == [1]
    assert len(truth.dataset["annotations"]) == 1
    assert not hasattr(np, "float")
