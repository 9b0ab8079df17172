"""Rows made in parallel and stacked to batches, in order: with tf.data, or with plain threads.

A row is a dict of arrays made by `load_row(position)`; the rows of a batch are consecutive positions and have equal
shapes, those of different batches may differ. `load_row` is called from several threads. Both functions are generators:
nothing starts before the first `next`, `close()` stops the workers, and an exception in `load_row` comes out of `next`
as it was raised.
"""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

Row = dict[str, np.ndarray]
LoadRow = Callable[[int], Row]


def tf_batches(
    load_row: LoadRow,
    *,
    dtypes: Mapping[str, str],
    first: int,
    count: int | None,
    rows_per_batch: int,
    workers: int,
    prefetch: int,
) -> Iterator[Row]:
    """Yields batches through tf.data. The arrays are read-only.

    Args:
      load_row: position -> row with the keys and types of `dtypes`.
      dtypes: key -> NumPy type.
      first: position of the first row.
      count: number of rows, a multiple of rows_per_batch; None is endless.
      rows_per_batch: B.
      workers: rows made at the same time.
      prefetch: batches kept ready, at least 1.

    Raises:
      ImportError: TensorFlow is not installed.
    """
    tf = import_tensorflow()
    failures: list[Exception] = []

    def make(position: np.ndarray) -> list[np.ndarray]:
        try:
            row = load_row(int(position))
        except Exception as error:
            failures.append(error)
            raise
        return [np.asarray(row[key], dtype) for key, dtype in dtypes.items()]

    def make_in_graph(position):
        values = tf.numpy_function(make, [position], [tf.as_dtype(dtype) for dtype in dtypes.values()])
        return dict(zip(dtypes, values, strict=True))

    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = workers + 1
    options.threading.max_intra_op_parallelism = 1
    last = np.iinfo(np.int64).max if count is None else first + count
    dataset = tf.data.Dataset.range(first, last)
    dataset = dataset.map(make_in_graph, num_parallel_calls=workers, deterministic=True)
    dataset = dataset.batch(rows_per_batch, drop_remainder=True).prefetch(max(1, prefetch)).with_options(options)
    batches = dataset.as_numpy_iterator()
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


def threaded_batches(
    load_row: LoadRow,
    *,
    dtypes: Mapping[str, str],
    first: int,
    count: int,
    rows_per_batch: int,
    workers: int,
    prefetch: int,
) -> Iterator[Row]:
    """Yields the same batches as `tf_batches`, with threads; needs no TensorFlow. For the arguments see there."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="load_row")
    pending: collections.deque[Future[Row]] = collections.deque()
    submitted = first
    try:
        for _ in range(count // rows_per_batch):
            ahead = min(first + count, submitted + rows_per_batch * (max(1, prefetch) + 1) - len(pending))
            while submitted < ahead:
                pending.append(pool.submit(load_row, submitted))
                submitted += 1
            rows = [pending.popleft().result() for _ in range(rows_per_batch)]
            yield {key: np.stack([np.asarray(row[key], dtype) for row in rows]) for key, dtype in dtypes.items()}
    finally:
        pool.shutdown(cancel_futures=True)


def import_tensorflow():
    """Returns the module tensorflow, kept off accelerators: those are for JAX."""
    # Read once, at import. It feeds batches here, so its remarks on how it would compute are of no interest.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "training and evaluation batches are made with tf.data, and TensorFlow is not installed: "
            "pip install 'eql_jax[train]'. Prediction works without it."
        ) from error
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except (RuntimeError, ValueError) as error:  # TensorFlow was in use before, by someone else
            logging.getLogger(__name__).warning("TensorFlow keeps its %s devices: %s", kind, error)
    return tf
