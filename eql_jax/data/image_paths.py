"""Finding image files by what LVIS and COCO records say about them."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from eql_jax.data.files import as_path, list_names


class ImageFinder:
    """Looks image records up below a folder, local or remote. Each folder is listed once, not asked once per image."""

    def __init__(self, images_dir: str | os.PathLike, *, check_folder: bool = True):
        """Raises FileNotFoundError when check_folder and the folder does not exist."""
        self.images_dir = as_path(images_dir)
        if check_folder and not self.images_dir.is_dir():
            raise FileNotFoundError(f"image folder {self.images_dir} does not exist or is no folder")
        self._listings: dict[str, frozenset[str]] = {}

    def candidates(self, image: dict) -> list[PurePosixPath]:
        """Returns the relative paths a record may be stored under, best first.

        coco_url's last two parts (train2017/000000000139.jpg: LVIS v1 puts images of both COCO splits into each of its
        own), its last part (a flat folder), file_name as it is, its last part, and the id as COCO names it.
        """
        names: list[PurePosixPath] = []
        url, file_name = image.get("coco_url"), image.get("file_name")
        if isinstance(url, str) and url:
            parts = PurePosixPath(urlsplit(url).path).parts
            names += [PurePosixPath(*parts[-2:]), PurePosixPath(parts[-1])] if parts else []
        if isinstance(file_name, str) and file_name:
            names += [PurePosixPath(file_name), PurePosixPath(PurePosixPath(file_name).name)]
        names.append(PurePosixPath(f"{image['id']:012d}.jpg"))
        # A record must not lead out of the folder.
        inside = [name for name in names if not name.is_absolute() and ".." not in name.parts]
        return list(dict.fromkeys(inside))

    def find(self, image: dict) -> PurePosixPath | None:
        """Returns the first candidate that exists, below the folder, or None."""
        for name in self.candidates(image):
            if name.name in self._listing(str(name.parent)):
                return name
        return None

    def where_looked(self, image: dict) -> str:
        """What the message of a missing image says."""
        return f"looked for {', '.join(map(str, self.candidates(image)))} in {self.images_dir}"

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            self._listings[folder] = list_names(self.images_dir / folder)
        return self._listings[folder]
