"""Training: state, optimizer, mesh, checkpoints, metrics and the loop that joins them."""
