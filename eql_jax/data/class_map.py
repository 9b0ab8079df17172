"""Which class of the main data set an object of another one is: a JSON table, read, checked, and proposed by names.

    python -m eql_jax.data.class_map --source oid.json --target lvis_v0.5_train.json --out oid_to_lvis.json

The file is an object {category of the other set: category of the main set}. A category is its name or its id, names
first: a text of digits is an id where no category has it for a name. null leaves a category out, as does not to list
it. Several categories may go to one ("Man" and "Woman" to "person"), one category never to several.

What the command proposes is for you to read and to edit: equal names are no proof of equal meaning ("Mouse", "bat").
Two categories are proposed for each other when, in this order, their synsets are equal; their names are, but for upper
case, underscores and hyphens; the source's name is among the target's synonyms, as LVIS's files list them; or it is the
target's name but for a qualifier in brackets ("car_(automobile)"). A name that fits several categories of the other
side is left to you. Categories without a proposal are written with null, so that the file lists them all.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from eql_jax.data.categories import PACKAGED_SOURCES, packaged_categories
from eql_jax.data.files import as_path, read_file, write_whole
from eql_jax.data.json_file import stream_json
from eql_jax.data.object_checks import is_id
from eql_jax.data.prepared import is_prepared, read_index
from eql_jax.data.records import Category
from eql_jax.data.sources import open_annotations
from eql_jax.data.tfds_lvis import PREFIX
from eql_jax.data.validation import AnnotationError

_SHOWN = 5  # faults an error lists


class ClassMap(NamedTuple):
    """Where the classes of a source go.

    Attributes:
      targets: int32 [classes of the source], classes of the main set, -1: left out.
      num_classes: K, classes of the main set.
      origin: the file, for messages.
    """

    targets: np.ndarray
    num_classes: int
    origin: str

    @property
    def annotated(self) -> np.ndarray:
        """bool [K]: classes that an object of the source can have."""
        found = np.zeros(self.num_classes, bool)
        found[self.targets[self.targets >= 0]] = True
        return found

    def complete(self, classes: np.ndarray) -> np.ndarray:
        """bool [K]: classes all of whose sources are among `classes` (int, of the source); False for those without."""
        given = np.zeros(self.targets.size, bool)
        given[classes] = True
        found = self.annotated
        found[self.targets[~given & (self.targets >= 0)]] = False
        return found


def same_classes(source: Sequence[Category], target: Sequence[Category], *, origin: str) -> ClassMap:
    """The map of a set whose categories are the main set's, all or some, by id and name.

    Args:
      source, target: categories by id.
      origin: the source's file, for messages.

    Raises:
      AnnotationError: a category is not in the main set under its id and name.
    """
    class_of = {category.id: i for i, category in enumerate(target)}
    faults = []
    for category in source:
        i = class_of.get(category.id)
        if i is None:
            faults.append(f"id {category.id} {category.name!r} is not there")
        elif target[i].name != category.name:
            faults.append(f"id {category.id} is {category.name!r} here, {target[i].name!r} there")
    if faults:
        raise AnnotationError(
            f"{origin}: {len(faults)} of {len(source)} categories are not those of the main set: {_first(faults)}. "
            "Give a class map (docs/mixed_data.md)"
        )
    return ClassMap(np.array([class_of[category.id] for category in source], np.int32), len(target), origin)


def load_class_map(path: str | os.PathLike, source: Sequence[Category], target: Sequence[Category]) -> ClassMap:
    """Reads a class map.

    Args:
      path: of the JSON, local or remote; see above.
      source: categories of the set whose objects are mapped.
      target: categories of the main set, by id.

    Raises:
      FileNotFoundError: there is no such file.
      AnnotationError: it is no JSON object of names or ids, a key comes twice, a category is not known to its set, a
        name is that of several, two keys are one category, or nothing is mapped. The message has file and key.
    """
    path = as_path(path)
    pairs = _read_pairs(path)
    of_source, of_target = _finder(source, "the set that is mapped"), _finder(target, "the main set")
    targets = np.full(len(source), -1, np.int32)
    key_of: dict[int, str] = {}
    faults = []
    for key, value in pairs:
        try:
            i = of_source(key)
            if i in key_of:
                raise KeyError(f"is the same category as key {key_of[i]!r}, id {source[i].id} {source[i].name!r}")
            key_of[i] = key
            if value is not None:
                targets[i] = of_target(value)
        except KeyError as error:
            faults.append(f"key {key!r} {error.args[0]}")
    if faults:
        raise AnnotationError(f"{path}: {len(faults)} of {len(pairs)} entries cannot be used: {_first(faults)}")
    if (targets < 0).all():
        raise AnnotationError(f"{path} maps no category: expected {{category: category of the main set}}")
    return ClassMap(targets, len(target), str(path))


def propose(
    source: Sequence[Category], target: Sequence[Category], synonyms: dict[int, list[str]] | None = None
) -> dict[str, str | None]:
    """The class map that synsets and names suggest, with null for categories without a proposal.

    Args:
      source, target: categories.
      synonyms: category id of the target -> names that mean it.
    """
    synonyms = synonyms or {}
    rules = (
        ([c.synset for c in source], [[c.synset] for c in target]),
        ([_plain(c.name) for c in source], [[_plain(c.name)] for c in target]),
        ([_plain(c.name) for c in source], [[_plain(name) for name in synonyms.get(c.id, ())] for c in target]),
        ([_plain(c.name) for c in source], [[_plain(_unqualified(c.name))] for c in target]),
    )
    found: dict[int, int | None] = {}  # None: several fit
    for names, of_target in rules:
        lists: dict[str, set[int]] = {}
        for i, listed in enumerate(of_target):
            for name in filter(None, listed):
                lists.setdefault(name, set()).add(i)
        often = Counter(names)
        for i, name in enumerate(names):
            fitting = lists.get(name, ())
            if i not in found and fitting:
                found[i] = next(iter(fitting)) if len(fitting) == often[name] == 1 else None
    source_name, target_name = _labels(source), _labels(target)
    return {source_name[i]: None if (which := found.get(i)) is None else target_name[which] for i in range(len(source))}


def read_categories(where: str | os.PathLike) -> tuple[list[Category], dict[int, list[str]]]:
    """The categories of a data set, by id, and the synonyms that its JSON gives: category id -> names.

    Args:
      where: as `sources.open_annotations`, or 'lvis_v1', 'lvis_v0.5' for those in this package. No image is looked for.

    Raises:
      FileNotFoundError, AnnotationError: as `open_annotations`.
    """
    text = os.fspath(where)
    if text in PACKAGED_SOURCES:
        return packaged_categories(text), {}
    if text.startswith(PREFIX):
        return open_annotations(text).categories, {}
    path = as_path(where)
    if is_prepared(path):
        return [Category(**category) for category in read_index(path).info["categories"]], {}
    listed: list[dict] = []
    drop = {"annotations": _drop, "images": _drop}
    rest = stream_json(path, drop | {"categories": listed.append})
    usable = [c for c in listed if isinstance(c, dict) and is_id(c.get("id")) and isinstance(c.get("name"), str)]
    if not usable or len(usable) < len(listed):
        raise AnnotationError(
            f"{path}: {len(listed) - len(usable)} of {len(listed)} categories have no integer id and name, expected a "
            f"list of them under 'categories' (keys: {sorted(rest)})"
        )
    usable.sort(key=lambda c: c["id"])
    synsets = [c["synset"] if isinstance(c.get("synset"), str) else "" for c in usable]
    categories = [Category(c["id"], c["name"], s, "f", 0, 0) for c, s in zip(usable, synsets, strict=True)]
    return categories, {c["id"]: c["synonyms"] for c in usable if isinstance(c.get("synonyms"), list)}


def _drop(element: Any) -> None:
    pass


def _read_pairs(path: os.PathLike) -> list[tuple[str, Any]]:
    """The entries of a class map, in its order."""

    def entries(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise AnnotationError(f"{path} has the key {twice[0]!r} twice")
        return pairs

    try:
        pairs = json.loads(read_file(path), object_pairs_hook=entries)
    except AnnotationError:
        raise
    except ValueError as error:
        raise AnnotationError(f"{path} is no JSON: {error}") from error
    # The hook makes a list of an object; a JSON list of anything else has no pairs with a text in front.
    is_object = isinstance(pairs, list) and all(isinstance(p, tuple) and len(p) == 2 for p in pairs)
    if not is_object or not pairs:
        raise AnnotationError(f"{path}: expected an object {{category: category of the main set}}, not empty")
    for key, value in pairs:
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise AnnotationError(
                f"{path}: key {key!r} has the value {str(value)[:60]!r}, expected a name, an id or null"
            )
    return pairs


def _finder(categories: Sequence[Category], whose: str) -> Callable[[str | int], int]:
    """A function from a name or an id to the class; KeyError with what is wrong."""
    by_name: dict[str, list[int]] = {}
    for i, category in enumerate(categories):
        by_name.setdefault(category.name, []).append(i)
    by_id = {category.id: i for i, category in enumerate(categories)}

    def find(name: str | int) -> int:
        places = by_name.get(name, []) if isinstance(name, str) else []
        if len(places) == 1:
            return places[0]
        if places:
            ids = ", ".join(str(categories[i].id) for i in places)
            raise KeyError(f"names {name!r}, which {len(places)} categories of {whose} have (ids {ids}): give the id")
        if isinstance(name, int) or re.fullmatch(r"\d+", name):
            if (found := by_id.get(int(name))) is not None:
                return found
            raise KeyError(f"names id {int(name)}, which {whose} does not have")
        near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.5)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"names {name!r}, which {whose} does not have{hint}")

    return find


def _plain(name: str) -> str:
    """Lower case, one space for underscores, hyphens and spaces."""
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


def _unqualified(name: str) -> str:
    return re.sub(r"\([^()]*\)", " ", name)


def _labels(categories: Sequence[Category]) -> list[str]:
    """What a class map calls each category: its name, or its id where several have that name."""
    often = Counter(category.name for category in categories)
    return [c.name if often[c.name] == 1 else str(c.id) for c in categories]


def _first(faults: Iterable[str]) -> str:
    faults = list(faults)
    return "; ".join(faults[:_SHOWN]) + (f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.data.class_map",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = "annotation JSON, prepared records, tfds:lvis/SPLIT, lvis_v1 or lvis_v0.5"
    parser.add_argument("--source", required=True, help=f"the set that is mapped: {kinds}")
    parser.add_argument("--target", required=True, help=f"the main set: {kinds}")
    parser.add_argument("--out", required=True, help="the class map to write")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    options = parser.parse_args(arguments)
    try:
        out = as_path(options.out)
        if out.exists() and not options.force:
            raise AnnotationError(f"{out} is there, maybe with your edits: choose another --out, or --force")
        source, _ = read_categories(options.source)
        target, synonyms = read_categories(options.target)
        proposed = propose(source, target, synonyms)
        with write_whole(out) as stream:
            stream.write((json.dumps(proposed, indent=1, ensure_ascii=False) + "\n").encode())
    except (AnnotationError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    mapped = {key: value for key, value in proposed.items() if value is not None}
    print("\n".join(f"{key} -> {value}" for key, value in mapped.items()))
    print(f"{out}: {len(mapped)} of {len(source)} categories, to {len(set(mapped.values()))} of {len(target)}; edit it")


if __name__ == "__main__":
    main()
