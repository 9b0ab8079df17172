"""AP of groups of classes by their number of training images, as the EQL paper reports it on Open Images.

K classes, T IoU thresholds, R recall points. The classes of the data set, those without an object to evaluate on among
them, are sorted by falling number of training images (equal ones by rising id) and cut into n groups as
`numpy.array_split` does: as many classes each, or where n does not divide K, one more in each of the first K mod n.
Group 1 has the classes with most images. The paper has five groups of 100 of Open Images' 500 classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eql_jax.evaluation.accumulate import Curves, mean_of_valid

MAX_GROUPS = 49  # the AP of a 50th would be named AP50, which is that at IoU .5


class ClassGroup(NamedTuple):
    """Classes of neighbouring ranks.

    Attributes:
      class_ids: category ids, by falling number of training images.
      fewest, most: the training images of its last and of its first class.
    """

    class_ids: tuple[int, ...]
    fewest: int
    most: int


def group_classes(class_ids: Sequence[int], image_counts: Mapping[int, int], count: int) -> tuple[ClassGroup, ...]:
    """Cuts classes into groups, see the module's head.

    Args:
      class_ids: category ids of the K classes.
      image_counts: training images by category id.
      count: n.

    Raises:
      ValueError: there are fewer classes than groups, more than `MAX_GROUPS` groups, or a class has no count.
    """
    if not 1 <= count <= min(len(class_ids), MAX_GROUPS):
        raise ValueError(
            f"eval.image_count_groups is {count}; expected 1 to {min(len(class_ids), MAX_GROUPS)} for "
            f"{len(class_ids)} classes, or 0 for none"
        )
    missing = [class_id for class_id in class_ids if class_id not in image_counts]
    if missing:
        raise ValueError(
            f"groups by image count: {len(missing)} of {len(class_ids)} classes have no number of training images, "
            f"among them ids {missing[:5]}; pass that of every class"
        )
    ranked = sorted(class_ids, key=lambda class_id: (-image_counts[class_id], class_id))
    groups = [tuple(ranked[int(i)] for i in part) for part in np.array_split(np.arange(len(ranked)), count)]
    return tuple(ClassGroup(ids, image_counts[ids[-1]], image_counts[ids[0]]) for ids in groups)


def group_metrics(curves: Curves, class_ids: Sequence[int], groups: Sequence[ClassGroup]) -> dict[str, float]:
    """AP1 .. APn, means over IoU .50:.05:.95, and AP50_1 .. AP50_n, over the classes of a group that have objects.

    Args:
      curves: precision [T, R, K, areas] of the K classes.
      class_ids: their category ids.
      groups: of `group_classes`; -1 stands for a group none of whose classes has an object.
    """
    place = {class_id: k for k, class_id in enumerate(class_ids)}
    members = [np.array([place[class_id] for class_id in group.class_ids]) for group in groups]
    precision = curves.precision[..., 0]
    values = [mean_of_valid(precision[:, :, own]) for own in members]
    values += [mean_of_valid(precision[0][:, own]) for own in members]
    return dict(zip(group_metric_names(len(groups)), values, strict=True))


def group_metric_names(count: int) -> list[str]:
    """The keys of `group_metrics`, in its order."""
    return [f"{name}{group + 1}" for name in ("AP", "AP50_") for group in range(count)]
