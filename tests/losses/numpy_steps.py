"""Steps of data, and derivatives in float64, for losses that are tested against NumPy transcriptions of their paper."""

import numpy as np

STEPS, ROWS, K = 5, 24, 12


def steps(columns, *, scale=3.0, labels_to=K, padding=True, seed=0):
    """Logits [STEPS, ROWS, columns] and labels [STEPS, ROWS] of all kinds: objects, background (K), padding (-1)."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(STEPS, ROWS, columns))).astype(np.float32)
    if scale == 80:
        logits = 80 * np.sign(logits)
        logits[:, 0], logits[:, 1], logits[:, 2] = 80, -80, 0
    # Frequencies fall; the last class never occurs.
    chances = np.append(1 / (1.0 + np.arange(K - 1)), 0)
    labels = rng.choice(K, (STEPS, ROWS), p=chances / chances.sum())
    if labels_to == K:
        labels[:, ::2] = K
    if padding:
        labels[:, -3:] = -1
    return logits, labels


def derivative(elements, logits):
    """d elements / d logits of an elementwise function in float64, by central differences."""
    h = 1e-4
    return (elements(logits + h) - elements(logits - h)) / (2 * h)
