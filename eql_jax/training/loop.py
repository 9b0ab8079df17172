"""The training loop: steps, metrics, checkpoints, evaluations and an orderly stop. Knows no model and no data format.

Metrics are read a few steps late, so that the host never waits for the device; before a checkpoint everything pending
is read, so that no state with a loss or gradient that is not finite is ever saved.
"""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from eql_jax.training.checkpoints import Checkpoints
from eql_jax.training.errors import CheckpointError, NonFiniteLossError
from eql_jax.training.mesh import Prefetcher
from eql_jax.training.metrics import MetricWriter
from eql_jax.training.schedules import Schedule
from eql_jax.training.state import TrainState

LAG = 2  # calls in flight before the metrics of the oldest are read

StepFunction = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Mapping[str, jax.Array]]]
SeveralSteps = Callable[[TrainState, Sequence[Mapping[str, jax.Array]]], tuple[TrainState, Mapping[str, jax.Array]]]


class TrainResult(NamedTuple):
    """state: the last one; stopped: a signal ended the run early; metrics: of the last evaluation, None without one."""

    state: TrainState
    stopped: bool
    metrics: Mapping[str, float] | None


@dataclasses.dataclass
class _Pending:
    """A call under way: updates done after it, its steps' metrics on the device (scalars, or [steps]), ids of this
    host's images for each step, and time.monotonic() when it was issued and first seen to be done."""

    step: int
    metrics: Mapping[str, jax.Array]
    image_ids: Sequence[np.ndarray]
    issued: float
    done: float | None = None

    def look(self) -> None:
        """Notes the time if the call is done."""
        if self.done is None and self.metrics["loss"].is_ready():
            self.done = time.monotonic()


def train(
    *,
    state: TrainState,
    step_function: StepFunction,
    several_steps: SeveralSteps | None = None,
    make_batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]],
    config: ConfigDict,
    mesh: Mesh,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    schedule: Schedule | None = None,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
) -> TrainResult:
    """Trains from `state.step` to `config.train.steps`.

    Every `checkpoint.every` steps, before every evaluation, at the end and on SIGTERM or Ctrl-C the state is saved.
    With train.steps_per_call = n, n steps go to the device in one call wherever none of them but the last asks for a
    save or an evaluation; the others go one by one.

    Args:
        state: where to start; its buffers are donated to the first step.
        step_function: (state, device batch) -> (state, metrics); the state's step grows by 1, the metrics are float
            scalars with at least `loss`; all whose names start with 'loss', and `grad_norm`, must stay finite.
        several_steps: the same for train.steps_per_call batches of one shape, metrics [steps]. None: that must be 1.
        make_batches: start step -> iterator of this host's NumPy batches from that step on; the same step must always
            give the same batch.
        config: the whole config.
        mesh: where batches go.
        checkpoints: open for the run's workdir.
        writer: gets the means of the metrics over every `log.every` steps.
        schedule: step -> learning rate, for the log.
        evaluate: state -> metrics, every `eval.every` steps and at the end.

    Raises:
        NonFiniteLossError: a loss or the gradient norm is NaN or infinite (with debug.nan_checks).
        CheckpointError: no room for a checkpoint before the start, or the last save failed.
    """
    if several_steps is None and config.train.steps_per_call > 1:
        raise ValueError(f"train.steps_per_call is {config.train.steps_per_call}; expected several_steps to run them")
    step, total = int(state.step), config.train.steps
    log = _MetricLog(config, writer, checkpoints, schedule)
    evaluated = None
    stopped = False
    checkpoints.check_space(state)

    def save_and_evaluate() -> None:
        nonlocal evaluated
        log.read_all()
        checkpoints.save(state)
        if evaluate is not None and _is_due(step, config.eval.every, total):
            with signals.interruptible():
                evaluated = dict(evaluate(state))
            writer.evaluation(step, evaluated)
            checkpoints.record_evaluation(step, evaluated)
        writer.start_clock(step)

    with StopSignals() as signals, contextlib.ExitStack() as stack:
        try:
            if step > 0 and step not in checkpoints.evaluations and _is_due(step, config.eval.every, total):
                save_and_evaluate()  # an earlier run was killed while it evaluated this step
            if step < total:
                writer.message("compiling the training step, which can take minutes")
                batches = stack.enter_context(Prefetcher(make_batches(step), mesh, size=config.data.prefetch))
            started = time.monotonic()
            start = step
            while step < total and not stopped:
                before, taken = step, [next(batches) for _ in range(_steps_of_call(step, config))]
                issued = time.monotonic()
                if len(taken) == 1:
                    state, metrics = step_function(state, taken[0].arrays)
                else:
                    state, metrics = several_steps(state, [batch.arrays for batch in taken])
                step += len(taken)
                log.add(_Pending(step, metrics, [batch.image_ids for batch in taken], issued))
                if before == start:
                    log.read_all()
                    name = "first step" if len(taken) == 1 else f"first {len(taken)} steps"
                    writer.message(f"{name}: {time.monotonic() - started:.1f} s with data and compilation")
                    writer.start_clock(step)
                stopped = signals.stop_after_call()
                if stopped:
                    log.read_all()
                    checkpoints.save(state)
                elif any(_is_due(step, every, total) for every in (config.checkpoint.every, config.eval.every)):
                    save_and_evaluate()
        except _StopDuringEvaluation:
            stopped = True
    checkpoints.wait()
    if checkpoints.last_save_failed:
        checkpoints.save(state)  # once more: somebody may have made room
        checkpoints.wait()
    if checkpoints.last_save_failed:
        raise CheckpointError(
            f"the state of step {step} could not be saved in {checkpoints.directory}; the newest whole checkpoint is "
            f"of step {checkpoints.latest_step()}. Make room and run again: it goes on from there"
        )
    return TrainResult(state, stopped, evaluated)


