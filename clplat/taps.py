"""Read the activations of any module during a forward pass that runs anyway."""

import torch
from torch import Tensor, nn


class Tap:
    """Keep the latest output of `module`, gradients included, until the tap is closed.

    The value is dropped by `close`, and by `take`, which hands it over: a graph is never held
    longer than it is needed.
    """

    def __init__(self, module: nn.Module):
        self.value: Tensor | None = None
        self._handle = module.register_forward_hook(self._keep)  # type: ignore[attr-defined]

    @torch.compiler.disable  # in a compiled module, dynamo warns of the graph that is kept here
    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if self._handle is not None:
            self.value = output

    def __getstate__(self) -> dict[str, None]:
        """Copying a tapped module copies the tap, which nobody reads: the copy keeps nothing."""
        return {"value": None, "_handle": None}

    def take(self) -> Tensor:
        if self.value is None:
            raise RuntimeError("nothing has passed through the tapped module since the last take")
        value, self.value = self.value, None
        return value

    def close(self) -> None:
        self._handle.remove()
        self.value = None
