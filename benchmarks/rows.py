"""Named lists of measurements, run one after the other, each in a process of its own, within a time limit.

A row is one call of train_step.py, inference.py or torchvision_peer.py. A process each, because a device's peak
memory is never reset within one, because JAX and PyTorch each take the device's memory for themselves, and because a
row that runs out of memory must not take the others along. Lists are ordered by worth: what comes first is measured
even if nothing else is.

Every line of JSON that a row prints is appended to the results file at once, with "row": its name. A rerun with the
same file leaves out the rows that are in it, those that failed too; take a new file for changed code. This module
imports neither jax nor PyTorch, so that the device is free for the rows.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

HERE = pathlib.Path(__file__).resolve().parent
PEERS = {"train_step": "torchvision_train", "inference": "torchvision_inference"}
TAIL = 2000  # characters of a failed row's messages that are kept


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: benchmark 'train_step' or 'inference', of this package or (peer) of torchvision.

    breakdown: with the times of the stages and a profile. tiny: a small model, see TINY. options: further words.
    """

    benchmark: str
    classes: int = 1203
    batch: int = 8
    size: tuple[int, int] = (800, 1344)
    dtype: str = "bfloat16"
    peer: bool = False
    breakdown: bool = False
    tiny: bool = False
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What stands for the row in the results file."""
        words = [PEERS[self.benchmark] if self.peer else self.benchmark, f"batch {self.batch}", self.dtype]
        words += ["{}x{}".format(*self.size), f"{self.classes} classes"]
        return " ".join([*words, *["tiny"] * self.tiny, *["breakdown"] * self.breakdown, *self.options])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Values of "benchmark" in the lines that the row prints."""
        if self.peer:
            return (PEERS[self.benchmark],)
        return (self.benchmark, "profile", "stages") if self.breakdown else (self.benchmark,)

    def command(self, *, python: str, torch_python: str, profile: str) -> list[str]:
        """The words of its command line; profile: folder for the trace of a breakdown."""
        words = ["--classes", self.classes, "--batch", self.batch, "--size", *self.size, "--dtype", self.dtype]
        if self.peer:
            mode = "train" if self.benchmark == "train_step" else "inference"
            words = [torch_python, HERE / "torchvision_peer.py", "--mode", mode, *words]
        else:
            words = [python, HERE / f"{self.benchmark}.py", *words]
            words += ["--stages", "--profile", profile] if self.breakdown else []
        return [str(w) for w in [*words, *(TINY if self.tiny else ()), *self.options]]


def _train(**options) -> Row:
    return Row("train_step", **options)


def _infer(**options) -> Row:
    return Row("inference", **options)


TINY = tuple(
    word
    for setting in (
        "model.backbone.width=4",
        "model.fpn.channels=8",
        "model.fpn.min_level=4",
        "model.rpn.anchor_sizes=(64,128,256)",
        "model.rpn.pre_nms_train=30",
        "model.rpn.post_nms_train=20",
        "model.rpn.pre_nms_test=30",
        "model.rpn.post_nms_test=20",
        "model.roi.batch_per_image=16",
        "model.roi.sampling_ratio=1",
        "model.box_head.fc_dim=16",
        "model.mask_head.channels=8",
        "model.mask_head.num_convs=1",
        "model.test.candidates=60",
        "model.test.detections_per_image=10",
        "data.max_objects=30",
        "data.mask_size=14",
    )
    for word in ("--set", setting)
) + ("--depth", "18", "--repeats", "2", "--no-unit")  # compiles in seconds on a CPU


def _tiny(benchmark: str, *, breakdown: bool) -> Row:
    return Row(benchmark, classes=20, batch=1, size=(64, 64), dtype="float32", breakdown=breakdown, tiny=True)


