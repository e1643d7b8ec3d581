"""Read the activations of any module during a forward pass that runs anyway."""

from torch import Tensor, nn


class Tap:
    """Keep the latest output of `module`, gradients included, until the tap is closed.

    The value is dropped by `close`, and by `take`, which hands it over: a graph is never held
    longer than it is needed.
    """

    def __init__(self, module: nn.Module):
        self.value: Tensor | None = None
        self._handle = module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.value = output

    def take(self) -> Tensor:
        if self.value is None:
            raise RuntimeError("nothing has passed through the tapped module since the last take")
        value, self.value = self.value, None
        return value

    def close(self) -> None:
        self._handle.remove()
        self.value = None
