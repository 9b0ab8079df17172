"""Training in bfloat16 against float32, from the same seed on the same batches: losses along the way and the final AP.

    python benchmarks/bf16.py --out runs/bf16
    python benchmarks/bf16.py --out runs/bf16 --steps 300 --batch 8
    python benchmarks/bf16.py --out runs/bf16 --steps 300 --init_from runs/supershapes_tiny     # AP worth comparing

Three runs of train.py with configs/supershapes_tiny.py, shortened to --steps: float32, bfloat16, and float32 from the
next seed, which shows how far two runs lie apart that differ in nothing but chance. A line of JSON for each: `loss`,
the mean over the last --window steps, and AP; for the last two also their smoothed losses over those of the first: at
the end (`ratio`), and where they are farthest apart (`ratio_min`, `ratio_max` over all means of --window steps). A run
that is in --out already is read, not run again.

XLA may leave out a rounding to bfloat16 where one operation follows another, and on a CPU it leaves out many. The runs
forbid it (`--xla_allow_excess_precision=false`), so that every value is rounded where the model says so.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
STRICT = "--xla_allow_excess_precision=false"


def smoothed(losses: np.ndarray, window: int) -> np.ndarray:
    """Means over `window` losses that follow each other, float64 [steps - window + 1]."""
    return np.convolve(losses, np.full(window, 1 / window), mode="valid")


def compare(losses: np.ndarray, reference: np.ndarray, window: int) -> dict[str, float]:
    """ratio, ratio_min and ratio_max of the smoothed losses [steps] of two runs."""
    ratios = smoothed(losses, window) / smoothed(reference, window)
    return {"ratio": float(ratios[-1]), "ratio_min": float(ratios.min()), "ratio_max": float(ratios.max())}


def read_run(workdir: pathlib.Path, steps: int) -> tuple[np.ndarray, dict[str, float]] | None:
    """Losses of all steps and the metrics of the evaluation at the end; None if the run has not got there."""
    file = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    losses = {line["step"]: float(line["loss"]) for line in lines if line["kind"] == "train"}
    final = [line for line in lines if line["kind"] == "eval" and line["step"] == steps]
    if not final or sorted(losses) != list(range(1, steps + 1)):
        return None
    return np.array([losses[step] for step in range(1, steps + 1)]), final[-1]


def run(workdir: pathlib.Path, data: pathlib.Path, dtype: str, seed: int, args: argparse.Namespace) -> None:
    """One run of train.py; ends this process with its status if it fails."""
    fields = {
        "seed": seed,
        "model.dtype": dtype,
        "train.steps": args.steps,
        "train.batch_size": args.batch,
        "optimizer.warmup_steps": args.steps // 10,
        "data.supershapes.out": data,
        "data.supershapes.train_images": args.steps * args.batch,
        "data.supershapes.val_images": args.val_images,
        "log.every": 1,
        "log.tensorboard": False,
        "checkpoint.every": args.steps,
        "eval.pictures": 0,
        "train.init_from": args.init_from,
    }
    command = [sys.executable, ROOT / "train.py", f"--config={ROOT / 'configs' / 'supershapes_tiny.py'}"]
    command += [f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {STRICT}".strip()
    status = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, stdout=sys.stderr).returncode
    if status:
        sys.exit(status)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="for data and runs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--val_images", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init_from", default="", metavar="DIR", help="trained weights that all three runs start from")
    parser.add_argument("--window", type=int, default=20, help="steps that a loss is averaged over")
    args = parser.parse_args(argv)
    if not 1 <= args.window <= args.steps:
        parser.error(f"--window is {args.window}; expected 1 to --steps, {args.steps}")
    out = args.out.resolve()
    data = out / f"data_{args.steps * args.batch}_{args.val_images}"
    args.init_from = str(pathlib.Path(args.init_from).resolve()) if args.init_from else ""
    reference = None
    for dtype, seed in (("float32", args.seed), ("bfloat16", args.seed), ("float32", args.seed + 1)):
        start = "_from_weights" if args.init_from else ""
        workdir = out / f"{dtype}_{args.batch}x{args.steps}_seed{seed}{start}"
        if read_run(workdir, args.steps) is None:
            run(workdir, data, dtype, seed, args)
        found = read_run(workdir, args.steps)
        if found is None:
            sys.exit(f"{workdir} was stopped before its end; the same command goes on with it")
        losses, final = found
        row = {"benchmark": "bf16", "dtype": dtype, "seed": seed, "steps": args.steps, "batch": args.batch}
        row |= {"init_from": args.init_from, "window": args.window, "loss": float(smoothed(losses, args.window)[-1])}
        row |= {name: final[name] for name in ("bbox/AP", "segm/AP", "bbox/AP50", "segm/AP50") if name in final}
        if reference is None:
            reference = losses
        else:
            row |= compare(losses, reference, args.window)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
