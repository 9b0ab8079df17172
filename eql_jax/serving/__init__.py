"""A trained detector as one compiled programme that runs where only jax, numpy and flatbuffers are.

`python -m eql_jax.serving` exports a checkpoint; `load_serving` loads it. See docs/serving.md. What exports,
`eql_jax.serving.export`, needs Flax and is not imported here.
"""

from eql_jax.serving.loader import ServedDetector, ServingError, load_serving
from eql_jax.serving.rle import bits_to_masks, bits_to_rles

__all__ = ["ServedDetector", "ServingError", "bits_to_masks", "bits_to_rles", "load_serving"]
