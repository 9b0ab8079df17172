"""What training runs did, side by side: one HTML page and its figures. `python -m eql_jax.analysis --help`.

Modules: `collect` reads what is in workdirs, `gradients` and `groups` count on arrays, `model_pass` gets these arrays
from a checkpoint, `figures` and `examples` draw, `page` writes.
"""
