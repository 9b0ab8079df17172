"""Runs a detector that `python -m eql_jax.serving` has exported. Needs jax, numpy and flatbuffers; may be copied out.

Shapes: B images of a batch, H W padded size that the model sees, Hc Wc canvas that the image files fit on, D detections
of an image. Heights come before widths.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

FORMAT = 1
DESCRIPTION = "serving.json"


class ServingError(ValueError):
    """A folder that cannot be served from, or arrays that do not fit its programme; the message says what to do."""


class Batch(NamedTuple):
    """What a served detector takes: image uint8 [B,Hc,Wc,3] or [B,H,W,3], image_size and original_size int32 [B,2]."""

    image: np.ndarray
    image_size: np.ndarray
    original_size: np.ndarray


class ServedDetector:
    """A detector from a folder; made by `load_serving`, called with the arrays of a `Batch`.

    Attributes:
      description: the content of serving.json.
      batch: B.
      image_size: (H, W).
      canvas_size: (Hc, Wc).
      resizes: whether images come as they are in their files; else resized already, as `image_size` of a batch says.
      category_ids: int64 [K], the category id of each class; category_names: as many strings.
    """

    def __init__(self, description: dict[str, Any], call: Any, weights: dict[str, jax.Array]):
        self.description = description
        self.batch: int = description["batch"]
        self.image_size: tuple[int, int] = tuple(description["image_size"])
        self.canvas_size: tuple[int, int] = tuple(description["canvas_size"])
        self.resizes: bool = description["resize"]
        self.category_ids = np.array([c["id"] for c in description["categories"]], np.int64)
        self.category_names = [c["name"] for c in description["categories"]]
        self._call, self._weights = call, weights

    def __call__(self, image: Any, image_size: Any, original_size: Any) -> dict[str, jax.Array]:
        """Detects; returns at once, and the arrays are waited for where they are looked at.

        Args:
          image: uint8 RGB [B,Hc,Wc,3], or [B,H,W,3] if images come resized; each image at the top left.
          image_size: integers [B,2], what each image is, or is to be, resized to: at most (H, W); see `resized_size`.
          original_size: integers [B,2], size of each file: at most (Hc, Wc).

        Returns:
          By falling score: boxes float32 [B,D,4] XYXY in pixels of the file, scores float32 [B,D], classes int32 [B,D],
          masks uint8 [B,D,Wc,ceil(Hc/8)] (see `rle`; not there if the model has none) and exact bool [B]. Rows without
          a detection have score 0 and class -1.

        Raises:
          ServingError: shapes, dtypes or sizes are not those of the programme.
        """
        self._check(image, (self.batch, *self._input_canvas, 3), np.uint8)
        sizes = {"image_size": (image_size, self.image_size), "original_size": (original_size, self.canvas_size)}
        for name, (found, largest) in sizes.items():
            found = np.asarray(found)
            if found.shape != (self.batch, 2) or not np.issubdtype(found.dtype, np.integer):
                raise ServingError(
                    f"{name} is {found.dtype} {list(found.shape)}, expected integers [{self.batch}, 2], "
                    "(height, width) of each image"
                )
            if (found < 1).any() or (found > largest).any():
                row = int(np.flatnonzero(((found < 1) | (found > largest)).any(axis=1))[0])
                raise ServingError(
                    f"{name} of image {row} is {found[row].tolist()} (height, width), expected 1 or more and at most "
                    f"{list(largest)}; export with another --size or --canvas for larger images"
                )
        sizes = [np.asarray(s).astype(np.int32) for s in (image_size, original_size)]
        return self._call(self._weights, image, *sizes)

    def prepare(self, images: Sequence[np.ndarray]) -> Batch:
        """Images as they are in their files, uint8 RGB [h,w,3], at most B of them, as a batch.

        Rows past the last image are black; what is found in them means nothing.

        Raises:
          ServingError: the programme takes resized images, or an image does not fit.
        """
        if not self.resizes:
            raise ServingError(
                "this programme takes images that are resized already: fill a batch of uint8 "
                f"[{self.batch}, {self.image_size[0]}, {self.image_size[1]}, 3], or export without --resized"
            )
        if len(images) > self.batch:
            raise ServingError(f"{len(images)} images, expected at most {self.batch}, the batch of the programme")
        image = np.zeros((self.batch, *self.canvas_size, 3), np.uint8)
        original_size = np.tile(np.array(self.canvas_size, np.int32), (self.batch, 1))
        for row, pixels in enumerate(images):
            fits = pixels.ndim == 3 and all(1 <= s <= c for s, c in zip(pixels.shape, self.canvas_size, strict=False))
            if not fits or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
                raise ServingError(
                    f"image {row} is {pixels.dtype} {list(pixels.shape)}, expected uint8 [height, width, 3] of at most "
                    f"{self.canvas_size[0]} x {self.canvas_size[1]}; export with a larger --canvas for larger images"
                )
            image[row, : pixels.shape[0], : pixels.shape[1]] = pixels
            original_size[row] = pixels.shape[:2]
        image_size = np.array([self.resized_size(*size) for size in original_size.tolist()], np.int32)
        return Batch(image, image_size, original_size)

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image of this size is resized to, as the model was evaluated, so that it fits (H, W).

        The shorter side becomes description['shorter_side'], or the longer one description['longest_side'] if that is
        less; then, where it has to, it is scaled down.
        """
        shorter, longest = self.description["shorter_side"], self.description["longest_side"]
        scale = shorter / min(height, width)
        # The shorter side is set, not multiplied, as detectron2 does it.
        new = (shorter, scale * width) if height < width else (scale * height, shorter)
        if max(new) > longest:
            scale = longest / max(new)
            new = (new[0] * scale, new[1] * scale)
        new = tuple(max(1, int(side + 0.5)) for side in new)
        scale = min(self.image_size[0] / new[0], self.image_size[1] / new[1])
        return new if scale >= 1 else tuple(max(1, int(side * scale + 1e-6)) for side in new)

    @property
    def _input_canvas(self) -> tuple[int, int]:
        return self.canvas_size if self.resizes else self.image_size

    def _check(self, image: Any, shape: tuple[int, ...], dtype: Any) -> None:
        if tuple(np.shape(image)) != shape or image.dtype != dtype:
            kind = "as they are in their files" if self.resizes else "resized already"
            raise ServingError(
                f"image is {image.dtype} {list(np.shape(image))}, expected {np.dtype(dtype)} {list(shape)}: the "
                f"programme takes batches of {self.batch} images, {kind}; export with another --batch, --size or "
                "--canvas for others"
            )


