"""Floating-point operations of a programme and how much of a chip's peak they are.

Two counts, since neither is enough:

- `compiled_flops`: what XLA's cost analysis says of the compiled programme. All operations count, but convolutions
  and matmuls that XLA hands to a library (cuDNN, cuBLAS) may count as nothing there, and the body of a loop counts
  once.
- `matmul_flops`: two for each multiplication in convolutions and matmuls, counted in the traced programme, before any
  compiler. Scans count their length; loops without a known length count once; of a condition's branches the dearest
  counts. What rematerialisation computes again counts again. Padding counts as image; zeros between the rows of a
  strided convolution's gradient do not.

The utilisation takes the second, on every backend: it says how near the arithmetic is to the chip's matrix units.
"""

import math
import re
from typing import Any

import jax

# Dense peak, FLOP/s: (regex of the whole device_kind, bfloat16, float32 as JAX multiplies it by default). NVIDIA: data
# sheets of the SXM parts, without sparsity; float32 goes through TF32 there. TPU: Google's pages of each generation;
# float32 goes through bfloat16 passes, whose number depends on the precision asked for, so no peak is given.
PEAKS = (
    (r"NVIDIA H200", 989e12, 494.5e12),
    (r"NVIDIA H100 80GB HBM3", 989e12, 494.5e12),
    (r"NVIDIA A100.*", 312e12, 156e12),
    (r"TPU v4", 275e12, None),
    (r"TPU v5 lite|TPU v5e", 197e12, None),
    (r"TPU v5p?", 459e12, None),
    (r"TPU v6 lite|TPU v6e", 918e12, None),
)


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s that the device can do in matmuls of `dtype` ('bfloat16' or 'float32'); None where it is not known."""
    for pattern, bfloat16, float32 in PEAKS:
        if re.fullmatch(pattern, device_kind):
            return {"bfloat16": bfloat16, "float32": float32}.get(dtype)
    return None


def utilisation(flops: float, seconds: float, *, device_kind: str, dtype: str) -> dict[str, object]:
    """{'mfu': share of the peak or None, 'mfu_note': the peak, or why there is none}."""
    peak = peak_flops(device_kind, dtype)
    if peak is None:
        return {"mfu": None, "mfu_note": f"no peak known of {device_kind!r} in {dtype}"}
    return {"mfu": flops / seconds / peak, "mfu_note": f"of {peak / 1e12:g} TFLOP/s, data sheet"}


def compiled_flops(compiled: jax.stages.Compiled) -> float | None:
    """FLOPs of XLA's cost analysis; None where the backend has none."""
    analysis = compiled.cost_analysis()
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else None
    return float(analysis["flops"]) if analysis and "flops" in analysis else None


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of the convolutions and matmuls of a (closed) jaxpr and all inside it; see the head of this file."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_equation(e) for e in jaxpr.eqns)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (lhs_contracted, _), _ = params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(lhs[i] for i in lhs_contracted)
    if name == "conv_general_dilated":
        rhs, spec = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec
        taps = math.prod(rhs[i] for i in spec[1:])  # input channels of a group and the window
        zeros = math.prod(params["lhs_dilation"])
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps / zeros
    if name == "cond":
        return max(matmul_flops(branch) for branch in params["branches"])
    inner = sum(matmul_flops(x) for x in _jaxprs(params))
    return inner * params["length"] if name == "scan" else inner


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for x in value if isinstance(value, (list, tuple)) else [value]:
            if hasattr(x, "eqns") or hasattr(x, "jaxpr"):
                found.append(x)
    return found
