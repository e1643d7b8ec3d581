"""Sequence layers over the ops: `forward(x, state) -> (y, state)` and `step(x_t, state)`."""
