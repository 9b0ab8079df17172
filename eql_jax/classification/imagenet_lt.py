"""ImageNet-LT (Liu et al. 2019, arXiv 1904.05160) and other sets that are a text file of 'path label' lines.

The public lists are ImageNet_LT_train.txt (115,846 images), ImageNet_LT_val.txt and ImageNet_LT_test.txt; their paths
begin with train/ or val/, below the folder that ImageNet was unpacked to.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from eql_jax.data.files import FilePath, as_path, list_names, read_file
from eql_jax.data.images import ImageError, read_image


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Images of a list.

    Attributes:
      file: the list.
      paths: N, below `folder`.
      labels: int32 [N], 0..K-1, of which each occurs.
    """

    file: FilePath
    folder: FilePath
    paths: tuple[str, ...]
    labels: np.ndarray

    @classmethod
    def load(cls, file: str | os.PathLike, folder: str | os.PathLike) -> ImageList:
        """Reads a list and looks whether its images are there, one listing for each folder.

        Raises:
          FileNotFoundError: no list, no folder, or images that are missing: the first, with its line.
          ValueError: a line that is not 'path label', a label without an image, a path that leads out of the folder.
        """
        file, folder = as_path(file), as_path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"image folder {folder} does not exist or is no folder")
        paths, labels, numbers = [], [], []
        for number, line in enumerate(_lines(file), start=1):
            if not line.strip():
                continue
            path, _, label = line.strip().rpartition(" ")
            where = f"{file}, line {number}"
            if not path or not (label.isascii() and label.isdigit()):
                raise ValueError(
                    f"{where}: {line.strip()!r}; expected 'path label', such as 'train/n01440764/x.JPEG 0'"
                )
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{where}: {path} leads out of the image folder; expected a path below it")
            paths.append(path.strip())
            labels.append(int(label))
            numbers.append(number)
        if not paths:
            raise ValueError(f"{file} names no image; expected lines 'path label'")
        _check_labels(file, labels)
        _check_files(file, folder, paths, numbers)
        return cls(file, folder, tuple(paths), np.array(labels, np.int32))

    @property
    def class_names(self) -> tuple[str, ...]:
        """K; the last folder of the class's first image where it has one per class (n01440764), else the number."""
        num_classes = int(self.labels.max()) + 1
        names = [str(k) for k in range(num_classes)]
        first = np.unique(self.labels, return_index=True)[1]
        folders = [PurePosixPath(self.paths[i]).parent.name for i in first.tolist()]
        return tuple(folders if all(folders) and len(set(folders)) == num_classes else names)

    def read(self, i: int) -> Image.Image:
        """Image i, RGB. Raises ImageError with the file's path."""
        path = self.folder / self.paths[i]
        try:
            return read_image(path)
        except ImageError as error:
            error.file = path
            raise


def _lines(file: FilePath) -> list[str]:
    try:
        return read_file(file).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error}") from error


def _check_labels(file: FilePath, labels: list[int]) -> None:
    known = set(labels)
    missing = next(k for k in range(len(known) + 1) if k not in known)
    if missing < max(known):
        raise ValueError(
            f"{file} has labels up to {max(known)}, but {len(known)} different ones; {missing} has no image. Expected "
            "0 .. K - 1, each with an image"
        )


def _check_files(file: FilePath, folder: FilePath, paths: list[str], numbers: list[int]) -> None:
    listings: dict[str, frozenset[str]] = {}
    missing = []
    for path, number in zip(paths, numbers, strict=True):
        parent, _, name = path.rpartition("/")
        if parent not in listings:
            listings[parent] = list_names(folder / parent)
        if name not in listings[parent]:
            missing.append((path, number))
    if missing:
        path, number = missing[0]
        raise FileNotFoundError(
            f"{file}, line {number}: {folder / path} does not exist; {len(missing)} of {len(paths)} images are "
            "missing. Expected the folder that holds train/ and val/ of ImageNet"
        )