# Classes are foreground ones: 80 are the "81 classes" of published figures, which count the background.
LISTS = {
    "train_step": {
        "gpu": (
            _train(),
            _train(peer=True),
            _train(classes=80),
            _train(size=(1024, 1024)),
            _train(batch=1),
            _train(batch=4),
            _train(batch=16),
            _train(dtype="float32"),
            _train(peer=True, dtype="float32"),
            _train(peer=True, classes=80),
            _train(peer=True, size=(1024, 1024)),
            _train(peer=True, batch=16),
            _train(options=("--set", "train.steps_per_call=4")),
            _train(options=("--xla_flags", "none")),
        ),
        "cpu": tuple(_train(classes=k, batch=1, size=(640, 640), dtype="float32") for k in (1203, 80)),
        "tiny": (_tiny("train_step", breakdown=True),),
    },
    "inference": {
        "gpu": (
            _infer(),
            _infer(peer=True),
            _infer(batch=1),
            _infer(peer=True, batch=1),
            _infer(classes=80),
            _infer(size=(1024, 1024)),
            _infer(batch=16),
            _infer(dtype="float32"),
            _infer(batch=1, dtype="float32"),
            _infer(peer=True, dtype="float32"),
        ),
        "cpu": tuple(_infer(classes=k, batch=1, size=(640, 640), dtype="float32") for k in (1203, 80)),
        "tiny": (_tiny("inference", breakdown=False),),
    },
}


# ------------------------------------------------------------------------------------------------------------- results
def read_results(path: pathlib.Path | None) -> list[dict]:
    """The lines of a results file, none where there is no file; a line cut short by the end of a run is left out."""
    if path is None or not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def is_done(row: Row, results: Sequence[dict], *, retry: bool = False) -> bool:
    """Whether the results hold all lines of the row, or its failure (retry: failures do not count)."""
    own = [r for r in results if r.get("row") == row.name]
    if not retry and any("error" in r for r in own):
        return True
    return set(row.kinds) <= {r.get("benchmark") for r in own if "error" not in r}


def expected_seconds(row: Row, results: Sequence[dict], default: float) -> float:
    """The longest that a row of the same kinds took in these results, process and compilation included.

    Where there is none: default, twice that for a row with a breakdown.
    """
    longest = {}
    for r in results:
        if "process_seconds" in r:
            longest[r["row"]] = max(longest.get(r["row"], 0.0), r["process_seconds"])
    same = [r["row"] for r in results if r.get("benchmark") == row.kinds[-1] and r.get("row") in longest]
    return max((longest[name] for name in same), default=default * (1 + row.breakdown))


def with_ratio(row: Row, line: dict, results: Sequence[dict]) -> dict:
    """A peer's line with the ratio of this package's images/s in the same setting to the peer's, where known."""
    name = dataclasses.replace(row, peer=False).name
    ours = [r for r in results if r.get("row") == name and "images_per_second" in r]
    if not row.peer or not ours or not line.get("images_per_second"):
        return line
    return line | {"ours_over_theirs": ours[-1]["images_per_second"] / line["images_per_second"]}


