"""What copy-paste pastes into which image, and where: drawn from the batch, or by class from the whole data set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eql_jax.data.augment import PASTED_VIEW, PASTES, CopyPaste, Recipe, draw_view
from eql_jax.data.copy_paste import Paste
from eql_jax.data.images import ImageError
from eql_jax.data.placement import Placed, place_objects
from eql_jax.data.records import Annotations, ImageIndex, Objects
from eql_jax.data.transforms import Size, random_stream
from eql_jax.data.views import View

# Objects smaller than this on the canvas are not pasted, pixels of width or height.
_MIN_PASTED_SIDE = 2.0


class PasteDraws:
    """Draws pastes. Thread-safe."""

    def __init__(self, annotations: Annotations, images: np.ndarray, index: ImageIndex, *, recipe: Recipe, seed: int):
        """Args:
        annotations: the data set.
        images: int64, those trained on, as positions in `annotations.images`.
        index: of these.
        recipe: of the augmentation.
        seed: of the run.
        """
        self._annotations = annotations
        self._images = images
        self._recipe = recipe
        self._seed = seed
        self._bank: ObjectBank | None = None
        options = recipe.copy_paste
        if options.probability and options.source == "bank":
            self._bank = ObjectBank(index, num_classes=annotations.num_classes, class_power=options.class_power)

    def draw(
        self,
        *,
        step: int,
        row: int,
        image_id: int,
        view: View,
        batch: np.ndarray,
        on_error: Callable[[int, ImageError], None],
    ) -> list[Paste]:
        """Draws what is pasted into an image. Depends on seed, step, row and image id, and on the batch's images.
        Of an image without masks nothing is pasted.

        Args:
          step: of training.
          row: of the global batch.
          image_id: of the image pasted into.
          view: of that image.
          batch: int64 [B], the images of the global batch, as positions in `images`.
          on_error: told of an image whose record cannot be read; nothing of it is pasted.
        """
        options = self._recipe.copy_paste
        if not options.probability:
            return []
        stream = random_stream(self._seed, step, row, image_id, PASTES)
        if stream.random() >= options.probability:
            return []
        area = Size(view.window.height, view.window.width)
        pastes = []
        for i, (index, which) in enumerate(self._sources(stream, row, batch)):
            try:
                record = self._annotations.images[self._images[index]]
            except ImageError as error:
                on_error(index, error)
                continue
            if record.objects.segmentations is None:
                continue
            its_stream = random_stream(self._seed, step, row, image_id, PASTED_VIEW, i)
            its_view = draw_view(its_stream, self._recipe, Size(record.height, record.width), view.canvas)
            if which is None:
                placed = draw_pasted(its_stream, options, record.objects, its_view, area)
            else:
                placed = draw_position(its_stream, options, record.objects, which, its_view, area)
            if placed.indices.size:
                pastes.append(Paste(index, record, placed))
        return pastes

    def _sources(self, stream: np.random.Generator, row: int, batch: np.ndarray) -> list[tuple[int, int | None]]:
        """(image, object) of each paste; without an object, those of the image are drawn from."""
        if self._bank is not None:
            count = int(stream.integers(1, self._recipe.copy_paste.max_objects + 1))
            return [self._bank.draw(stream) for _ in range(count)]
        if batch.size < 2:
            return []
        return [(int(batch[(row + int(stream.integers(1, batch.size))) % batch.size]), None)]


class ObjectBank:
    """The objects of a data set by class: two integers each, nothing of the images. Thread-safe."""

    def __init__(self, index: ImageIndex, *, num_classes: int, class_power: float):
        """Args:
        index: of the images that are trained on. Crowd and ignore regions are left out.
        num_classes: K.
        class_power: see `CopyPaste`.
        """
        counts = index.object_counts()
        images = np.repeat(np.arange(counts.size, dtype=np.int32), counts)
        within = np.arange(images.size) - np.repeat(index.offsets[:-1], counts)
        usable = np.flatnonzero(~index.ignore)
        order = usable[np.argsort(index.classes[usable], kind="stable")]
        self._images = images[order]
        self._objects = within[order].astype(np.int32)
        self._ends = np.cumsum(np.bincount(index.classes[usable], minlength=num_classes))
        pairs = np.unique(index.classes[usable].astype(np.int64) * max(counts.size, 1) + images[usable])
        image_counts = np.bincount(pairs // max(counts.size, 1), minlength=num_classes).astype(np.float64)
        weights = np.where(image_counts > 0, np.maximum(image_counts, 1) ** -class_power, 0)
        self._cumulative = np.cumsum(weights)

    def draw(self, stream: np.random.Generator) -> tuple[int, int]:
        """Draws a class, then one of its objects: the image's position in the index, the object's in the image.

        Raises:
          ValueError: there is no object.
        """
        if not self._images.size:
            raise ValueError("the object bank of copy-paste is empty: no image has a usable object")
        point = stream.random() * self._cumulative[-1]
        which = int(np.searchsorted(self._cumulative, point, side="right"))
        # The product may round up to the whole sum; the last class with an object is the one then.
        which = min(which, int(np.searchsorted(self._cumulative, self._cumulative[-1], side="left")))
        start = int(self._ends[which - 1]) if which else 0
        place = int(stream.integers(start, self._ends[which]))
        return int(self._images[place]), int(self._objects[place])


def draw_pasted(stream: np.random.Generator, options: CopyPaste, objects: Objects, view: View, area: Size) -> Placed:
    """Draws which objects of another image of the batch are pasted: one or more, up to `max_objects`, where they lie in
    a view of their own. Crowd and ignore regions are not pasted, nor what is smaller than two pixels.

    Args:
      stream: of the row they are pasted into.
      options: see `CopyPaste`.
      objects: of the other image.
      view: of the other image.
      area: the part of the canvas, from its top left, that is pasted into.

    Returns:
      Maybe none.
    """
    factor = float(stream.uniform(*options.scale))
    view = view._replace(
        scaled=_times(view.scaled, factor), top=round(view.top * factor), left=round(view.left * factor), canvas=area
    )
    placed = _worth_pasting(place_objects(objects, view, np.flatnonzero(~objects.ignore)))
    count = min(placed.indices.size, options.max_objects)
    if not count:
        return placed
    count = int(stream.integers(1, count + 1))
    return placed.select(np.sort(stream.permutation(placed.indices.size)[:count]))


def draw_position(
    stream: np.random.Generator, options: CopyPaste, objects: Objects, index: int, view: View, area: Size
) -> Placed:
    """Draws where an object of the bank is pasted: anywhere in the area, made smaller where it would not fit.

    Args:
      stream: of the row it is pasted into.
      options: see `CopyPaste`.
      objects: of its image.
      index: which of them.
      view: of its image; size and mirroring are taken from it.
      area: the part of the canvas, from its top left, that is pasted into.

    Returns:
      The object, or none when it would be too small.
    """
    factor = float(stream.uniform(*options.scale))
    down, right = stream.random(2).tolist()
    view = view._replace(top=0, left=0, canvas=area)
    x1, y1, x2, y2 = view.boxes(objects.boxes[index : index + 1])[0]
    factor = min(factor, area.height / (y2 - y1), area.width / (x2 - x1))
    view = view._replace(scaled=_times(view.scaled, factor))
    x1, y1, x2, y2 = view.boxes(objects.boxes[index : index + 1])[0]
    top = round(y1 - down * max(0.0, area.height - (y2 - y1)))
    left = round(x1 - right * max(0.0, area.width - (x2 - x1)))
    return _worth_pasting(place_objects(objects, view._replace(top=top, left=left), np.array([index])))


def _worth_pasting(placed: Placed) -> Placed:
    sides = placed.boxes[:, 2:] - placed.boxes[:, :2]
    return placed.select(np.flatnonzero((sides >= _MIN_PASTED_SIDE).all(axis=1)))


def _times(size: Size, factor: float) -> Size:
    return Size(*(max(1, round(side * factor)) for side in size))
