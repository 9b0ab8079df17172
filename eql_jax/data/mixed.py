"""Several data sets as one: the main set, and others whose objects are mapped to its classes. Records stay lazy.

K classes of the main set. Each set says which classes give negatives in its images (`annotated_classes` of a record):

'all': all K, as in the main set; for a part of the main set.
'annotated': the classes that an object of the set can have, but for those that the image does not list exhaustively;
  for sets whose images are annotated for all classes of the set, such as COCO.
'verified': of these, the ones that are present in the image or verified absent in it; for sets with labels verified
  image by image: Open Images, LVIS.

A class in which several classes of a set come together ("Man" and "Woman" in "person") is verified absent where all of
them are, and verified where each of them is present or verified absent.

The images of set number s (the main set is 0) have the ids s * 10**16 + their own. So ids do not collide, the main set
has those it has alone, and they do not depend on what else is in a set. The device takes the low 32 bits for its random
draws: of own ids below 24 million they do not collide either, in up to a hundred sets. (Open Images has larger ones:
two images with the same low bits would have to be in one batch to draw alike.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.data.class_map import ClassMap
from eql_jax.data.images import ImageError
from eql_jax.data.records import (
    Annotations,
    ImageIndex,
    ImageRecord,
    ImageSet,
    LazyImages,
    evenly_spaced,
)
from eql_jax.data.validation import AnnotationError, FaultReport

ID_STRIDE = 10**16
MAX_SETS = 100
NEGATIVES = ("all", "annotated", "verified")

_LOOKED_AT = 256  # images of a set that are looked at for verified classes


class ExtraSet(NamedTuple):
    """A data set beside the main one.

    Attributes:
      annotations: as its source gives them.
      class_map: from its classes to those of the main set.
      share: of the images that training draws.
      negatives: one of `NEGATIVES`.
      has_masks: False: its objects have boxes only.
    """

    annotations: Annotations
    class_map: ClassMap
    share: float
    negatives: str
    has_masks: bool = True


def mix(main: Annotations, extra: Sequence[ExtraSet]) -> Annotations:
    """The main set and others as one data set, with `sets`. Nothing is read but the indices.

    `raw` and `dataset()` are the main set's; the report is that of all.

    Raises:
      AnnotationError: an image id of a set is 10**16 or more.
      ValueError: no set or more than 99 are given, `negatives` is none of `NEGATIVES`, or the shares exceed 1.
    """
    shares = [one.share for one in extra]
    if not 0 < len(extra) < MAX_SETS or min(shares) < 0 or sum(shares) > 1 + 1e-9:
        raise ValueError(f"expected 1 to {MAX_SETS - 1} sets, shares not negative and at most 1 in sum, got {shares}")
    wrong = [one.negatives for one in extra if one.negatives not in NEGATIVES]
    if wrong:
        raise ValueError(f"negatives is {wrong[0]!r}, expected one of {', '.join(NEGATIVES)}")
    # .7 + .2 + .1 is below 1 by rounding: what is left of that is nothing, or the main set would not be left out.
    rest = 1 - sum(shares)
    rest = rest if rest > 1e-12 else 0.0
    report = FaultReport(strict=main.report.strict)
    everything = np.ones(main.num_classes, bool)
    sizes = np.array([len(main.images), *(len(one.annotations.images) for one in extra)])
    stops = np.cumsum(sizes).tolist()
    sets = [
        ImageSet(str(main.raw), 0, stops[0], rest, "all", everything, has_masks=True),
        *(
            ImageSet(
                name=str(one.annotations.raw),
                start=start,
                stop=stop,
                share=one.share,
                negatives=one.negatives,
                annotated=everything if one.negatives == "all" else one.class_map.annotated,
                has_masks=one.has_masks,
            )
            for one, start, stop in zip(extra, stops[:-1], stops[1:], strict=True)
        ),
    ]
    for given in (main, *(one.annotations for one in extra)):
        report.include(given.report)
        largest = int(given.index.ids.max(initial=0))
        if largest >= ID_STRIDE:
            raise AnnotationError(
                f"{given.raw}: image id {largest}; in a mixed data set ids are below {ID_STRIDE}: number its "
                "images anew"
            )
    for one in extra:
        left_out = int((one.class_map.targets[one.annotations.index.classes] < 0).sum())
        if left_out:
            report.note(f"{one.annotations.raw}: object of a class that the class map leaves out", left_out)
    return Annotations(
        categories=main.categories,
        class_ids=main.class_ids,
        images=MixedImages(main, extra),
        report=report,
        raw=main.raw,
        make_dataset=main.make_dataset,
        sets=tuple(sets),
    )


def has_verified_classes(annotations: Annotations) -> bool:
    """Whether images of a set list classes as verified absent or as not exhaustive: 256 evenly spaced ones are read."""
    for i in evenly_spaced(range(len(annotations.images)), _LOOKED_AT):
        try:
            record = annotations.images[i]
        except ImageError:  # it is reported when it is met in training
            continue
        if record.neg_classes.size or record.not_exhaustive_classes.size:
            return True
    return False


class MixedImages(LazyImages):
    """The images of the main set and then those of the others, each read and mapped when it is asked for."""

    def __init__(self, main: Annotations, extra: Sequence[ExtraSet]):
        self._main = main.images
        self._extra = tuple(extra)
        sizes = [len(main.images), *(len(one.annotations.images) for one in extra)]
        self._starts = np.cumsum([0, *sizes])[:-1].tolist()
        self.image_index = _join([main.index, *(_map_index(one, number) for number, one in enumerate(extra, start=1))])

    def read(self, i: int) -> ImageRecord:
        number = bisect_right(self._starts, i) - 1
        within = i - self._starts[number]
        if not number:
            return self._main[within]
        one = self._extra[number - 1]
        return _map_record(one.annotations.images[within], one, number)


def _map_record(record: ImageRecord, one: ExtraSet, number: int) -> ImageRecord:
    class_map = one.class_map
    classes = class_map.targets[record.objects.classes]
    objects = record.objects.select(np.flatnonzero(classes >= 0))
    not_exhaustive = np.unique(class_map.targets[record.not_exhaustive_classes])
    not_exhaustive = not_exhaustive[not_exhaustive >= 0]
    annotated = None
    if one.negatives != "all":
        annotated = class_map.annotated
        if one.negatives == "verified":
            annotated = class_map.complete(np.concatenate([record.objects.classes, record.neg_classes]))
        annotated[not_exhaustive] = False
    return record._replace(
        id=number * ID_STRIDE + record.id,
        neg_classes=np.flatnonzero(class_map.complete(record.neg_classes)).astype(np.int32),
        not_exhaustive_classes=not_exhaustive.astype(np.int32),
        objects=objects._replace(classes=class_map.targets[objects.classes]),
        annotated_classes=annotated,
    )


def _map_index(one: ExtraSet, number: int) -> ImageIndex:
    """The index of a set with its ids and classes in the mixed one, without the objects that are left out."""
    index = one.annotations.index
    classes = one.class_map.targets[index.classes]
    kept = classes >= 0
    ends = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    return index._replace(
        ids=index.ids + number * ID_STRIDE,
        offsets=ends[index.offsets],
        classes=classes[kept],
        ignore=index.ignore[kept],
    )


def _join(parts: Sequence[ImageIndex]) -> ImageIndex:
    ends = np.cumsum([0, *(part.classes.size for part in parts)])[:-1].tolist()
    offsets = [part.offsets[1:] + end for part, end in zip(parts, ends, strict=True)]
    keys = ("ids", "heights", "widths", "classes", "ignore")
    joined = {key: np.concatenate([getattr(part, key) for part in parts]) for key in keys}
    return ImageIndex(offsets=np.concatenate([[0], *offsets]).astype(np.int64), **joined)
