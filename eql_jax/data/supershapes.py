"""The embedded data set: closed shapes in long-tailed frequencies, with annotations in LVIS v1 JSON.

    python -m eql_jax.data.supershapes --out DIR [--num_classes K --train_images N --val_images N --image_size S
        --seed S --difficulty normal|hard --workers N]

makes DIR/train.json, DIR/val.json and the pictures they name, DIR/train/*.jpg and DIR/val/*.jpg. Classes differ in
shape only: colour, texture, size, rotation, reflection and position are random and the same for all. Image counts of
the training split follow LVIS v1: K evenly spaced quantiles of its sorted counts, scaled to the number of images. Which
class is frequent is drawn by the seed. In the validation split all classes are in the same number of images, so that
the AP of rare classes is measured on as many objects as that of frequent ones.

The same arguments give the same bytes, whatever the number of worker processes (and with the same versions of NumPy
and OpenCV).
"""

import argparse
import json
import os
import shutil
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from eql_jax.data.records import frequency_letter
from eql_jax.data.shapes.catalogue import MAX_CLASSES, ShapeClass, shape_classes
from eql_jax.data.shapes.make import SPLITS, Job, Picture, make_pictures, picture_name
from eql_jax.data.shapes.plan import balanced_counts, long_tail_counts, spread
from eql_jax.data.shapes.scene import DIFFICULTIES

VERSION = 1  # of the pictures: a folder made by another version is not taken for the one asked for
TRAIN_NEGATIVES = 10  # verified absent classes listed per training image
LATER_ARGUMENTS = ("first_class", "val_negatives")  # 0 in data sets that were made before there were these


