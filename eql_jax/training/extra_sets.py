"""The further training sets of config.data.extra_sets, opened and mixed with the main set."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from eql_jax.data.class_map import load_class_map, same_classes
from eql_jax.data.mixed import MAX_SETS, NEGATIVES, ExtraSet, has_verified_classes, mix
from eql_jax.data.records import Annotations
from eql_jax.data.sources import needs_images, open_annotations
from eql_jax.data.validation import AnnotationError, NoMasks
from eql_jax.training.errors import ConfigError

LOG = logging.getLogger(__name__)

_FORM = "(annotations, images, class map, share) and maybe 'all', 'annotated' or 'verified'"


def extra_set_faults(sets: Sequence[Any]) -> Iterator[str]:
    """One line for every entry of data.extra_sets that is none, and for shares above 1 in sum."""
    if len(sets) >= MAX_SETS:
        yield f"data.extra_sets has {len(sets)} sets; expected fewer than {MAX_SETS}"
    total = 0.0
    for i, entry in enumerate(sets):
        if not isinstance(entry, tuple | list) or not 4 <= len(entry) <= 5:
            yield f"data.extra_sets[{i}] is {entry!r}; expected {_FORM}"
            continue
        where, images, class_map, share, *negatives = entry
        if not where or not all(isinstance(text, str) for text in (where, images, class_map)):
            yield f"data.extra_sets[{i}] is {entry!r}; expected texts for the first three, {_FORM}"
        elif needs_images(where) and not images:
            yield f"data.extra_sets[{i}] has no folder of the images of {where}; expected {_FORM}"
        if negatives and negatives[0] not in NEGATIVES:
            yield f"data.extra_sets[{i}] ends with {negatives[0]!r}; expected one of {', '.join(map(repr, NEGATIVES))}"
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not number or not 0 <= share <= 1:  # NaN is a fault too
            yield f"data.extra_sets[{i}] has the share {share!r}; expected a number from 0 to 1"
        else:
            total += share
    if total > 1 + 1e-9:
        yield f"data.extra_sets have shares of {total:g} in sum; expected at most 1, the rest is the main set's"


def with_extra_sets(config: ConfigDict, train: Annotations) -> Annotations:
    """The main set `train` with config.data.extra_sets; `train` itself where there are none.

    Raises:
      ConfigError: an entry is none.
      AnnotationError: a set or its class map is not there or cannot be used; the message says of which set.
    """
    sets = config.data.extra_sets
    if not sets:
        return train
    faults = list(extra_set_faults(sets))
    if faults:
        raise ConfigError("\n".join(faults))
    opened = []
    for i, entry in enumerate(sets):
        try:
            opened.append(_open(entry, train, config, f"data.extra_sets[{i}]"))
        except (AnnotationError, OSError, ImportError) as error:
            raise AnnotationError(f"data.extra_sets[{i}] ({entry[0]}): {error}") from error
    mixed = mix(train, opened)
    LOG.info("%s gives %.4g of the images", train.raw, mixed.sets[0].share)
    return mixed


def _open(entry: Sequence[Any], main: Annotations, config: ConfigDict, name: str) -> ExtraSet:
    where, images, class_map, share, *negatives = entry
    strict, masks = config.data.strict, config.model.with_mask
    try:
        found = open_annotations(where, images, strict=strict, masks=masks)
    except NoMasks:
        masks = False
        found = open_annotations(where, images, strict=strict, masks=False)
    if class_map:
        table = load_class_map(class_map, found.categories, main.categories)
    else:
        table = same_classes(found.categories, main.categories, origin=str(found.raw))
    if not negatives:
        negatives = ["verified" if has_verified_classes(found) else "annotated"]
    one = ExtraSet(found, table, float(share), negatives[0], has_masks=masks)
    left_out = int((table.targets[found.index.classes] < 0).sum())
    LOG.info(
        "%s, %s: %d images, %.4g of the rows; %d of %d classes to %d of %d, %d of %d objects left out; negatives: %s%s",
        name,
        found.raw,
        len(found.images),
        share,
        int((table.targets >= 0).sum()),
        table.targets.size,
        int(table.annotated.sum()),
        table.num_classes,
        left_out,
        found.index.classes.size,
        negatives[0],
        "; boxes only, which train no masks" if config.model.with_mask and not masks else "",
    )
    summary = found.report.summary()
    if summary:
        LOG.warning("%s: %s", name, summary)
    return one
