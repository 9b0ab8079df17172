"""Weights of detectron2 and torchvision to and from this package's checkpoints.

    python -m eql_jax.convert detectron2 MODEL.pkl --config=configs/lvis_v1_r50_eql.py --workdir=DIR
    python -m eql_jax.convert --to detectron2 --workdir=DIR --out=MODEL.pkl

A weight file is read without PyTorch and without running anything that it contains (`unpickle`, `torch_file`), its
names are brought to detectron2's (`names`), and one table (`table`) carries each tensor to its parameter and back.
"""
