"""Several processes as one run: joined from the environment or from flags, and ended in words when one goes away.

JAX does the work: it knows the processes of Cloud TPU, GKE, Slurm, Open MPI and (with the package `kubernetes`) of a
Kubernetes Job or JobSet, its coordination service watches them, and its preemption service turns SIGTERM to any of them
into one step at which all save (`loop`). When a process dies JAX aborts the others in C++, with a stack trace; what is
added here is a last line that says what to do, and an exit status for schedulers.
"""

import argparse
import ctypes
import errno
import os
import signal
import socket
import sys
import time
import traceback
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from eql_jax.data.validation import AnnotationError
from eql_jax.training.errors import NonFiniteLossError, UserError

RESTART = 75  # EX_TEMPFAIL: not done; started again, the run goes on from its newest checkpoint
HEARTBEAT_TIMEOUT = 30  # seconds
INITIALIZATION_TIMEOUT = 300  # seconds
LINGER = 3  # seconds; see leave()

_FLAGS = ("coordinator", "num_processes", "process_id")
# In the texts of the errors (RuntimeError, that of jaxlib among them, or ValueError) that JAX raises where another
# process is gone.
_LOST = (
    "gloo",
    "connection closed by peer",
    "connection reset by peer",
    "coordination service",
    "socket closed",
    "heartbeat timeout",
    "barrier timed out",
    "barrier failed",
    "remote process exited",  # NCCL
)
_AGAIN = "Start all processes again with the same command: the run goes on from its newest checkpoint"


class LaunchError(UserError):
    """Processes that cannot be joined: flags that contradict each other, a port in use, no cluster."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `join` reads."""
    group = parser.add_argument_group("several processes (docs/scaling.md)")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="join the processes that Slurm, Open MPI, Kubernetes or Cloud TPU started; each runs the same command",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="without such a launcher: where process 0 listens")
    group.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process_id", type=int, metavar="I", help="which one this is, 0 .. N - 1")
    group.add_argument(
        "--heartbeat_timeout",
        type=int,
        default=HEARTBEAT_TIMEOUT,
        metavar="SECONDS",
        help="a process that was not heard of for so long is gone, and the others end (default: %(default)s)",
    )
    group.add_argument(
        "--initialization_timeout",
        type=int,
        default=INITIALIZATION_TIMEOUT,
        metavar="SECONDS",
        help="how long to wait for all to start (default: %(default)s)",
    )


def join(options: argparse.Namespace) -> None:
    """Joins the processes of this run, if the flags ask for it; before any other use of JAX.

    The process ends with status `RESTART` and a message if one of the others does not come or goes away later.

    Raises:
        LaunchError: flags that contradict each other, no cluster in the environment, or a port in use.
    """
    given = [name for name in _FLAGS if getattr(options, name) is not None]
    if not options.distributed and not given:
        return
    _check_flags(options, given)
    seconds = options.initialization_timeout
    _on_abort(
        f"error: not all processes came within {seconds} s. Each must be started with the same --coordinator and "
        "--num_processes and a --process_id of its own, or by the same launcher, and reach process 0 (its address and "
        "port, firewalls). --initialization_timeout=SECONDS waits longer"
    )
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            # Flags are complete; a launcher around them, say an interactive Slurm shell, has no say.
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=options.heartbeat_timeout,
        )
    except Exception as e:  # the launchers' detection has errors of many kinds
        raise _launch_error(e) from e
    _meet()
    _on_abort(
        "error: this process was ended because another one of the run is gone, or because of the fault that the lines "
        f"above tell. {_AGAIN}"
    )


def joined() -> bool:
    """Whether this process is one of several (or of one) that a launcher or flags joined."""
    return jax.distributed.is_initialized()


def end_on_sigterm() -> None:
    """SIGTERM ends this process again, which JAX's preemption service would only note: for what asks it nothing."""
    if joined():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def lost_peer(error: BaseException) -> BaseException | None:
    """Of an error and its causes the one that JAX raises where another process is gone; None without such.

    Its collectives may see that before the coordination service does.
    """
    seen: set[int] = set()
    cause: BaseException | None = error if joined() and not isinstance(error, LaunchError) else None
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = f"{type(cause).__name__} {cause}".lower()
        if isinstance(cause, RuntimeError | ValueError) and any(word in text for word in _LOST):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def tell(error: Exception) -> int:
    """Says on stderr what ended the run, with a traceback where that is a fault of the programme.

    Returns:
        The exit status: 2 for something to be put right by the user, 1 for a loss that is not finite and for faults,
        `RESTART` where another process is gone.
    """
    if (lost := lost_peer(error)) is not None:
        reason = str(lost).strip().partition("\n")[0]
        print(f"error: another process of this run is gone ({reason}). {_AGAIN}", file=sys.stderr)
        return RESTART
    if isinstance(error, UserError | AnnotationError | OSError):
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NonFiniteLossError) else 2
    traceback.print_exception(error)
    return 1


