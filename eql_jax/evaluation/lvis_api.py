"""The official LVIS API (PyPI `lvis` 0.5.3), imported so that it works here and changes nothing for anyone else.

Four things stand in the way of a plain `import lvis`:

* `lvis.eval` uses `np.float`, which NumPy removed in 1.24. The name `np` inside that one module is bound to a proxy
  that has it; NumPy itself is untouched.
* `lvis.vis` imports OpenCV for drawing, and OpenCV needs libGL, which slim images lack. When that import fails, a
  stand-in takes its place for the time of the import; evaluation never calls it.
* the import calls `logging.basicConfig`, which gives the root logger a handler. It is taken away again.
* results that are empty, or a limit of none an image, crash `LVISResults`. `make_results` gives an object without
  detections instead.

The import takes a second (it draws in matplotlib), so it happens on the first call of `load`, not with this module.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class LvisApi(NamedTuple):
    """The three classes of the official package that evaluation needs."""

    LVIS: type
    LVISResults: type
    LVISEval: type


class _NumpyWithFloat:
    """NumPy, plus the alias `float` that NumPy 1.24 removed."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


class _OpenCVStandIn(types.ModuleType):
    """Stands in for `cv2` while `lvis` is imported; any use says why the real one is missing."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("cv2")
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by the import system and by inspection, not by users
            raise AttributeError(name)
        raise ImportError(
            f"cv2.{name}: OpenCV could not be imported ({self._error}). Only the drawing functions of `lvis` need it: "
            "install opencv-python-headless, or the system library it misses (for libGL: apt-get install libgl1)."
        )


@contextlib.contextmanager
def _root_logger_unchanged() -> Iterator[None]:
    """Undoes what `logging.basicConfig` does to the root logger: its handlers and its level."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in [h for h in root.handlers if h not in handlers]:
            root.removeHandler(handler)
        root.setLevel(level)


def _import_lvis() -> types.ModuleType:
    try:
        return importlib.import_module("lvis")
    except ModuleNotFoundError as error:
        if error.name == "lvis":
            raise ImportError(
                "Evaluation needs the official LVIS package, which is not installed: pip install lvis==0.5.3"
            ) from error
        if error.name != "cv2":
            raise
        cause: BaseException = error
    except (ImportError, OSError) as error:  # cv2 is there but a shared library it links to is not
        cause = error
    with contextlib.suppress(ImportError, OSError):
        importlib.import_module("cv2")
        raise cause  # OpenCV is fine, so the failure was something else
    sys.modules["cv2"] = _OpenCVStandIn(cause)
    try:
        return importlib.import_module("lvis")
    finally:
        del sys.modules["cv2"]  # whoever imports cv2 next gets the real error


@functools.cache
def load() -> LvisApi:
    """Imports the official package once.

    Raises:
      ImportError: `lvis` is not installed; the message says how to install it.
    """
    with _root_logger_unchanged():
        lvis = _import_lvis()
        evaluation = importlib.import_module("lvis.eval")
    if not isinstance(evaluation.np, _NumpyWithFloat):
        evaluation.np = _NumpyWithFloat()
    return LvisApi(lvis.LVIS, lvis.LVISResults, lvis.LVISEval)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the package's notice about results that are passed in memory (it goes through `Logger.warn`)."""
    logger = logging.getLogger("lvis.results")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def make_ground_truth(dataset: dict[str, Any]) -> Any:
    """Wraps a data set that is already in memory, in LVIS JSON format, as the official `LVIS` object.

    The evaluation writes into the annotation dicts (keys `ignore`, `_ignore`, `segmentation`): pass copies.
    """
    api = load()
    ground_truth = api.LVIS.__new__(api.LVIS)
    ground_truth.logger = logging.getLogger("lvis.lvis")
    ground_truth.dataset = dataset
    ground_truth._create_index()
    return ground_truth


def make_results(ground_truth: Any, results: list[dict[str, Any]], *, max_detections: int) -> Any:
    """The official `LVISResults` of `results`, also where there are none.

    Args:
      ground_truth: what `make_ground_truth` returned; only its images and categories are used.
      results: LVIS result dicts; keys `id` and `area`, and `bbox` or `segmentation` where missing, are added to them.
      max_detections: the best so many of every image are kept, over all classes; -1 keeps all.
    """
    api = load()
    # The package copies the whole data set to replace its annotations; an empty list makes that copy cheap.
    shell = make_ground_truth({**ground_truth.dataset, "annotations": []})
    if not results or not max_detections:
        empty = api.LVISResults.__new__(api.LVISResults)
        empty.logger, empty.dataset = shell.logger, shell.dataset
        empty._create_index()
        return empty
    with _quiet():
        return api.LVISResults(shell, results, max_dets=max_detections)
