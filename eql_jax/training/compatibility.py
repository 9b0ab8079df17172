"""Whether a checkpoint fits the run that would go on from it: same classes, same model, same optimizer structure."""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from eql_jax.data.annotations import Category
from eql_jax.data.categories import ClassStatistics
from eql_jax.training.config import differences
from eql_jax.training.errors import CheckpointError
from eql_jax.training.optimizer import parameter_path

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes a model was trained on, by contiguous index 0..K-1, with their training frequencies.

    ids: category ids, rising. names: category names. letters: 'r', 'c' or 'f'. image_counts, instance_counts: training
    images with the class and objects of it. num_images: annotated training images.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    letters: tuple[str, ...]
    image_counts: tuple[int, ...] = ()
    instance_counts: tuple[int, ...] = ()
    num_images: int = 0

    def __post_init__(self):
        if not len(self.ids) == len(self.names) == len(self.letters):
            raise ValueError(f"{len(self.ids)} ids, {len(self.names)} names and {len(self.letters)} letters of classes")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, statistics: ClassStatistics) -> "Classes":
        """From `eql_jax.data.categories.class_statistics`."""
        return cls(
            ids=tuple(int(i) for i in statistics.category_ids),
            names=tuple(statistics.names),
            letters=tuple(statistics.frequencies),
            image_counts=tuple(int(n) for n in statistics.image_counts),
            instance_counts=tuple(int(n) for n in statistics.instance_counts),
            num_images=int(statistics.num_images),
        )

    @property
    def statistics(self) -> ClassStatistics:
        """Back to what `of` took."""
        return ClassStatistics(
            names=self.names,
            frequencies=self.letters,
            image_counts=np.array(self.image_counts, np.int64),
            instance_counts=np.array(self.instance_counts, np.int64),
            num_images=self.num_images,
            category_ids=np.array(self.ids, np.int64),
        )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Classes":
        """From the dict that `dataclasses.asdict` gave, after its way through JSON."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def flatten(tree: Any) -> dict[str, Any]:
    """{'a/b/c': leaf} of a nested dict."""
    return {parameter_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def check_classes(saved: Classes, own: Classes, path: Path) -> None:
    """Raises CheckpointError unless ids and names are equal; other frequency letters are logged."""
    hint = (
        "Use the annotations it was trained on, another --workdir, or config.train.init_from to start from its weights"
    )
    if len(saved) != len(own):
        raise CheckpointError(f"checkpoint {path} has {len(saved)} classes; the annotations have {len(own)}. {hint}")
    for i, (a, b) in enumerate(zip(saved.ids, own.ids, strict=True)):
        if (a, saved.names[i]) != (b, own.names[i]):
            raise CheckpointError(
                f"checkpoint {path} has class {i} = id {a} {saved.names[i]!r}; the annotations have id {b} "
                f"{own.names[i]!r}. {hint}"
            )
    changed = sum(a != b for a, b in zip(saved.letters, own.letters, strict=True))
    if changed:
        LOG.warning("%d classes have another frequency letter than in checkpoint %s", changed, path)


def check_categories(classes: Classes, categories: Iterable[Category], *, where: str | Path) -> None:
    """Raises CheckpointError unless every category of the file `where` is a class of the model, by id and name."""
    known = dict(zip(classes.ids, classes.names, strict=True))
    faults = [f"id {c.id} {c.name!r}" for c in categories if known.get(c.id) != c.name]
    if faults:
        raise CheckpointError(
            f"{where} has {len(faults)} categories that are not among the model's {len(classes)} classes (by id and "
            f"name): {', '.join(faults[:5])}{', ...' if len(faults) > 5 else ''}. Use annotations of the same data set"
        )


def check_architecture(saved: ConfigDict, own: ConfigDict, *, where: str | Path) -> None:
    """Raises CheckpointError, listing them, where `model.*` fields differ. `model.test.*` may: nothing learned hangs on
    it.
    """
    changed = {k: v for k, v in differences(saved, own).items() if k.startswith("model.")}
    lines = [f"  {k}: {old!r} -> {new!r}" for k, (old, new) in changed.items() if not k.startswith("model.test.")]
    if lines:
        raise CheckpointError(
            "\n".join([f"{where} is of another model (checkpoint -> now):", *lines])
            + "\nUse the old values, another --workdir, or config.train.init_from to start from its weights"
        )


def check_config(saved: ConfigDict, own: ConfigDict, path: Path) -> None:
    """Raises CheckpointError as `check_architecture`; other differences are logged, key: old -> new."""
    check_architecture(saved, own, where=f"checkpoint {path}")
    lines = [f"  {key}: {old!r} -> {new!r}" for key, (old, new) in differences(saved, own).items()]
    if lines:
        LOG.warning("%s", "\n".join([f"the config differs from that of checkpoint {path} (was -> now):", *lines]))


def check_structure(saved: Any, own: Any, *, item: str, path: Path) -> None:
    """Raises CheckpointError unless both trees have the same paths and shapes; `item` names them in the message."""
    before = {k: tuple(v.shape) for k, v in flatten(saved).items()}
    now = {k: tuple(v.shape) for k, v in flatten(own).items()}
    if before == now:
        return
    faults = [f"{k} only in the checkpoint" for k in before.keys() - now.keys()]
    faults += [f"{k} not in the checkpoint" for k in now.keys() - before.keys()]
    faults += [
        f"{k} {before[k]} in the checkpoint, {now[k]} now" for k in before.keys() & now.keys() if before[k] != now[k]
    ]
    shown = "; ".join(sorted(faults)[:5]) + ("; ..." if len(faults) > 5 else "")
    raise CheckpointError(
        f"checkpoint {path} does not fit: {len(faults)} arrays of its {item} differ: {shown}. Use the settings it was "
        "trained with (config.optimizer.name, momentum, model.backbone.freeze_at ...), another --workdir, or "
        "config.train.init_from to start from its weights"
    )