def _is_due(step: int, every: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)


def _steps_of_call(step: int, config: ConfigDict) -> int:
    """How many steps go into the call after `step`: train.steps_per_call, or 1 where a save, an evaluation or the end
    would fall between them."""
    count, total = config.train.steps_per_call, config.train.steps
    inner = range(step + 1, step + count)
    due = any(_is_due(s, every, total) for s in inner for every in (config.checkpoint.every, config.eval.every))
    return 1 if due else count


class _MetricLog:
    """Reads metrics late, checks that they are finite and writes their means."""

    def __init__(
        self, config: ConfigDict, writer: MetricWriter, checkpoints: Checkpoints, schedule: Schedule | None
    ) -> None:
        self._every, self._total, self._check = config.log.every, config.train.steps, config.debug.nan_checks
        self._writer, self._checkpoints, self._schedule = writer, checkpoints, schedule
        self._pending: deque[_Pending] = deque()
        self._window: list[dict[str, float]] = []
        self._done = 0.0  # when the last call that was read was done

    def add(self, pending: _Pending) -> None:
        self._pending.append(pending)
        for under_way in self._pending:
            under_way.look()
        while len(self._pending) > LAG:
            self._read(self._pending.popleft())

    def read_all(self) -> None:
        while self._pending:
            self._read(self._pending.popleft())

    def _read(self, pending: _Pending) -> None:
        jax.block_until_ready(pending.metrics["loss"])
        pending.look()
        metrics = {k: np.atleast_1d(v) for k, v in jax.device_get(dict(pending.metrics)).items()}
        count = len(pending.image_ids)
        seconds = (pending.done - max(pending.issued, self._done)) / count
        self._done = pending.done
        for i, image_ids in enumerate(pending.image_ids):
            later = count - 1 - i
            values = {k: float(v[i]) for k, v in metrics.items()}
            # Within a call every step is taken to last as long.
            self._read_step(pending.step - later, values, image_ids, pending.done - later * seconds)

    def _read_step(self, step: int, values: dict[str, float], image_ids: np.ndarray, done: float) -> None:
        if self._check:
            self._check_finite(step, values, image_ids)
        self._window.append(values)
        if _is_due(step, self._every, self._total):
            means = {k: float(np.mean([w[k] for w in self._window])) for k in self._window[0]}
            if self._schedule is not None:
                means["learning_rate"] = float(self._schedule(step - 1))
            self._writer.train(step, means, done=done)
            self._window.clear()

    def _check_finite(self, step: int, values: Mapping[str, float], image_ids: np.ndarray) -> None:
        names = sorted((k for k in values if k.startswith("loss")), key=lambda k: (k != "loss", k))
        checked = {k: values[k] for k in (*names, "grad_norm") if k in values}
        faulty = [k for k, v in checked.items() if not math.isfinite(v)]
        if not faulty:
            return
        latest = self._checkpoints.latest_step()
        raise NonFiniteLossError(
            f"step {step}: {', '.join(faulty)} not finite; "
            + ", ".join(f"{k} {v:g}" for k, v in checked.items())
            + f"; image ids {', '.join(str(i) for i in image_ids.tolist())}. "
            + (f"The last good checkpoint is of step {latest}. " if latest is not None else "No checkpoint was saved. ")
            + "Try a lower learning rate, a longer warm-up or config.optimizer.clip_norm"
        )


class _StopDuringEvaluation(BaseException):
    """Leaves an evaluation; not an Exception, so that nothing on the way takes it for a failure of its own."""


class StopSignals:
    """Within it, SIGTERM and SIGINT (Ctrl-C) ask for a stop after the step; a second Ctrl-C interrupts at once.

    With several processes SIGTERM stays with JAX's preemption service, which finds a step that all of them can stop
    after; Ctrl-C in one of them goes there, too.

    requested: whether one came. Outside of the main thread, where Python has no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._calls = 0
        self._several = jax.process_count() > 1
        self._interruptible = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def stop_after_call(self) -> bool:
        """Whether to stop after this call of a step or several; to be asked after each, with one answer everywhere."""
        self._calls += 1  # not the number of the step: JAX names the next number as the one to stop at
        return multihost_utils.reached_preemption_sync_point(self._calls) if self._several else self.requested

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """The body loses nothing when it is left: a signal leaves it at once (one host; several stop after a step)."""
        self._interruptible = not self._several
        try:
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: Any) -> None:
        del frame
        if self._interruptible:
            self.requested = True
            raise _StopDuringEvaluation
        if self.requested:
            if number == signal.SIGINT:  # somebody is impatient; schedulers repeat SIGTERM without meaning it
                raise KeyboardInterrupt
            return
        self.requested = True
        # Not print(): the signal may have come in the middle of one.
        os.write(2, f"\n{signal.Signals(number).name}: saving after this step, then stopping\n".encode())
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
