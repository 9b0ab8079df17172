"""The same batches through tf.data, for pipelines that live there.

`parallel.filled_batches` fills them; tf.data takes them over, one copy each, and hands them on. A tf.data map over rows
would copy each twice and hold the interpreter lock for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

from eql_jax.data.parallel import Batch, Row, filled_batches


def tf_dataset(new_batch: Callable[[int], Batch], fill_row: Callable[[int, Row], None], *, first: int, **options):
    """Returns a `tf.data.Dataset` of batches, dicts of tensors. For the arguments see `parallel.filled_batches`.

    Raises:
      ImportError: TensorFlow is not installed.
    """
    tf = import_tensorflow()
    signature = {}
    for key, values in new_batch(first).items():
        shape = list(values.shape)
        if key.rpartition("/")[2] == "image":
            shape[1:3] = None, None  # the bucket's
        signature[key] = tf.TensorSpec(shape, values.dtype)
    dataset = tf.data.Dataset.from_generator(
        lambda: filled_batches(new_batch, fill_row, first=first, **options), output_signature=signature
    )
    return dataset.prefetch(1)


def tf_batches(new_batch: Callable[[int], Batch], fill_row: Callable[[int, Row], None], **options) -> Iterator[Batch]:
    """Yields the batches of `tf_dataset` as read-only NumPy arrays; an error comes out as it was raised.

    A generator: nothing starts before the first `next`, `close()` stops the workers.
    """
    tf = import_tensorflow()
    failures: list[Exception] = []

    def fill_and_note(position: int, row: Row) -> None:
        try:
            fill_row(position, row)
        except Exception as error:
            failures.append(error)
            raise

    batches = tf_dataset(new_batch, fill_and_note, **options).as_numpy_iterator()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            if failures:
                raise failures[0] from None
            raise RuntimeError(f"tf.data failed: {error.message}") from error
        yield batch


def import_tensorflow():
    """Returns the module tensorflow, kept off accelerators: those are for JAX.

    Raises:
      ImportError: it is not installed.
    """
    # Read once, at import. It feeds batches here, so its remarks on how it would compute are of no interest.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "TensorFlow is not installed: pip install 'eql_jax[train]'. config.data.engine='threads' makes the same "
            "batches without it"
        ) from error
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except (RuntimeError, ValueError) as error:  # TensorFlow was in use before, by someone else
            logging.getLogger(__name__).warning("TensorFlow keeps its %s devices: %s", kind, error)
    return tf
