"""A long-tailed classification set made on the spot: one closed shape a picture, from the drawings of supershapes.

Classes are shapes of `eql_jax.data.shapes`; colour, texture, size, rotation, reflection, position and noise are random
and the same for all. The same arguments give the same bytes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from eql_jax.data.shapes.catalogue import shape_classes
from eql_jax.data.shapes.scene import DIFFICULTIES, draw_scene
from eql_jax.data.transforms import random_stream

_PURPOSE = 12  # keeps these draws apart from those of other purposes
_SPLITS = ("train", "val")
# One object that fills the picture as those of CIFAR do. Textures are faint, so that some hundred steps teach shapes.
_DIFFICULTY = dataclasses.replace(
    DIFFICULTIES["normal"],
    size=(0.6, 0.9),
    repeat=0.0,
    overlap=0.0,
    truncate=0.0,
    contrast=150.0,
    texture=30.0,
    noise=4.0,
)


@dataclasses.dataclass(frozen=True)
class DrawnArgs:
    """size: side in pixels. seed: of pictures, and of which shape is frequent. lookalikes: classes in groups of four
    that resemble each other."""

    size: int = 32
    seed: int = 0
    lookalikes: bool = True


def drawn_arrays(counts: np.ndarray, split: str, arguments: DrawnArgs) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Pictures of K classes, counts[k] of class k; a class has the same pictures first, whatever its count.

    Returns:
      images uint8 [N, S, S, 3], labels int64 [N], rising, and names of the classes.
    """
    shapes = shape_classes(len(counts), lookalikes=arguments.lookalikes)
    # Frequency must not follow from the shape, nor a group of look-alikes be frequent as a whole.
    order = random_stream(arguments.seed, _PURPOSE).permutation(len(counts))
    contours = [shapes[i].contour for i in order]
    images = np.empty((int(np.sum(counts)), arguments.size, arguments.size, 3), np.uint8)
    labels = np.repeat(np.arange(len(counts)), counts)
    first = np.concatenate([[0], np.cumsum(counts)])
    for k, contour in enumerate(contours):
        for i in range(int(counts[k])):
            stream = random_stream(arguments.seed, _PURPOSE, _SPLITS.index(split), k, i)
            scene = draw_scene(stream, classes=[0], contours=[contour], size=arguments.size, difficulty=_DIFFICULTY)
            images[first[k] + i] = scene.image
    return images, labels, tuple(shapes[i].name for i in order)
