"""Annotations to batches, in NumPy; never imports jax.

`annotations` reads and validates a file, `categories` says how frequent its classes are in training, `pipeline` makes
batches.
"""