def load_serving(folder: str | Path) -> ServedDetector:
    """Loads an exported detector onto JAX's default device. It is compiled at its first call.

    Args:
      folder: what `python -m eql_jax.serving --out` made.

    Raises:
      ServingError: a file is missing or damaged, of another format version or for other platforms.
      ImportError: flatbuffers is not installed.
    """
    folder = Path(folder)
    description = _read_description(folder / DESCRIPTION)
    programs = description["programs"]
    platform = export.default_export_platform()
    if platform not in programs:
        raise ServingError(
            f"{folder} has programmes for {', '.join(programs)}, and this process runs on {platform}; export with "
            f"--platforms {platform}, or choose another with JAX_PLATFORMS"
        )
    path = _existing(folder / programs[platform])
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
    except ImportError:
        raise
    except Exception as error:  # whatever flatbuffers and MLIR make of a damaged file
        raise ServingError(
            f"{path} cannot be read by jax {jax.__version__} ({type(error).__name__}: {error}). It was written by jax "
            f"{description['jax']}; if the file is whole, export anew with the jax that is to run it"
        ) from error
    weights = _read_weights(_existing(folder / description["weights"]), exported)
    return ServedDetector(description, jax.jit(exported.call), jax.device_put(weights))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ServingError(
            f"{path} is missing; expected a folder that python -m eql_jax.serving --out has made, with all of its files"
        )
    return path


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(_existing(path).read_text(encoding="utf-8"))
        found = description["format"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ServingError(f"{path} is no description of a served detector ({error!r}); export it anew") from error
    if found != FORMAT:
        raise ServingError(
            f"{path} has format version {found}, expected {FORMAT}, which this module reads; export it anew, or "
            "load it with the module of the version that wrote it"
        )
    return description


def _read_weights(path: Path, exported: export.Exported) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            weights = dict(file.items())
    except Exception as error:  # zipfile and NumPy have several for a damaged file
        raise ServingError(f"{path} cannot be read ({type(error).__name__}: {error}); export it anew") from error
    arguments, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    expected = arguments[0]
    wrong = [name for name in expected if name not in weights or weights[name].shape != expected[name].shape]
    wrong += [name for name in weights if name not in expected]
    if wrong:
        first = wrong[0]
        shapes = [list(names[first].shape) if first in names else "nothing" for names in (weights, expected)]
        raise ServingError(
            f"{path} does not belong to the programme: {len(wrong)} arrays differ, such as {first}: found {shapes[0]}, "
            f"expected {shapes[1]}. Export both into one folder"
        )
    return weights
