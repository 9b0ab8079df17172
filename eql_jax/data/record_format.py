"""An image with its objects as the bytes of one record, and back, bit for bit.

A record is a msgpack map: the image file's bytes as they are, numbers and text as msgpack has them, arrays as their
little-endian bytes. Reading it takes no time to speak of beside decoding the JPEG. The same image gives the same bytes.
"""

from __future__ import annotations

import msgpack
import numpy as np

from eql_jax.data.files import FilePath
from eql_jax.data.record_file import RecordError
from eql_jax.data.records import ImageRecord, Objects
from eql_jax.data.segmentations import Packed, Segmentations

# Key -> type of the array; the order is that of the map.
_IMAGE_ARRAYS = {"neg_classes": "<i4", "not_exhaustive_classes": "<i4"}
_OBJECT_ARRAYS = {"ids": "<i8", "boxes": "<f4", "classes": "<i4", "ignore": "|b1", "areas": "<f4"}
_MASK_ARRAYS = {"points": "<i4", "polygons": "<i4", "runs": "<i4", "num_runs": "<i4"}


def encode_record(record: ImageRecord, name: str) -> bytes:
    """Packs an image.

    Args:
      record: with `encoded`.
      name: of the image file, below the image folder.
    """
    content = {"id": record.id, "name": name, "width": record.width, "height": record.height}
    content |= _as_bytes(record, _IMAGE_ARRAYS) | _as_bytes(record.objects, _OBJECT_ARRAYS)
    if record.objects.segmentations is not None:
        content |= _encode_masks(record.objects.segmentations.packed)
    content["image"] = record.encoded
    return msgpack.packb(content)


def decode_record(data: bytes, folder: FilePath, *, masks: bool = True) -> ImageRecord:
    """Unpacks an image; its arrays are read-only. Its path is below `folder`.

    Args:
      data: of `encode_record`.
      folder: of the data set.
      masks: False: the masks are left out; a record that was made without has none in any case.

    Raises:
      RecordError: the bytes are no such record.
    """
    try:
        content = msgpack.unpackb(data)
        objects = _arrays(content, _OBJECT_ARRAYS)
        objects["boxes"] = objects["boxes"].reshape(-1, 4)
        return ImageRecord(
            id=content["id"],
            path=folder / content["name"],
            width=content["width"],
            height=content["height"],
            **_arrays(content, _IMAGE_ARRAYS),
            objects=Objects(
                **objects, segmentations=_decode_masks(content) if masks and "mask_size" in content else None
            ),
            encoded=content["image"],
        )
    except (KeyError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise RecordError(f"it holds no image of this format ({type(error).__name__}: {error})") from error


def _encode_masks(packed: Packed) -> dict[str, object]:
    content = _as_bytes(packed, _MASK_ARRAYS) | {"mask_size": [packed.height, packed.width]}
    exact = packed.coordinates.dtype == np.float64
    content["pixels" if exact else "hundredths"] = packed.coordinates.astype("<f8" if exact else "<i4").tobytes()
    return content


def _decode_masks(content: dict) -> Segmentations:
    coordinates = (
        np.frombuffer(content["pixels"], "<f8") if "pixels" in content else np.frombuffer(content["hundredths"], "<i4")
    )
    height, width = content["mask_size"]
    return Segmentations(Packed(coordinates=coordinates, **_arrays(content, _MASK_ARRAYS), height=height, width=width))


def _as_bytes(source: ImageRecord | Objects | Packed, types: dict[str, str]) -> dict[str, bytes]:
    return {key: np.asarray(getattr(source, key)).astype(dtype).tobytes() for key, dtype in types.items()}


def _arrays(content: dict, types: dict[str, str]) -> dict[str, np.ndarray]:
    return {key: np.frombuffer(content[key], dtype) for key, dtype in types.items()}
