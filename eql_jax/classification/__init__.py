"""Long-tailed image classification: the second experiment of the equalization loss's paper. See docs/classification.md.

`python train.py --config=configs/classification/...` runs it; every loss of `eql_jax.class_losses` can be used.
"""
