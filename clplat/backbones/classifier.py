"""An encoder and a head put together."""

from avalanche.models.dynamic_modules import MultiTaskModule
from torch import Tensor, nn


class Classifier(nn.Module):
    """`model(x) -> (B, C)`; `features(x) -> (B, D)`."""

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def features(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def forward(self, x: Tensor, task: Tensor | int | None = None) -> Tensor:
        return self.head(self.encoder(x))


class MultiTaskClassifier(MultiTaskModule):
    """`model(x, task) -> (B, C)` for a head that needs the task; `task=None`: a dict of all tasks.

    A subclass of Avalanche's module, so that its loop passes task labels here too.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, head

    def features(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def forward(self, x: Tensor, task: Tensor | int | None = None) -> Tensor:  # type: ignore[override]
        return self.head(self.encoder(x), task)


def classifier(encoder: nn.Module, head: nn.Module) -> Classifier | MultiTaskClassifier:
    """The form that fits the head: with task labels for a multi-task one, else without."""
    return (MultiTaskClassifier if isinstance(head, MultiTaskModule) else Classifier)(encoder, head)