# -------------------------------------------------------------------------------------------------------------- runner
def launch(command: list[str], limit: float | None, on_line: Callable[[dict], None]) -> str | None:
    """Runs a command and hands on each line of JSON as it is printed.

    Returns None, or what went wrong: the end of its messages.

    Raises:
      TimeoutError: it ran for `limit` seconds and was stopped.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    messages: list[str] = []
    reader = threading.Thread(target=lambda: messages.extend(process.stderr), daemon=True)
    reader.start()
    late = threading.Event()
    timer = threading.Timer(limit, lambda: (late.set(), process.kill())) if limit is not None else None
    if timer:
        timer.start()
    try:
        for line in process.stdout:
            if line.startswith("{"):
                on_line(json.loads(line))
            else:
                print(line, end="", file=sys.stderr)
        code = process.wait()
    finally:
        if timer:
            timer.cancel()
        process.kill()
        process.wait()
        reader.join()
    if late.is_set():
        raise TimeoutError(f"stopped after {limit:.0f} s")
    return None if code == 0 else f"exit status {code}: " + "".join(messages)[-TAIL:]


def run_rows(
    rows: Sequence[Row],
    *,
    out: pathlib.Path | None = None,
    minutes: float | None = None,
    row_seconds: float = 180.0,
    retry: bool = False,
    extra: Sequence[str] = (),
    python: str = sys.executable,
    torch_python: str = sys.executable,
    start: Callable[[list[str], float | None, Callable[[dict], None]], str | None] = launch,
    clock: Callable[[], float] = time.monotonic,
) -> list[dict]:
    """Runs the rows that `out` does not hold yet and returns all results, those of the file included.

    Args:
      rows: in the order of their worth.
      out: JSON lines, appended to; traces of breakdowns go to folders beside it. None: lines are only printed.
      minutes: of this call. No row is started that would not end in time, by the longest of its kind so far; a cheaper
        one after it may be. A row that is still running at the end is stopped and counts as not run.
      row_seconds: expected of a row while none of its kind is done.
      retry: run the rows again that failed.
      extra: further words for this package's rows (not torchvision's); they are not part of a row's name.
      python, torch_python: to run this package's rows and torchvision's with.
      start, clock: of processes and time, for tests.
    """
    begin, results = clock(), read_results(out)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and not out.read_text().endswith("\n"):
            with out.open("a") as file:
                file.write("\n")  # ends a line that was cut short

    def keep(row: Row, line: dict) -> None:
        line = with_ratio(row, {"row": row.name} | line, results)
        results.append(line)
        print(json.dumps(line), flush=True)
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")

    for row in rows:
        if is_done(row, results, retry=retry):
            print(f"{row.name}: in {out} already", file=sys.stderr)
            continue
        left = None if minutes is None else minutes * 60 - (clock() - begin)
        need = expected_seconds(row, results, row_seconds)
        if left is not None and need > left:
            print(f"{row.name}: left out, takes about {need:.0f} s and {max(left, 0):.0f} s are left", file=sys.stderr)
            continue
        print(f"{row.name}: started", file=sys.stderr, flush=True)
        profile = (out.parent if out else pathlib.Path()) / f"profile_{row.benchmark}"
        command = row.command(python=python, torch_python=torch_python, profile=str(profile))
        try:
            error = start(command + ([] if row.peer else list(extra)), left, lambda line, row=row: keep(row, line))
        except TimeoutError as e:
            print(f"{row.name}: {e}", file=sys.stderr)
            continue
        if error:
            keep(row, {"benchmark": row.kinds[0], "error": error})
    return results


# --------------------------------------------------------------------------------------------------------- command line
def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_rows`."""
    group = parser.add_argument_group("running rows one after the other, see benchmarks/rows.py")
    group.add_argument("--out", type=pathlib.Path, metavar="FILE", help="JSON lines; rows in it are not run again")
    group.add_argument("--minutes", type=float, help="start no row that would not end by then")
    group.add_argument("--row_seconds", type=float, default=180.0, help="expected of the first row of a kind")
    group.add_argument("--retry", action="store_true", help="run rows again that failed")
    group.add_argument("--torch_python", default=sys.executable, help="a Python with PyTorch and torchvision")


def run_options(args: argparse.Namespace) -> dict[str, object]:
    """Arguments of `run_rows` from those of `add_run_arguments`."""
    return {name: getattr(args, name) for name in ("out", "minutes", "row_seconds", "retry", "torch_python")}


def main(benchmark: str, run: Callable[[argparse.Namespace], dict], parser: argparse.ArgumentParser, argv=None) -> None:
    """The command line of train_step.py and inference.py: one measurement by run(args), or several processes."""
    from benchmarks import common
    from eql_jax.training.errors import UserError
    from eql_jax.training.xla_flags import set_xla_flags

    common.add_detector_arguments(parser)
    parser.add_argument("--rows", choices=tuple(LISTS[benchmark]), help="a list of rows, in the order of their worth")
    parser.add_argument(
        "--torchvision", action="store_true", help="also torchvision at the same setting, and the ratio"
    )
    add_run_arguments(parser)
    args = parser.parse_args(argv)
    own = ("compare", "rows", "torchvision", "out", "minutes", "row_seconds", "retry", "torch_python")
    setting = ("classes", "batch", "size", "dtype")
    if args.compare:
        common.compare(HERE / f"{benchmark}.py", args.compare, words(args, parser, without=(*own, "classes")))
    elif args.rows:
        extra = words(args, parser, without=(*own, *setting, "stages", "profile"))
        run_rows(LISTS[benchmark][args.rows], extra=extra, **run_options(args))
    elif args.torchvision:
        row = Row(benchmark, args.classes, args.batch, tuple(args.size), args.dtype)
        extra = words(args, parser, without=(*own, *setting))
        run_rows([row, dataclasses.replace(row, peer=True)], extra=extra, **run_options(args))
    else:
        try:
            set_xla_flags(args.xla_flags)
            run(args)
        except UserError as e:
            parser.error(str(e))


def words(args: argparse.Namespace, parser: argparse.ArgumentParser, *, without: Sequence[str]) -> list[str]:
    """The command line that gives the options that differ from their defaults, but for those named."""
    found = []
    for name, value in vars(args).items():
        if name in without or value == parser.get_default(name):
            continue
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        elif name == "set":
            found += [word for assignment in value for word in ("--set", assignment)]
        else:
            found += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return found
