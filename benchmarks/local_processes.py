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
    """Processes of one run, by process id, and the files that hold what they wrote to stderr.

    again: starts all of them with another port; None once that was done.
    """

    processes: list[subprocess.Popen]
    logs: list[pathlib.Path]
    again: Callable[[], list[subprocess.Popen]] | None = None

    def wait(self, seconds: float) -> list[int]:
        """Exit statuses; raises TimeoutError, after ending them, where one is still there."""
        end = time.monotonic() + seconds
        try:
            while True:
                statuses = [p.poll() for p in self.processes]
                if self.renew():
                    continue
                if None not in statuses:
                    return statuses
                if time.monotonic() > end:
                    raise TimeoutError(f"still running after {seconds:.0f} s\n{self.texts()}")
                time.sleep(0.02)
        finally:
            self.end()

    def renew(self) -> bool:
        """Starts all once more, with another port, where theirs was taken before process 0 came to listen on it."""
        if self.again is None:
            return False
        if not any(p.poll() == 2 and "it is in use" in self.text(i) for i, p in enumerate(self.processes)):
            return False
        self.end()
        again, self.again = self.again, None
        self.processes = again()
        return True

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
    files = [logs / f"process{i}.log" for i in range(count)]

    def begin() -> list[subprocess.Popen]:
        port, found = free_port(), []
        for i, log in enumerate(files):
            command = [sys.executable, *map(str, programme), *map(str, words)]
            if count > 1:
                command += [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={i}"]
            before = (limits or {}).get(i)
            with open(log, "w") as file:
                found.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file, preexec_fn=before))
        return found

    return Processes(begin(), files, begin if count > 1 else None)


def free_port() -> int:
    """A port that nothing listens on just now; see `Processes.renew`."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
