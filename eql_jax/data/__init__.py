"""Annotations to batches, in NumPy and tf.data; never imports jax.

`annotations` reads and validates a file, `categories` says how frequent its classes are in training, `pipeline` makes
batches. TensorFlow is imported when the first training or evaluation batch is asked for, not before.
"""
