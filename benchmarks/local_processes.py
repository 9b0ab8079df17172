"""Several processes of one run on this machine, as several hosts would run them; each with virtual CPU devices."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass
class Processes:
    """Processes of one run, by process id, and the files that hold what they wrote to stderr."""

    processes: list[subprocess.Popen]
    logs: list[pathlib.Path]

    def wait(self, seconds: float) -> list[int]:
        """Exit statuses; raises TimeoutError, after ending them, where one is still there."""
        end = time.monotonic() + seconds
        try:
            return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired as e:
            raise TimeoutError(f"still running after {seconds:.0f} s\n{self.texts()}") from e
        finally:
            self.end()

    def end(self) -> None:
        """Kills those that still run."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def text(self, process_id: int) -> str:
        """What a process has written so far."""
        return self.logs[process_id].read_text(errors="replace")

    def texts(self) -> str:
        """The last lines of all."""
        return "\n".join(f"--- process {i}\n{self.text(i)[-3000:]}" for i in range(len(self.logs)))


def start(
    count: int,
    words: Sequence[object],
    logs: pathlib.Path,
    *,
    programme: Sequence[object] = (ROOT / "train.py",),
    devices: int = 2,
    environment: Mapping[str, str] | None = None,
    limits: Mapping[int, Callable[[], None]] | None = None,
) -> Processes:
    """Starts `count` processes; 1: without the flags of several.

    Args:
        words: the command line behind the programme.
        logs: a folder for their output.
        programme: what Python runs: a file, or '-m' and a module.
        devices: virtual CPU devices of each.
        environment: further variables.
        limits: by process id, what a process calls before it begins.
    """
    logs.mkdir(parents=True, exist_ok=True)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", "XLA_FLAGS": flags, **(environment or {})}
    port = free_port()
    found = Processes([], [])
    for i in range(count):
        command = [sys.executable, *map(str, programme), *map(str, words)]
        if count > 1:
            command += [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"]
        log = logs / f"process{i}.log"
        with open(log, "w") as file:
            before = (limits or {}).get(i)
            found.processes.append(
                subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file, preexec_fn=before)
            )
        found.logs.append(log)
    return found


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
