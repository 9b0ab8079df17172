"""What is known of images, objects and categories, as records.

K classes, G objects of an image, P points of a polygon. Classes are 0..K-1 in order of category id (ids may have gaps).
Boxes are float32 XYXY in absolute pixels of the image file, without the +1 of older code.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np

from eql_jax.data.json_file import read_annotation_json
from eql_jax.data.segmentations import Segmentation, Segmentations
from eql_jax.data.validation import FaultReport

# An image count up to the first is rare, up to the second common, above it frequent (LVIS).
RARE_MAX_IMAGES = 10
COMMON_MAX_IMAGES = 100

T = TypeVar("T")


class Category(NamedTuple):
    """A category of the file. `frequency` is 'r', 'c' or 'f'.

    The counts are those the file states, or where it states none, those of the file's own annotations. Only a complete
    training file has training counts: see `eql_jax.data.categories`.
    """

    id: int
    name: str
    synset: str
    frequency: str
    image_count: int
    instance_count: int


class ObjectRecord(NamedTuple):
    """One object. `ignore`: a crowd or ignore region, no positive, and what lies in it is no negative.

    `segmentation` is None where masks were not read.
    """

    id: int
    box: np.ndarray
    class_index: int
    ignore: bool
    area: float
    segmentation: Segmentation | None


class Objects(NamedTuple):
    """The objects of an image, as arrays. `objects.size` counts them, `objects.record(i)` is one of them.

    Attributes:
      ids: int64 [G] annotation ids.
      boxes: float32 [G, 4] XYXY, inside the image, with positive width and height.
      classes: int32 [G] in 0..K-1.
      ignore: bool [G].
      areas: float32 [G] the file's area (that of the polygons, in LVIS), pixels.
      segmentations: G masks, each a tuple of polygons float64 [P, 2] or `RunLengths`; None: masks were not read, or the
        data set has none.
    """

    ids: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    segmentations: Segmentations | None

    @property
    def size(self) -> int:
        """G."""
        return len(self.ids)

    def record(self, i: int) -> ObjectRecord:
        """Returns object i."""
        return ObjectRecord(
            id=int(self.ids[i]),
            box=self.boxes[i],
            class_index=int(self.classes[i]),
            ignore=bool(self.ignore[i]),
            area=float(self.areas[i]),
            segmentation=None if self.segmentations is None else self.segmentations[i],
        )

    def select(self, indices: np.ndarray) -> Objects:
        """Some of the objects; indices: int [N], rising."""
        masks = None if self.segmentations is None else self.segmentations.select(indices)
        return Objects(*(values[indices] for values in self[:-1]), segmentations=masks)

    def records(self) -> Iterator[ObjectRecord]:
        """Yields the objects one by one."""
        return (self.record(i) for i in range(self.size))


class ImageRecord(NamedTuple):
    """An image and what is known of it.

    Attributes:
      id: the file's image id.
      path: where the image file is, or was when the data set was prepared; for messages, too. Remote paths are
        `etils.epath.Path`.
      width, height: as the JSON states them; 0 for a plain path, until `pipeline.EvalBatches` has looked into the file.
      neg_classes: int32, classes verified absent (LVIS neg_category_ids).
      not_exhaustive_classes: int32, classes of which not every object is annotated.
      objects: see `Objects`.
      encoded: the bytes of the image file, where the source has them; None: they are read from `path`.
      annotated_classes: bool [K], classes that give negatives in this image: one that is False may be there without a
        box. None: all, as in a data set that is not mixed.
    """

    id: int
    path: Path
    width: int
    height: int
    neg_classes: np.ndarray
    not_exhaustive_classes: np.ndarray
    objects: Objects
    encoded: bytes | None = None
    annotated_classes: np.ndarray | None = None

    @property
    def file(self) -> Path | IO[bytes]:
        """The image file, as `images.read_image` takes it: its bytes, or its path."""
        return self.path if self.encoded is None else io.BytesIO(self.encoded)


class ImageIndex(NamedTuple):
    """What samplers and buckets go by, of all N images, with T objects in all. A hundred bytes an image.

    Attributes:
      ids: int64 [N].
      heights, widths: int32 [N], of the image files.
      offsets: int64 [N + 1]; the objects of image i are offsets[i] .. offsets[i + 1] of the next two.
      classes: int32 [T].
      ignore: bool [T].
    """

    ids: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    offsets: np.ndarray
    classes: np.ndarray
    ignore: np.ndarray

    @classmethod
    def of(cls, images: Sequence[ImageRecord]) -> ImageIndex:
        """Reads the index off the records."""
        objects = [image.objects for image in images]
        return cls(
            ids=np.array([image.id for image in images], np.int64),
            heights=np.array([image.height for image in images], np.int32),
            widths=np.array([image.width for image in images], np.int32),
            offsets=np.concatenate([[0], np.cumsum([o.size for o in objects], dtype=np.int64)]).astype(np.int64),
            classes=np.concatenate([np.zeros(0, np.int32), *(o.classes for o in objects)]),
            ignore=np.concatenate([np.zeros(0, bool), *(o.ignore for o in objects)]),
        )

    def object_counts(self) -> np.ndarray:
        """Objects of each image, int64 [N]."""
        return np.diff(self.offsets)

    def usable_counts(self) -> np.ndarray:
        """Objects of each image that are no crowd or ignore region, int64 [N]."""
        ends = np.concatenate([[0], np.cumsum(~self.ignore, dtype=np.int64)])
        return np.diff(ends[self.offsets])

    def present_classes(self, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """The pairs (image, class) that occur, see the function of this name."""
        return present_classes(self.classes, self.offsets, num_classes)

    def classes_of(self, i: int) -> np.ndarray:
        """The classes of image i's objects, int32."""
        return self.classes[self.offsets[i] : self.offsets[i + 1]]

    def ignore_of(self, i: int) -> np.ndarray:
        """Which of image i's objects are crowd or ignore regions, bool."""
        return self.ignore[self.offsets[i] : self.offsets[i + 1]]

    def select(self, positions: np.ndarray, *, usable_only: bool = False) -> ImageIndex:
        """The index of some of the images; usable_only leaves out their crowd and ignore regions."""
        counts = self.object_counts()[positions]
        starts = np.cumsum(counts) - counts
        chosen = np.arange(counts.sum()) + np.repeat(self.offsets[:-1][positions] - starts, counts)
        image = np.repeat(np.arange(len(positions)), counts)
        if usable_only:
            keep = ~self.ignore[chosen]
            chosen, image = chosen[keep], image[keep]
        counts = np.bincount(image, minlength=len(positions))
        return ImageIndex(
            ids=self.ids[positions],
            heights=self.heights[positions],
            widths=self.widths[positions],
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            classes=self.classes[chosen],
            ignore=self.ignore[chosen],
        )


