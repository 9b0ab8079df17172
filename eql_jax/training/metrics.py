"""Where metrics go: one line or a progress bar on the console, WORKDIR/metrics.jsonl and TensorBoard."""

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from eql_jax.data.files import FilePath, as_path
from eql_jax.data.tf_data import import_tensorflow
from eql_jax.training.disk import write_atomically

LOG = logging.getLogger(__name__)


class MetricWriter:
    """Writes scalars of a step to file, TensorBoard and console. A context manager; only host 0 writes.

    On a terminal the console shows one progress bar with images/s, the time left and the loss; elsewhere (a log file,
    CI) a plain line every time. A file that cannot be written is reported once and training goes on.
    """

    def __init__(self, workdir: str | Path, config: ConfigDict, *, start_step: int = 0, enabled: bool = True):
        """
        Args:
            workdir: gets metrics.jsonl and, with log.tensorboard, tensorboard/.
            config: the whole config; log, train.steps and train.batch_size are read.
            start_step: where this run goes on from.
            enabled: False writes nothing (hosts other than the first).
        """
        self._total, self._images = config.train.steps, config.train.batch_size
        self._enabled = enabled
        workdir = as_path(workdir)
        self._file = workdir / "metrics.jsonl"
        self._file_failed = False
        if enabled:
            self._guard(lambda: _forget_after(self._file, start_step))
        self._board = _tensorboard(workdir / "tensorboard") if enabled and config.log.tensorboard else None
        self._bar = None
        if enabled and config.log.progress and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=start_step, unit="step", dynamic_ncols=True)
        self._timed_steps, self._timed_seconds = 0, 0.0
        self.start_clock(start_step)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def train(self, step: int, metrics: Mapping[str, float], *, done: float | None = None) -> None:
        """Metrics of training up to `step`; adds images_per_second since the last call.

        done: time.monotonic() when the step was done, where its metrics are read later. None: now.
        """
        now = time.monotonic() if done is None else done
        seconds = max(now - self._last_time, 1e-9)
        rate = self._images * (step - self._last_step) / seconds
        self._timed_steps += step - self._last_step
        self._timed_seconds += seconds
        metrics = dict(metrics, images_per_second=rate)
        self._store(step, "train", metrics)
        self._console(step, metrics, rate)
        self._last_step, self._last_time = step, now

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of an evaluation at `step`."""
        self._store(step, "eval", metrics)
        shown = {k: v for k, v in metrics.items() if k in ("segm/AP", "bbox/AP") or k.startswith("top1")} or metrics
        self.message(f"step {step}: evaluation " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))

    def start_clock(self, step: int) -> None:
        """images/s counts from `step` and now; what passed before (compilation, evaluation) does not count."""
        self._last_step, self._last_time = step, time.monotonic()

    def message(self, text: str) -> None:
        """A line on the console, above the progress bar."""
        if self._enabled:
            if self._bar is None:
                print(text, file=sys.stderr, flush=True)
            else:
                self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flushes TensorBoard and ends the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._board is not None:
            self._guard(self._board.close)

    def _console(self, step: int, metrics: Mapping[str, float], rate: float) -> None:
        loss = metrics.get("loss", math.nan)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} images/s")
            return
        left = self._timed_seconds / max(self._timed_steps, 1) * (self._total - step)
        terms = "  ".join(f"{k.removeprefix('loss_')} {v:.4f}" for k, v in metrics.items() if k.startswith("loss_"))
        terms = f" ({terms})" if terms else ""
        extra = f"  lr {metrics['learning_rate']:.3g}" if "learning_rate" in metrics else ""
        text = f"step {step}/{self._total}  loss {loss:.4f}{terms}{extra}  {rate:.1f} images/s"
        self.message(f"{text}  {_clock(left)} left")

    def _store(self, step: int, prefix: str, metrics: Mapping[str, float]) -> None:
        if not self._enabled:
            return
        values = {k: float(np.asarray(v)) for k, v in metrics.items()}
        line = json.dumps({"step": step, "kind": prefix, **{k: _json_number(v) for k, v in values.items()}})

        def append():
            with self._file.open("a", encoding="utf-8") as f:
                f.write(line + "\n")

        self._guard(append)
        if self._board is not None:
            self._guard(lambda: self._board.write_scalars(step, {f"{prefix}/{k}": v for k, v in values.items()}))

    def _guard(self, write) -> None:
        """Metrics are not worth a run: a full disk is reported once."""
        try:
            write()
        except Exception as e:  # TensorFlow has its own exceptions for a full disk
            if not self._file_failed:
                LOG.error("metrics cannot be written to %s: %s; training goes on", self._file.parent, e)
            self._file_failed = True


def _tensorboard(directory: FilePath) -> Any:
    """A clu writer, or None with a message; imported here because it brings TensorFlow in (seconds, 300 MB)."""
    try:
        import_tensorflow()  # first, because it says where TensorFlow may run and how much it may print
        from clu import metric_writers  # noqa: PLC0415

        return metric_writers.SummaryWriter(str(directory))
    except Exception as e:  # missing packages and unwritable directories alike
        LOG.warning("no TensorBoard logs (%s: %s); config.log.tensorboard=False silences this", type(e).__name__, e)
        return None


def _forget_after(path: FilePath, step: int) -> None:
    """Drops the lines of steps after `step`, which a resumed run does again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_atomically(path, "".join(kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line of a killed run


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON knows no NaN


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
