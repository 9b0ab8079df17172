"""Which classes are the tail: by frequency letter, or by a threshold lambda on the class frequency (NumPy only).

Shapes: K classes. A class frequency f_j is (images that contain class j) / (images of the data set). The second number
must go with lambda. On LVIS v0.5 the paper's lambda of 1.76e-3 belongs to all 57,263 training images; the released code
divides by the 56,740 annotated ones and needs 1.77e-3 for the same 915 classes. On v1 divide by the 99,388 annotated
images: 1.1e-3 is usual there and takes 815 classes.

Source: Tan et al., "Equalization Loss for Long-Tailed Object Recognition", CVPR 2020, section 3 and the study of
threshold functions in the experiments.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

LETTERS = ("r", "c", "f")  # LVIS: rare (at most 10 training images), common (11 to 100), frequent (more)

# Constants of the paper; which of them a function has is also what it accepts.
_CONSTANTS = {
    "step": {},
    "exponential": {"a": 400.0, "n": 2.0},
    "gompertz": {"a": 1.0, "b": 80.0, "c": 3000.0},
}


def tail_mask_from_letters(letters: Sequence[str], tail_letters: str = "rc") -> np.ndarray:
    """Tail classes by LVIS frequency letter; on LVIS, rare + common is what the paper's lambda selects.

    Args:
      letters: K strings, each 'r', 'c' or 'f'.
      tail_letters: the letters of the tail, in one string; '' is an empty tail.

    Returns:
      bool [K].

    Raises:
      ValueError: a letter is not one of r, c, f.
    """
    for where, values in (("letters", letters), ("tail_letters", tail_letters)):
        for index, letter in enumerate(values):
            if letter not in LETTERS:
                raise ValueError(f"{where}[{index}] is {letter!r}; expected one of {', '.join(LETTERS)}")
    return np.array([letter in tail_letters for letter in letters], dtype=bool)


def threshold_function(
    frequencies: ArrayLike,
    threshold: float,
    *,
    function: str = "step",
    a: float | None = None,
    b: float | None = None,
    c: float | None = None,
    n: float | None = None,
) -> np.ndarray:
    """The paper's T(f): how far the negatives of other classes' objects are dropped, 1 fully, 0 not at all.

    T is 0 for f >= threshold; for f < threshold it is

        step          1
        exponential   1 - (a f)^n                  a = 400, n = 2
        gompertz      1 - a exp(-b exp(-c f))      a = 1, b = 80, c = 3000

    clipped to [0, 1]. The constants are the paper's, where all three were equally good within .5 AP. A threshold of 1
    leaves the cut to the smooth functions themselves.

    Args:
      frequencies: [K], share of images with each class, in [0, 1].
      threshold: lambda, a share of images as well; strictly smaller frequencies are the tail.
      function: 'step', 'exponential' or 'gompertz'.
      a, b, c, n: constants of the function; None takes the paper's.

    Returns:
      float32 [K] in [0, 1], the `tail_mask` argument of `equalization_loss`.

    Raises:
      ValueError: unknown function, a constant that the function has not, or numbers that are no frequencies.
    """
    if function not in _CONSTANTS:
        raise ValueError(f"function is {function!r}; expected one of {', '.join(_CONSTANTS)}")
    constants = dict(_CONSTANTS[function])
    for name, value in {"a": a, "b": b, "c": c, "n": n}.items():
        if value is None:
            continue
        if name not in constants:
            known = ", ".join(constants) or "none"
            raise ValueError(f"{name}={value} given, but function {function!r} has these constants: {known}")
        constants[name] = float(value)

    f = _check_frequencies(frequencies)
    tail = tail_mask_from_threshold(f, threshold)
    if function == "step":
        t = np.ones_like(f)
    elif function == "exponential":
        t = 1 - (constants["a"] * f) ** constants["n"]
    else:
        t = 1 - constants["a"] * np.exp(-constants["b"] * np.exp(-constants["c"] * f))
    return np.where(tail, np.clip(t, 0, 1), 0).astype(np.float32)


def tail_mask_from_threshold(frequencies: ArrayLike, threshold: float) -> np.ndarray:
    """Tail classes by frequency: f strictly less than lambda.

    Args:
      frequencies: [K], share of images with each class, in [0, 1]: image counts / number of images.
      threshold: lambda, in [0, 1]; 0 is an empty tail.

    Returns:
      bool [K].

    Raises:
      ValueError: a frequency or the threshold is not in [0, 1].
    """
    f = _check_frequencies(frequencies)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a share of images in [0, 1], such as 1.1e-3")
    return f < threshold


def tail_ratio(image_counts: ArrayLike, tail_mask: ArrayLike) -> float:
    """The paper's TR(lambda) = sum_j T(f_j) N_j / sum_j N_j: the share of the tail in all (image, class) pairs.

    The paper found good thresholds where TR is 2 to 10 %.

    Args:
      image_counts: [K], images that contain each class.
      tail_mask: [K], bool, or float T(f).

    Returns:
      A share in [0, 1].

    Raises:
      ValueError: shapes differ, a count is negative, or all are 0.
    """
    counts, tail = np.asarray(image_counts, np.float64), np.asarray(tail_mask, np.float64)
    if counts.ndim != 1 or counts.shape != tail.shape:
        raise ValueError(f"image_counts has shape {counts.shape}, tail_mask {tail.shape}; expected [K] for both")
    # Written so that NaN fails as well.
    if not np.all(counts >= 0) or not counts.sum() > 0:
        raise ValueError("image_counts are all zero, or some are negative or NaN; expected images per class")
    return float(counts @ tail / counts.sum())


def _check_frequencies(frequencies: ArrayLike) -> np.ndarray:
    # float64 throughout: in float32 a frequency that equals lambda could fall on either side of it.
    f = np.asarray(frequencies, np.float64)
    if f.ndim != 1:
        raise ValueError(f"frequencies has shape {f.shape}; expected [K], one number per class")
    bad = np.flatnonzero(~((f >= 0) & (f <= 1)))
    if bad.size:
        raise ValueError(
            f"frequencies[{bad[0]}] is {f[bad[0]]}; expected shares of images in [0, 1]. "
            "Divide image counts by the number of images"
        )
    return f