class ImageSet(NamedTuple):
    """One of the data sets that a mixed one is made of, see `eql_jax.data.mixed`.

    Attributes:
      name: where it is, for messages.
      start, stop: its images among those of the mixed data set.
      share: of the images that training draws.
      negatives: 'all', 'annotated' or 'verified': which classes give negatives in its images.
      annotated: bool [K], classes that an object of it can have.
      has_masks: False: its objects have boxes only.
    """

    name: str
    start: int
    stop: int
    share: float
    negatives: str
    annotated: np.ndarray
    has_masks: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations:
    """A data set: what every source gives, whether a JSON with a folder, prepared records or TFDS.

    Attributes:
      categories: list of K, by category id.
      class_ids: int64 [K] category id of each class.
      images: the `ImageRecord`s, in the order of the file; images that cannot be used are left out. A source may read
        a record only when it is asked for, from any thread.
      report: the faults found, `report.summary()` is the text.
      raw: path of the annotation JSON, for the official evaluation; of a source without one, where it is.
      make_dataset: makes the contents of an annotation JSON, for a source without one; None: `raw` is read.
      sets: what a mixed data set is made of, the main set first; () where it is not mixed.
    """

    categories: list[Category]
    class_ids: np.ndarray
    images: Sequence[ImageRecord]
    report: FaultReport
    raw: Path
    make_dataset: Callable[[], dict] | None = None
    sets: tuple[ImageSet, ...] = ()

    def dataset(self) -> dict:
        """The contents of the annotation JSON, read now, as `json_file.read_annotation_json` gives them.

        Raises:
          FileNotFoundError, AnnotationError: the file is gone or damaged.
        """
        return read_annotation_json(self.raw) if self.make_dataset is None else self.make_dataset()

    @functools.cached_property
    def index(self) -> ImageIndex:
        """What samplers and buckets go by. Sequences that make records late know it without them."""
        stored = getattr(self.images, "image_index", None)
        return ImageIndex.of(self.images) if stored is None else stored

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.categories)


