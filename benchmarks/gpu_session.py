"""All measurements of one GPU in the order of their worth, for a machine that is there for minutes.

    python benchmarks/gpu_session.py --out session/rows.jsonl --minutes 9
    python benchmarks/gpu_session.py --table session/rows.jsonl

The first call measures until its time is up; every row is in the file as soon as it is measured, and the same call
again goes on where the last one stopped. Order: the training step at batch 8, bfloat16, 800 x 1344 and 1203 classes,
and torchvision's; inference likewise; where the training step's time goes; 80 classes; 1024 x 1024; other batches;
float32; four steps in one call; no flags of XLA. The second call prints the file as the table of docs/performance.md.
benchmarks/rows.py says more of rows and files.

Needs jax for the device, flax, optax, numpy and ml_collections, and for the ratios PyTorch with torchvision, here or
in another environment (--torch_python).
"""

import argparse
import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.rows import LISTS, Row, add_run_arguments, read_results, run_options, run_rows

TRAIN, INFER = LISTS["train_step"]["gpu"], LISTS["inference"]["gpu"]
SESSION = (
    *TRAIN[:2],
    *INFER[:4],
    dataclasses.replace(TRAIN[0], breakdown=True),
    *TRAIN[2:4],
    INFER[4],
    *TRAIN[4:-2],
    *INFER[5:],
    dataclasses.replace(INFER[0], breakdown=True),
    *TRAIN[-2:],
)
HEADER = (
    "| batch, type, size, classes | images/s | ms a batch | peak GiB | compile, s | MFU | torchvision, images/s "
    "| **ours / theirs** |"
)


def table(results: list[dict]) -> str:
    """Markdown of SESSION's rows, a table for training and one for inference; 'not measured' where nothing is."""
    known = {r["row"]: r for r in results if r.get("row") and r.get("benchmark") not in ("profile", "stages")}
    lines = []
    for title, rows in (("Training step", TRAIN), ("Inference, 300 detections", INFER)):
        lines += ["", f"{title}:", "", HEADER, "| --- | " + " | ".join(["---"] * 7) + " |"]
        for row in rows:
            if not row.peer:
                lines.append(_line(row, known))
    return "\n".join(lines[1:])


def _line(row: Row, known: dict[str, dict]) -> str:
    name = f"{row.batch}, {row.dtype}, {row.size[0]} x {row.size[1]}, {row.classes}"
    name += f", `{' '.join(row.options)}`" if row.options else ""
    # A row and its breakdown are the same measurement: either will do, better one that came to its end.
    both = [known.get(r.name, {}) for r in (row, dataclasses.replace(row, breakdown=True))]
    ours = next((r for r in both if "images_per_second" in r), both[0] or both[1])
    peer = dataclasses.replace(row, peer=True)
    theirs = known.get(peer.name, {})
    if "loss" in ours and ours["loss"] is None:
        name += " (loss not finite)"
    if "images_per_second" in ours:
        mfu = "" if ours["mfu"] is None else f"{ours['mfu']:.1%}"
        cells = [f"{ours['images_per_second']:.1f}", f"{ours['seconds'] * 1e3:.1f}", f"{ours['peak_gib']:.2f}"]
        cells += [f"{ours['compile_seconds']:.0f}", mfu]
    else:
        cells = ["failed" if "error" in ours else "not measured", *[""] * 4]
    speed = theirs.get("images_per_second")
    without = "not measured" if peer in SESSION else ""
    cells.append(f"{speed:.1f}" if speed else "failed" if "error" in theirs else without)
    ratio = f"**{ours['images_per_second'] / speed:.2f}**" if speed and "images_per_second" in ours else ""
    return f"| {' | '.join([name, *cells, ratio])} |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=pathlib.Path, metavar="FILE", help="print the table of a file of results")
    parser.add_argument("--commit", default="", help="what to call the code where there is no git")
    add_run_arguments(parser)
    args = parser.parse_args(argv)
    if args.table:
        print(table(read_results(args.table)))
        return
    if args.out is None:
        parser.error("--out FILE: nothing would be kept of a session without it")
    extra = ["--commit", args.commit] if args.commit else []
    run_rows(SESSION, extra=extra, **run_options(args))


if __name__ == "__main__":
    main()
