"""How many rows a host makes, and what makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from eql_jax.data.parallel import Batch, filled_batches
from eql_jax.data.tf_data import tf_batches


def batch_engine(name: str) -> Callable[..., Iterator[Batch]]:
    """What makes the batches, by config.data.engine."""
    engines = {"threads": filled_batches, "tf.data": tf_batches}
    if name not in engines:
        raise ValueError(f"data.engine is {name!r}, expected one of {', '.join(engines)}")
    return engines[name]


def rows_per_host(batch_size: int, host: int, num_hosts: int, name: str) -> int:
    if not 0 <= host < num_hosts:
        raise ValueError(f"host is {host}, expected 0 .. {num_hosts - 1} (num_hosts {num_hosts})")
    if batch_size < 1 or batch_size % num_hosts:
        raise ValueError(f"{name} is {batch_size}, expected a positive multiple of the {num_hosts} hosts")
    return batch_size // num_hosts
