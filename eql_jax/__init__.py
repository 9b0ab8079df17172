"""Mask R-CNN with the Equalization Loss for LVIS, in JAX and Flax."""

__version__ = "0.1.0"