class LazyImages(Sequence[ImageRecord]):
    """Records that are made when they are asked for, from any thread; a subclass has `image_index` and `read`."""

    image_index: ImageIndex

    @abc.abstractmethod
    def read(self, i: int) -> ImageRecord:
        """Returns record i, 0 <= i < N."""

    def __len__(self) -> int:
        return self.image_index.ids.size

    def __getitem__(self, i: int | slice) -> ImageRecord | list[ImageRecord]:
        chosen = range(len(self))[i]  # IndexError, and negative numbers, as of a list
        return [self.read(j) for j in chosen] if isinstance(i, slice) else self.read(chosen)


class RecordsById(Mapping):
    """Records by image id, read when they are asked for."""

    def __init__(self, images: Sequence[ImageRecord], positions: Sequence[int], ids: Sequence[int]):
        """Args:
        images: of a source.
        positions: which of them this has.
        ids: their image ids.
        """
        self._images = images
        self._positions = dict(zip(map(int, ids), map(int, positions), strict=True))

    def __getitem__(self, image_id: int) -> ImageRecord:
        return self._images[self._positions[image_id]]

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


def frequency_letter(image_count: int) -> str:
    """'r' for up to 10 images, 'c' for 11 to 100, 'f' above (LVIS)."""
    return "r" if image_count <= RARE_MAX_IMAGES else "c" if image_count <= COMMON_MAX_IMAGES else "f"


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items at even distances, the first and the last among them; all where there are no more."""
    if count >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def present_classes(classes: np.ndarray, offsets: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs (image, class) that occur, each once, by image and then class: two int64 arrays of one length."""
    classes, offsets = np.asarray(classes), np.asarray(offsets, np.int64)
    counts = np.diff(offsets)
    if not offsets.size or offsets[0] != 0 or offsets[-1] != classes.size or (counts < 0).any():
        raise ValueError(f"offsets must rise from 0 to the {classes.size} classes, got {offsets!r}")
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"classes run from {classes.min()} to {classes.max()}, expected 0 .. {num_classes - 1}")
    pairs = np.sort(np.repeat(np.arange(counts.size), counts) * num_classes + classes)
    first = np.ones(pairs.size, bool)
    first[1:] = pairs[1:] != pairs[:-1]  # np.unique goes by hashes: 0.7 s for LVIS v1 where this takes 0.04
    return np.divmod(pairs[first], max(num_classes, 1))


def pack_objects(objects: Sequence[ObjectRecord]) -> Objects:
    """Returns the objects as arrays; all of them have a mask, or none has."""
    segmentations = [o.segmentation for o in objects if o.segmentation is not None]
    return Objects(
        ids=np.array([o.id for o in objects], np.int64),
        boxes=np.array([o.box for o in objects], np.float32).reshape(-1, 4),
        classes=np.array([o.class_index for o in objects], np.int32),
        ignore=np.array([o.ignore for o in objects], bool),
        areas=np.array([o.area for o in objects], np.float32),
        segmentations=Segmentations.pack(segmentations) if segmentations or not objects else None,
    )


def empty_objects() -> Objects:
    """The objects of an image without any."""
    return pack_objects([])
