"""The README's job, or a short one, as one process and as several: losses of the first step, and AP beside its spread.

    python benchmarks/several_processes.py --out=runs/several [--processes 2 4] [--seeds 3] [--words FLAGS]

Each process has two virtual CPU devices (of one process, as many as all together would have). One process also runs
with further seeds, which says how far AP goes apart by chance. Prints a JSON line for every run and one of
comparisons; status 1 where a first loss differs by more than 1e-5 or an AP lies outside of the seeds' range by more
than their spread.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.local_processes import start  # noqa: E402

DEVICES = 2


def run(out: pathlib.Path, count: int, devices: int, words: list[str], *, seed: int) -> dict[str, Any]:
    """Trains; returns the losses of the first step and the metrics of the evaluation at the end."""
    workdir = out / f"processes{count}_seed{seed}"
    fixed = [f"--workdir={workdir}", f"--config.seed={seed}", "--config.log.every=1", "--config.log.tensorboard=False"]
    fixed += [f"--config.data.supershapes.out={out / 'data'}", "--config.eval.pictures=0"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(out / "cache")}
    processes = start(count, [*words, *fixed], out / f"{workdir.name}_logs", devices=devices, environment=cache)
    if any(processes.wait(24 * 3600)):
        raise RuntimeError(processes.texts())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if line["kind"] == "train")
    last = next(line for line in reversed(lines) if line["kind"] == "eval")
    return {
        "processes": count,
        "devices": count * devices,
        "seed": seed,
        "first_losses": {k: v for k, v in first.items() if k.startswith("loss")},
        "ap": {k: v for k, v in last.items() if k.endswith(("/AP", "/AP50")) or k == "top1"},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a new folder")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--seeds", type=int, default=3, help="runs of one process")
    parser.add_argument("--words", nargs=argparse.REMAINDER, default=[], help="further words for train.py")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    out, words = args.out.absolute(), ["--config=configs/supershapes_tiny.py", *args.words]
    total = DEVICES * max(args.processes)
    seeds = []
    for seed in range(args.seeds):
        seeds.append(run(out, 1, total, words, seed=seed))
        print(json.dumps(seeds[-1]), flush=True)
    good = True
    for count in (n for n in args.processes if n > 1):
        row = run(out, count, DEVICES, words, seed=0)
        print(json.dumps(row), flush=True)
        alone = seeds[0]["first_losses"]
        worst = max(abs(value - alone[k]) / max(abs(alone[k]), 1e-9) for k, value in row["first_losses"].items())
        good &= worst < 1e-5
        for name, value in row["ap"].items():
            known = [found["ap"][name] for found in seeds]
            spread = max(known) - min(known)
            within = min(known) - spread <= value <= max(known) + spread
            good &= within
            print(json.dumps({"processes": count, "metric": name, "value": value, "seeds": known, "within": within}))
        print(json.dumps({"processes": count, "largest_relative_difference_of_first_losses": worst}), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