def leave(status: int, *, together: bool) -> NoReturn:
    """Ends this process.

    Args:
        status: exit status.
        together: all processes are about to leave, and wait for each other. Otherwise this one goes at once, so that
            the others notice; only the first, whose end aborts the rest, gives them `LINGER` seconds to meet the same
            error and tell it.
    """
    if not joined():
        sys.exit(status)
    if together:
        jax.distributed.shutdown()
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        sys.exit(status)
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0 and status != RESTART:
        time.sleep(LINGER)
    os._exit(status)  # sys.exit would wait for the others


def _check_flags(options: argparse.Namespace, given: list[str]) -> None:
    if given and len(given) < len(_FLAGS):
        missing = ", ".join(f"--{name}" for name in _FLAGS if name not in given)
        raise LaunchError(
            f"{missing} missing beside {', '.join(f'--{name}' for name in given)}: the three go together. Where a "
            "launcher knows the processes (Slurm, Open MPI, Kubernetes, Cloud TPU), --distributed alone is enough"
        )
    for name in ("heartbeat_timeout", "initialization_timeout"):
        if getattr(options, name) < 1:
            raise LaunchError(f"--{name} is {getattr(options, name)}; expected a number of seconds, 1 or more")
    if not given:
        return
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise LaunchError(f"--coordinator is {options.coordinator!r}; expected HOST:PORT, such as 10.0.0.1:1234")
    if not 0 <= options.process_id < options.num_processes:
        raise LaunchError(
            f"--process_id is {options.process_id} with --num_processes {options.num_processes}; expected 0 to "
            "num_processes - 1"
        )
    if options.process_id == 0:
        _check_port(int(port))


def _check_port(port: int) -> None:
    """Raises LaunchError if it is in use. JAX says so, too, but may crash over what it has half made (jaxlib 0.10)."""
    try:
        with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise _port_in_use(str(port)) from e


def _port_in_use(port: str) -> LaunchError:
    return LaunchError(
        f"process 0 cannot listen on the coordinator's port, {port}: it is in use, perhaps by processes of an earlier "
        "run that are still there. End them or take another port, the same for all processes"
    )


def _launch_error(error: Exception) -> LaunchError:
    text = f"{type(error).__name__}: {error}".strip()
    if "should be defined" in text or "must be defined" in text:
        return LaunchError(
            "--distributed found no launcher that JAX knows (Slurm, Open MPI, Cloud TPU; Kubernetes with `pip install "
            "kubernetes`). Say it with --coordinator=HOST:PORT --num_processes=N --process_id=I, and leave "
            "--distributed out for one process"
        )
    if "Failed to start RPC server" in text:
        return _port_in_use("chosen by the launcher ($JAX_COORDINATOR_PORT chooses another)")
    return LaunchError(f"the processes could not be joined: {text}")


def _meet() -> None:
    """The first collectives, here where all processes are at the same place.

    Gloo, the collectives between CPUs, makes a connection for each group of devices at its first use, and gives the
    processes 30 s to come to it (jaxlib 0.10). Later one may still compile or read what another has in a cache.
    """
    if jax.default_backend() != "cpu" or jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices("eql_jax joined")  # one device of each process
    mesh = Mesh(np.array(jax.devices()), ("all",))
    rows = np.zeros(jax.local_device_count(), np.float32)
    rows = jax.make_array_from_process_local_data(NamedSharding(mesh, P("all")), rows)
    jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))(rows).block_until_ready()


def _on_abort(message: str) -> None:
    """When C++ aborts the process: write `message` below what it wrote, and end with status `RESTART`.

    Python's own signal handlers run when the interpreter comes to it, which it does not after an abort; this one is
    called by the thread that aborts. (JAX takes a callback for it, and cannot call it: jaxlib 0.10.)
    """
    line = f"\n{message}\n".encode()

    def end(_: int) -> None:
        try:
            os.write(2, line)
        finally:
            os._exit(RESTART)

    _on_abort.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)  # kept for as long as C may call it
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(_on_abort.handler, ctypes.c_void_p))
