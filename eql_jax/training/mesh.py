"""Devices: the mesh ('data', 'model'), where state and batches lie on it, and a thread that keeps it fed.

The batch is sharded over 'data', classifiers over 'model' (see `sharding`), everything else is replicated. With several
hosts each gives its own rows.
"""

import collections
import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from eql_jax.training.errors import ConfigError
from eql_jax.training.sharding import gathered

HOST_ONLY = ("original_size",)  # batch keys that no device reads


class DeviceBatch(NamedTuple):
    """arrays: the batch on the devices; image_ids: int64 NumPy [rows of this host], to name images in messages."""

    arrays: dict[str, jax.Array]
    image_ids: np.ndarray


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default all of all hosts, with the axis sizes of `config.mesh` (-1: all that are left).

    Raises:
        ConfigError: the sizes do not multiply to the number of devices, or the devices along 'model' belong to several
            processes.
    """
    devices = jax.devices() if devices is None else list(devices)
    count = len(devices)
    sizes = {axis: config.mesh[axis] for axis in ("data", "model")}
    for axis, other in (("data", "model"), ("model", "data")):
        if sizes[axis] == -1:
            sizes[axis] = max(1, count // max(1, sizes[other]))
    if sizes["data"] * sizes["model"] != count:
        raise ConfigError(
            f"config.mesh.data x config.mesh.model is {config.mesh.data} x {config.mesh.model}; expected to use all "
            f"{count} devices ({devices[0].device_kind}); -1 takes all that are left"
        )
    shape = (sizes["data"], sizes["model"])
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)
    check_rows(mesh.devices)
    return mesh


def check_rows(grid: np.ndarray) -> None:
    """Raises ConfigError unless each row of devices [data, model] belongs to one process, as many rows to each.

    The devices of a row get the same images, and every process gives images of its own.
    """
    owners = [sorted({device.process_index for device in row}) for row in grid]
    rows = collections.Counter(processes[0] for processes in owners)
    if any(len(processes) > 1 for processes in owners) or len(set(rows.values())) > 1:
        own = grid.size // len({device.process_index for device in grid.flat})
        raise ConfigError(
            f"config.mesh.model is {grid.shape[1]}, and a process has {own} devices; expected the devices that share "
            f"the classes to belong to one process. Take a config.mesh.model that divides {own}, or start one process "
            "for all devices of a machine"
        )


def local_mesh() -> Mesh:
    """A mesh over this host's devices, all on 'data': every host evaluates images of its own."""
    devices = np.array(jax.local_devices()).reshape(-1, 1)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def to_local_devices(tree: Any) -> Any:
    """A tree of arrays of a training mesh (or of NumPy ones), whole on every device of `local_mesh()`."""
    if jax.process_count() > 1:
        tree = jax.device_get(gathered(tree))
    return jax.device_put(tree, replicated(local_mesh()))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over 'data', the other dimensions whole."""
    return NamedSharding(mesh, P("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def check_batch_sizes(config: ConfigDict, mesh: Mesh | None = None) -> None:
    """Raises ConfigError unless the images of a batch spread evenly over devices, hosts and accumulated parts.

    mesh: of training; None checks the evaluation's batch only, which is spread over all devices.
    """
    needed = {"eval": (jax.device_count(), "the devices it is spread over")}
    if mesh is not None:
        devices, parts = mesh.shape["data"], config.train.gradient_accumulation
        reason = "the devices it is spread over" + (f" times gradient_accumulation {parts}" if parts > 1 else "")
        needed["train"] = (math.lcm(devices * parts, jax.process_count()), reason)
    for section, (count, reason) in needed.items():
        size = config[section].batch_size
        if size % count:
            raise ConfigError(f"config.{section}.batch_size is {size}; expected a multiple of {count}, {reason}")


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch (NumPy) as global arrays on the devices, sharded by row.

    image_id becomes uint32 (its low 32 bits: it only seeds random numbers; -1 becomes 2**32 - 1), as JAX has no int64
    by default. `original_size` stays on the host.
    """
    sharding = batch_sharding(mesh)
    arrays = {k: np.asarray(v) for k, v in batch.items() if k not in HOST_ONLY}
    if "image_id" in arrays:
        arrays["image_id"] = arrays["image_id"].astype(np.uint32)
    # The shape is said, so that rows that do not add up to it are an error and not another batch.
    hosts = len({device.process_index for device in mesh.devices.flat})
    whole = {k: (len(v) * hosts, *v.shape[1:]) for k, v in arrays.items()}
    return {k: jax.make_array_from_process_local_data(sharding, v, whole[k]) for k, v in arrays.items()}


class Prefetcher:
    """Iterates `batches` in a thread and puts up to `size` of them on the devices ahead of their use.

    An exception in `batches` is raised at the batch where it happened. `close()` (or leaving the `with`) ends the
    thread after the batch it is at.
    """

    def __init__(self, batches: Iterator[Mapping[str, np.ndarray]], mesh: Mesh, *, size: int):
        self._batches, self._mesh = batches, mesh
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(1, size))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __iter__(self) -> Iterator[DeviceBatch]:
        return self

    def __next__(self) -> DeviceBatch:
        item = self._queue.get()
        if isinstance(item, DeviceBatch):
            return item
        self._queue.put(item)  # whoever asks again gets the same answer
        raise item

    def close(self) -> None:
        """Lets the thread end; batches not yet taken are dropped."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                pass

    def _run(self) -> None:
        try:
            for batch in self._batches:
                ids = np.array(batch["image_id"])
                if not self._put(DeviceBatch(put_batch(batch, self._mesh), ids)):
                    return
            self._put(StopIteration())
        except BaseException as e:  # raised again where the batch is asked for
            self._put(e)
        finally:
            if hasattr(self._batches, "close"):
                self._batches.close()

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
