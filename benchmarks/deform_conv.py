"""Time and memory of deformable convolution with modulation, forward and backward, beside torchvision's on a CPU.

    python benchmarks/deform_conv.py --torch_python=PATH

A 3x3 on one map of 50 x 76 with 256 channels in and out, offsets of two pixels' standard deviation, float32. PATH is a
Python that has PyTorch and torchvision; they run in a process of their own, in turns with this one, on as many threads.
Without it, or where torchvision's operator does not load, the comparison is with a plain 3x3 convolution of this
package. `seconds` are wall-clock, `cpu_seconds` those of the processor, which other work on the machine changes less;
`gib_above_data` is the peak of the resident memory above what was resident before the first call (PyTorch) or before
compiling (here, which counts the compiler's memory too); `temporary_gib` is what XLA says that the compiled call needs
besides arguments and results.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# What PyTorch's process does: prepares, says so, then runs once for every line that it reads.
TORCH = """
import json, sys, time
import torch, torchvision
from torchvision.ops import deform_conv2d

def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) / 2**20

height, width, channels = map(int, sys.argv[1:])
torch.manual_seed(0)
x = torch.randn(1, channels, height, width)
offsets = 2 * torch.randn(1, 18, height, width)
modulation = torch.rand(1, 9, height, width)
kernel = torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5
arrays = [a.requires_grad_() for a in (x, offsets, kernel, modulation)]
before = memory("VmRSS")

def run():
    out = deform_conv2d(arrays[0], arrays[1], arrays[2], padding=1, mask=arrays[3])
    torch.autograd.grad(out, arrays, out.detach())

deform_conv2d(x.detach()[:, :, :3, :3], offsets.detach()[:, :, :1, :1], kernel.detach())  # fails where it is missing
print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__}), flush=True)
for line in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    row = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    print(json.dumps(row | {"gib_above_data": memory("VmHWM") - before}), flush=True)
"""


class Torch:
    """torchvision's operator in a process of its own; `versions` is None where it does not run."""

    def __init__(self, python: str, shape: tuple[int, int, int]):
        command = [python, "-c", TORCH, *map(str, shape)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        line = self.process.stdout.readline()
        self.versions = json.loads(line) if line else None
        if not line:
            reason = self.process.stderr.read().strip().splitlines()[-1:]
            print(f"torchvision's operator does not run in {python}: {' '.join(reason)}", file=sys.stderr)

    def run(self) -> dict[str, float]:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def run(args: argparse.Namespace) -> dict[str, object]:
    import time

    import jax

    from benchmarks import common
    from eql_jax.ops.conv import conv2d
    from eql_jax.ops.deform_conv import deform_conv2d

    (height, width), channels = args.size, args.channels
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (1, height, width, channels))
    offsets = 2 * jax.random.normal(keys[1], (1, height, width, 18))
    modulation = jax.random.uniform(keys[2], (1, height, width, 9))
    kernel = jax.random.normal(keys[3], (3, 3, channels, channels)) / (9 * channels) ** 0.5

    def deformable(x, kernel, offsets, modulation):
        return deform_conv2d(x, offsets, kernel, modulation=modulation, padding=1)

    def both(fn, *arrays):
        def step(*arrays):
            out, back = jax.vjp(fn, *arrays)
            return out, back(out)

        compiled = jax.jit(step).lower(*arrays).compile()
        return lambda: compiled(*arrays), compiled.memory_analysis().temp_size_in_bytes / 2**30

    def timed(fn):
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(fn())
        return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}

    jax.block_until_ready((x, offsets, modulation, kernel))
    before = common.process_memory_gib("VmRSS")
    ours, temporary = both(deformable, x, kernel, offsets, modulation)
    jax.block_until_ready(ours())
    peak = common.process_memory_gib("VmHWM") - before
    plain, plain_temporary = both(lambda x, kernel: conv2d(x, kernel, padding=1), x, kernel)
    jax.block_until_ready(plain())
    torch = Torch(args.torch_python, (height, width, channels)) if args.torch_python else None
    others = {"plain": lambda: timed(plain)}
    if torch is not None and torch.versions is not None:
        torch.run()  # warms up
        others["torchvision"] = torch.run
    # In turns, so that a machine that slows down slows all.
    rounds = [{"ours": timed(ours)} | {name: fn() for name, fn in others.items()} for _ in range(args.repeats)]
    if torch is not None:
        torch.close()

    row = {
        "benchmark": "deform_conv",
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        **((torch.versions or {}) if torch else {}),
        "size": [height, width],
        "channels": channels,
        "gib_above_data": peak,
        "temporary_gib": temporary,
        "plain_temporary_gib": plain_temporary,
    }
    if "torchvision" in others:
        row["torchvision_gib_above_data"] = rounds[-1]["torchvision"]["gib_above_data"]
    for key in ("seconds", "cpu_seconds"):
        for name in rounds[0]:
            row[f"{name}_{key}"] = statistics.median(r[name][key] for r in rounds)
        for name in others:
            row[f"ours_over_{name}_{key}"] = statistics.median(r["ours"][key] / r[name][key] for r in rounds)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", default="", help="a Python with PyTorch and torchvision")
    parser.add_argument("--size", type=int, nargs=2, default=(50, 76), metavar=("H", "W"))
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    from benchmarks import common

    common.report(run(args))


if __name__ == "__main__":
    main()