@dataclass(frozen=True)
class SupershapesArgs:
    """What determines the data set. Raises ValueError for values that make none."""

    num_classes: int = 40
    train_images: int = 3000
    val_images: int = 240
    image_size: int = 128
    seed: int = 0
    difficulty: str = "normal"
    first_class: int = 0  # of the catalogue: two sets of different shapes start at different ones
    val_negatives: int = 0  # verified absent classes listed per validation image, at most; 0: half of the classes

    def __post_init__(self):
        ranges = {
            "num_classes": (20, MAX_CLASSES),
            "train_images": (1, 10**7),
            "val_images": (1, 10**7),
            "image_size": (48, 4096),
            "seed": (0, 2**63 - 1),
            "first_class": (0, MAX_CLASSES - 20),
            "val_negatives": (0, MAX_CLASSES),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise ValueError(f"supershapes: {name}={value!r}, expected a whole number from {low} to {high}")
        if self.first_class + self.num_classes > MAX_CLASSES:
            raise ValueError(
                f"supershapes: num_classes={self.num_classes} from first_class={self.first_class} on, but there are "
                f"{MAX_CLASSES} classes"
            )
        if self.difficulty not in DIFFICULTIES:
            raise ValueError(f"supershapes: difficulty={self.difficulty!r}, expected one of {sorted(DIFFICULTIES)}")

    def noted(self) -> dict[str, int | str]:
        """What a data set notes of its arguments; those that came later are left out where they change nothing."""
        values = {"version": VERSION, **asdict(self)}
        return {k: v for k, v in values.items() if v or k not in LATER_ARGUMENTS}


class SupershapesPaths(NamedTuple):
    """Annotation files, and the folder below which the images of both are found by coco_url."""

    train_annotations: Path
    val_annotations: Path
    images: Path

    @classmethod
    def of(cls, out: str | Path) -> "SupershapesPaths":
        """Paths of the data set in folder `out`, made or not."""
        return cls(Path(out) / "train.json", Path(out) / "val.json", Path(out))


def ensure_supershapes(out: str | Path, *, workers: int = 0, progress: bool = True, **arguments) -> SupershapesPaths:
    """Makes the data set in folder `out` unless it is there.

    It is made in a folder beside `out` that takes its name when all is written, so `out` is complete or does not exist.
    A set of the same arguments of which files are missing is made anew.

    Args:
      workers: processes; 0 for as many as there are cores.
      arguments: fields of SupershapesArgs.

    Raises:
      ValueError: a bad argument, or `out` holds a data set made with other arguments (they are listed).
      FileExistsError: `out` holds something else.
    """
    try:
        args = SupershapesArgs(**arguments)
    except TypeError:
        unknown = sorted(set(arguments) - set(SupershapesArgs.__dataclass_fields__))
        known = sorted(SupershapesArgs.__dataclass_fields__)
        raise ValueError(f"supershapes: unknown argument {', '.join(unknown)}; there are {', '.join(known)}") from None
    if workers < 0:
        raise ValueError(f"supershapes: workers={workers}, expected 0 (as many as there are cores) or more")
    out = Path(os.path.abspath(out))  # "x/.." must not confuse the folder's name
    paths = SupershapesPaths.of(out)
    if _is_complete(out, args):
        return paths
    workers = workers or _cores()
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    partial = out.parent / f".{out.name}.partial-{socket.gethostname()}-{os.getpid()}"
    try:
        _make(partial, args, workers=workers, progress=progress)
        if not _is_complete(out, args):  # another process may have been faster
            _install(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return paths


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _install(partial: Path, out: Path) -> None:
    """Gives a finished folder its name. `out` is absent, empty, or holds a part of the same data set."""
    if out.exists() and not any(out.iterdir()):
        out.rmdir()
    if not out.exists():
        partial.rename(out)
        return
    for split in SPLITS:
        if (out / split).exists():
            shutil.rmtree(out / split)
    # Annotations first: should this be cut off, they tell what the folder was to hold.
    for name in ("train.json", "val.json", *SPLITS):
        (partial / name).replace(out / name)


# ------------------------------------------------------------------ what is there already


def _is_complete(out: Path, args: SupershapesArgs) -> bool:
    """Whether `out` holds this data set; False when it is absent, empty or half there. Raises when it holds another."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    made_with = _arguments_of(out / "train.json") or _arguments_of(out / "val.json")
    if made_with is None:
        raise FileExistsError(
            f"{out} exists and is no supershapes data set (no train.json or val.json written by this program): name "
            "another folder, or remove it"
        )
    made_with = dict.fromkeys(LATER_ARGUMENTS, 0) | made_with
    wanted = {"version": VERSION, **asdict(args)}
    if made_with != wanted:
        different = [
            f"{key} is {made_with.get(key)!r}, asked for is {wanted.get(key)!r}"
            for key in sorted(made_with.keys() | wanted.keys())
            if made_with.get(key) != wanted.get(key)
        ]
        raise ValueError(
            f"{out} holds a supershapes data set made with other arguments: {'; '.join(different)}. Name another "
            "folder, or remove this one to have it made anew"
        )
    counts = {"train": args.train_images, "val": args.val_images}
    return all(
        (out / f"{split}.json").is_file() and (out / split).is_dir() and len(os.listdir(out / split)) == count
        for split, count in counts.items()
    )


def _arguments_of(path: Path) -> dict | None:
    """The arguments an annotation file says it was made with; reads only the beginning of the file."""
    try:
        with open(path, encoding="utf-8") as file:
            start = file.read(4096)
    except (OSError, UnicodeDecodeError):
        return None
    opening = '{"info": '
    if not start.startswith(opening):
        return None
    try:
        info, _ = json.JSONDecoder().raw_decode(start, len(opening))
    except ValueError:
        return None
    return info.get("supershapes")


def _remove_leftovers(out: Path) -> None:
    """Removes unfinished folders of processes of this machine that were killed."""
    host = socket.gethostname()
    for folder in out.parent.glob(f".{out.name}.partial-{host}-*"):
        pid = folder.name.rsplit("-", 1)[1]
        if pid.isdigit() and not _runs(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(pid: int) -> bool:
    if os.name != "posix":  # os.kill would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


# ------------------------------------------------------------------ making it


def _make(folder: Path, args: SupershapesArgs, *, workers: int, progress: bool) -> None:
    known = shape_classes(args.first_class + args.num_classes, lookalikes=DIFFICULTIES[args.difficulty].lookalikes)
    classes = known[args.first_class :]
    counts = long_tail_counts(num_classes=args.num_classes, num_images=args.train_images)
    balanced = balanced_counts(num_classes=args.num_classes, num_images=args.val_images)
    rng = np.random.default_rng([args.seed, len(SPLITS)])
    counts = counts[rng.permutation(args.num_classes)]  # frequency must not follow from the shape
    plans = {
        "train": spread(rng, counts=counts, num_images=args.train_images),
        "val": spread(rng, counts=balanced, num_images=args.val_images),
    }
    letters = [frequency_letter(int(count)) for count in counts]
    negatives = {"train": TRAIN_NEGATIVES, "val": args.val_negatives or args.num_classes // 2}
    first_id = 1
    total = args.train_images + args.val_images
    quiet = 0.2 if sys.stderr.isatty() else 10  # seconds between updates; a log file needs few
    with tqdm(total=total, desc="making supershapes", unit="img", mininterval=quiet, disable=not progress) as bar:
        for split, plan in plans.items():
            (folder / split).mkdir(parents=True)
            job = Job(
                folder=folder,
                split=split,
                seed=args.seed,
                size=args.image_size,
                difficulty=args.difficulty,
                contours=[c.contour for c in classes],
                classes=[np.flatnonzero(row).tolist() for row in plan],
                negatives=negatives[split],
                first_id=first_id,
                indices=range(len(plan)),
            )
            pictures: list[Picture | None] = [None] * len(plan)
            for picture in make_pictures(job, workers=workers):
                pictures[picture.index] = picture
                bar.update()
            document = _document(job, pictures, classes, letters, args)
            with open(folder / f"{split}.json", "w", encoding="utf-8") as file:
                file.write(json.dumps(document))
            first_id += len(plan)


def _document(
    job: Job, pictures: list[Picture], classes: list[ShapeClass], letters: list[str], args: SupershapesArgs
) -> dict:
    """The LVIS v1 JSON of a split. "info" comes first: `_arguments_of` relies on it."""
    images, annotations = [], []
    in_images, instances = [0] * len(classes), [0] * len(classes)
    for picture in pictures:
        image_id = job.first_id + picture.index
        images.append(
            {
                "id": image_id,
                "width": job.size,
                "height": job.size,
                "license": 1,
                "date_captured": "2020-01-01 00:00:00",
                "coco_url": f"http://supershapes.invalid/{job.split}/{picture_name(image_id)}",
                "flickr_url": "",
                "neg_category_ids": [c + 1 for c in picture.negatives],
                "not_exhaustive_category_ids": [c + 1 for c in picture.not_exhaustive],
            }
        )
        for k in {o.class_index for o in picture.objects}:
            in_images[k] += 1
        for o in picture.objects:
            instances[o.class_index] += 1
            area, box = _area_and_box(o.polygons)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": o.class_index + 1,
                    "area": area,
                    "bbox": box,
                    "segmentation": o.polygons,
                }
            )
    categories = [
        {
            "id": k + 1,
            "name": c.name,
            "synset": c.synset,
            "synonyms": [c.name],
            "def": c.text,
            "frequency": letters[k],
            "image_count": in_images[k],
            "instance_count": instances[k],
        }
        for k, c in enumerate(classes)
    ]
    info = {
        "description": f"supershapes, {job.split}: closed shapes in the frequencies of LVIS v1, made by eql_jax",
        "url": "",
        "version": "v1",
        "year": 2020,
        "contributor": "eql_jax",
        "date_created": "2020-01-01 00:00:00",
        "supershapes": args.noted(),
    }
    licenses = [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}]
    return {
        "info": info,
        "licenses": licenses,
        "categories": categories,
        "images": images,
        "annotations": annotations,
    }


def _area_and_box(polygons: list[list[float]]) -> tuple[float, list[float]]:
    """Area of polygons that do not overlap, and their common box [x, y, w, h]; pixels."""
    area, corners = 0.0, []
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        x, y = points.T
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        corners += [points.min(0), points.max(0)]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    return round(area, 2), [round(float(v), 2) for v in (*low, *(high - low))]


def main(argv: list[str] | None = None) -> None:
    """Command line: see the head of this module."""
    defaults = SupershapesArgs()
    parser = argparse.ArgumentParser(prog="python -m eql_jax.data.supershapes", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", required=True, help="folder to make; nothing is done when it holds the same data set already")
    add("--num_classes", type=int, default=defaults.num_classes, help=f"20 to {MAX_CLASSES} (default: %(default)s)")
    add("--train_images", type=int, default=defaults.train_images, help="default: %(default)s")
    add("--val_images", type=int, default=defaults.val_images, help="default: %(default)s")
    add("--image_size", type=int, default=defaults.image_size, help="side in pixels (default: %(default)s)")
    add("--seed", type=int, default=defaults.seed, help="of frequencies and pictures (default: %(default)s)")
    add(
        "--difficulty",
        choices=sorted(DIFFICULTIES),
        default=defaults.difficulty,
        help="hard: groups of look-alikes, smaller objects, more covered, less contrast (default: %(default)s)",
    )
    add(
        "--first_class",
        type=int,
        default=defaults.first_class,
        help="of the catalogue of shapes; sets whose ranges do not meet have no shape in common (default: %(default)s)",
    )
    add(
        "--val_negatives",
        type=int,
        default=defaults.val_negatives,
        help="verified absent classes listed per validation image; 0 (default): half of the classes",
    )
    add("--workers", type=int, default=0, help="processes; 0 (default): as many as there are cores")
    flags = vars(parser.parse_args(argv))
    try:
        paths = ensure_supershapes(flags.pop("out"), **flags)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    with open(paths.train_annotations, encoding="utf-8") as file:
        letters = [c["frequency"] for c in json.load(file)["categories"]]
    found = ", ".join(f"{letters.count(k)} {word}" for k, word in {"r": "rare", "c": "common", "f": "frequent"}.items())
    print(f"{paths.images}: {flags['train_images']} training, {flags['val_images']} validation images; {found} classes")


if __name__ == "__main__":
    main()
