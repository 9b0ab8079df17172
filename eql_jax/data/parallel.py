"""Batches filled in parallel, in order.

A batch is a dict of arrays whose first axis is the rows. `new_batch(number)` makes batch `number`, empty;
`fill_row(position, row)` fills row position % B of batch position // B, given as views of its arrays, so that no row is
copied into its batch. Arrays made by `np.zeros` cost nothing where they stay zero, as most of the padded masks do.

Threads and not processes: Pillow, OpenCV and the larger NumPy calls release the interpreter lock. What is left bounds a
process to some 300 rows a second (docs/performance.md). tf.data holds the lock as long, and copies each row twice.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

Batch = dict[str, np.ndarray]
Row = dict[str, np.ndarray]


def filled_batches(
    new_batch: Callable[[int], Batch],
    fill_row: Callable[[int, Row], None],
    *,
    first: int,
    count: int | None,
    rows_per_batch: int,
    workers: int,
    prefetch: int,
) -> Iterator[Batch]:
    """Yields batches. Nothing starts before the first `next`; `close()` stops the workers.

    Args:
      new_batch: batch number -> arrays [B, ...]; called in order, from the thread that asks for batches.
      fill_row: called from several threads. What it raises comes out of `next` at the batch where it happened.
      first: number of the first batch.
      count: number of batches; None is endless.
      rows_per_batch: B.
      workers: rows made at the same time.
      prefetch: batches kept ready, at least 1.
    """
    # So many batches under way that no worker waits for one to be asked for.
    ahead = max(1, prefetch) + -(-workers // rows_per_batch)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fill_row")
    pending: collections.deque[tuple[Batch, list[Future[None]]]] = collections.deque()
    started = 0
    try:
        while count is None or started < count or pending:
            while len(pending) < ahead and (count is None or started < count):
                number = first + started
                batch = new_batch(number)
                pending.append((batch, _fill(pool, fill_row, batch, number * rows_per_batch, rows_per_batch)))
                started += 1
            batch, rows = pending.popleft()
            for row in rows:
                row.result()
            del rows
            yield batch
            del batch  # not kept alive while the next is waited for
    finally:
        pool.shutdown(cancel_futures=True)


def _fill(
    pool: ThreadPoolExecutor, fill_row: Callable[[int, Row], None], batch: Batch, position: int, rows: int
) -> list[Future[None]]:
    return [
        pool.submit(fill_row, position + i, {key: values[i, ...] for key, values in batch.items()}) for i in range(rows)
    ]


def available_cores() -> int:
    """The processor cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or `taskset` may have fewer than the machine
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
