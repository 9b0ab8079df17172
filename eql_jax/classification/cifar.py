"""CIFAR-10 and CIFAR-100 from TFDS, where they have been prepared before."""

from __future__ import annotations

import os

import numpy as np

from eql_jax.data.tf_data import import_tensorflow


def load_cifar(name: str, split: str, data_dir: str | os.PathLike = "") -> tuple[np.ndarray, np.ndarray, tuple]:
    """A split as arrays; nothing is downloaded.

    Args:
      name: 'cifar10' or 'cifar100'.
      split: 'train' or 'test'.
      data_dir: of TFDS; '': its default, ~/tensorflow_datasets or $TFDS_DATA_DIR.

    Returns:
      images uint8 [N, 32, 32, 3], labels int64 [N], class names; images in the order of their ids, whatever that of
      the files.

    Raises:
      FileNotFoundError: it is not there; the message has the command that prepares it.
      ImportError: TFDS or TensorFlow is not installed.
    """
    import_tensorflow()
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(f"{name} needs tensorflow-datasets: pip install 'eql_jax[train]'") from error
    builder = tfds.builder(name, data_dir=os.fspath(data_dir) or None)
    # Not builder.info.splits: where there is a network, TFDS fills it for data that was never prepared.
    if not (builder.data_path / "dataset_info.json").exists() or split not in builder.info.splits:
        option = f" --data_dir={os.fspath(data_dir)}" if data_dir else ""
        raise FileNotFoundError(
            f"TFDS {name}/{split} is not in {builder.data_dir}. To download and prepare it, run: "
            f"tfds build {name}{option}. To try the programme without it: configs/classification/synthetic_seql.py"
        )
    label_of = builder.info.features["label"]
    rows = list(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))
    rows.sort(key=lambda row: row["id"])
    images = np.stack([row["image"] for row in rows])
    labels = np.array([row["label"] for row in rows], np.int64)
    return images, labels, tuple(label_of.names)
