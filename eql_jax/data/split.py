"""Splits an annotation file into one for training and one for validation, by image.

    python -m eql_jax.data.split --annotations all.json --val 0.2 --out splits

writes splits/train.json and splits/val.json. Which image goes where depends on its id and --seed only, so that images
which are added later move nothing. Every class keeps its id; both files list all classes. The counts and letters that
a class may state are those of the whole file and are left out: they are counted anew from each file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eql_jax.data.files import write_whole
from eql_jax.data.json_file import stream_json
from eql_jax.data.transforms import random_stream
from eql_jax.data.validation import AnnotationError

_COUNTED = ("image_count", "instance_count", "frequency")


class Split(NamedTuple):
    """A content of an annotation file each."""

    train: dict
    val: dict


def split_annotations(content: dict, *, val: float, seed: int = 0) -> Split:
    """Splits the content of an LVIS or COCO JSON.

    Args:
      content: as `json.load` gives it; it is not changed.
      val: about this share of the images goes to validation, 0 < val < 1.
      seed: another one gives another split.

    Raises:
      AnnotationError: a list is missing, an image has no integer id, or one side would be empty.
    """
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise AnnotationError(f"expected a list under {key!r}, found keys {sorted(content)}")
        faulty = [record for record in content[key] if not isinstance(record, dict)]
        if faulty:
            raise AnnotationError(f"expected objects in the list {key!r}, found {str(faulty[0])[:80]}")
    for image in content["images"]:
        if not isinstance(image.get("id"), int):
            raise AnnotationError(f"expected images with an integer id, found {str(image)[:80]}")
    chosen = {image["id"] for image in content["images"] if random_stream(seed, image["id"]).random() < val}
    categories = [{k: v for k, v in category.items() if k not in _COUNTED} for category in content["categories"]]
    sides = []
    for wanted in (False, True):
        images = [image for image in content["images"] if (image["id"] in chosen) is wanted]
        if not images:
            raise AnnotationError(
                f"of {len(content['images'])} images none would be for {'validation' if wanted else 'training'} with "
                f"--val {val} and --seed {seed}: choose others"
            )
        ids = {image["id"] for image in images}
        annotations = [a for a in content["annotations"] if a.get("image_id") in ids]
        sides.append({**content, "images": images, "annotations": annotations, "categories": categories})
    return Split(*sides)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eql_jax.data.split", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--annotations", required=True, type=Path, help="LVIS or COCO instance JSON")
    parser.add_argument("--val", type=float, default=0.2, help="share of the images for validation (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--out", required=True, type=Path, help="folder for train.json and val.json")
    options = parser.parse_args(arguments)
    if not 0 < options.val < 1:
        parser.error(f"--val is {options.val}, expected a share between 0 and 1")
    try:
        content = stream_json(options.annotations, {})
        try:
            split = split_annotations(content, val=options.val, seed=options.seed)
        except AnnotationError as error:
            raise AnnotationError(f"{options.annotations}: {error}") from error
        targets = [options.out / f"{name}.json" for name in Split._fields]
        if options.annotations.resolve() in [target.resolve() for target in targets]:
            raise AnnotationError(f"--out {options.out} would overwrite {options.annotations}: choose another folder")
        options.out.mkdir(parents=True, exist_ok=True)
        for path, side in zip(targets, split, strict=True):
            with write_whole(path) as stream:
                stream.write(json.dumps(side).encode())
            print(f"{path}: {len(side['images'])} images, {len(side['annotations'])} objects")
    except (AnnotationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
