"""Recurrences over time as functions of tensors: each returns `(y, final_state)`.

One folder an op: `reference.py` is the specification (a loop over time, any dtype), `cpu.py` the
form for processors (PyTorch alone), `triton.py` the form for GPUs, and `__init__.py` the public
function, which checks its inputs and registers the op with torch.library.

Common to all: time is axis 1; a state is float32 where the inputs are half precision, else of
their dtype; `initial` is the state before the first step, zeros if None; gradients flow to every
input and to `initial`. Packed sequences: inputs of batch size 1 that hold N sequences end to end,
and `cu_seqlens` (N + 1,) int64, the place where each begins, then the count of tokens; then
`initial` and the final state have N rows.
"""
