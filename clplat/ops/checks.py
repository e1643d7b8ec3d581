"""Bad input of an op is told by the name of the argument: what it was, what it should have been."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_inputs(
    op: str,
    wide: tuple[str, ...] = (),
    complex_too: bool = False,
    /,
    **inputs: tuple[Tensor | None, str],
) -> dict[str, int]:
    """The sizes that the inputs' axes agree on, such as {"B": 2, "T": 64, "D": 128}.

    `inputs` maps a name to a tensor (or None) and its axes, such as "B T D"; a digit stands for an
    axis of that size. Dtype and device are those of the first; the names in `wide` (gates and
    states) may be float32 where it is half precision.

    Raises: ValueError for an axis too few or too many, of no length or of another length than the
    same axis before; TypeError for another dtype or device, for one that is not
    floating, and for a complex one without `complex_too`.
    """
    sizes: dict[str, int] = {}
    first, lead = next((name, x) for name, (x, _) in inputs.items() if x is not None)
    if lead.dtype.is_complex and not complex_too:
        raise TypeError(f"{op}: {first} is {lead.dtype}; expected a real floating dtype")
    if lead.dtype not in FLOATS and not lead.dtype.is_complex:
        raise TypeError(f"{op}: {first} is {lead.dtype}; expected a floating dtype")
    for name, (x, axes) in inputs.items():
        if x is not None:
            _agree(op, name, x, axes.split(), sizes)
            _alike(op, name, x, first, lead, name in wide)
    return sizes


def _agree(op: str, name: str, x: Tensor, axes: list[str], sizes: dict[str, int]) -> None:
    expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes]
    fits = x.ndim == len(axes) and all(
        want is None or want == size for want, size in zip(expected, x.shape, strict=True)
    )
    if not fits:
        shown = ", ".join(a if e is None else f"{e}" for a, e in zip(axes, expected, strict=True))
        raise ValueError(
            f"{op}: {name} has shape {tuple(x.shape)}; expected ({', '.join(axes)}) = ({shown})"
        )
    for axis, size in zip(axes, x.shape, strict=True):
        if size == 0:
            raise ValueError(
                f"{op}: {name} has shape {tuple(x.shape)}; axis {axis} must not be empty"
            )
        sizes[axis] = size


def _alike(op: str, name: str, x: Tensor, first: str, lead: Tensor, wide: bool) -> None:
    if x.device != lead.device:
        raise TypeError(f"{op}: {name} is on {x.device}, but {first} is on {lead.device}")
    half = lead.dtype in (torch.float16, torch.bfloat16)
    if x.dtype != lead.dtype and not (wide and half and x.dtype == torch.float32):
        allowed = f"{lead.dtype} or torch.float32" if wide and half else f"{lead.dtype}"
        raise TypeError(f"{op}: {name} is {x.dtype}; expected {allowed}, as {first} is")
