"""Small convolutional network."""

from collections.abc import Sequence

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Stages of 3x3 convolution, batch norm, ReLU and 2x2 pooling; then the mean over space.

    A stage whose input is a single pixel high or wide is not pooled, so that 8x8 images pass.
    """

    def __init__(self, input_shape: Sequence[int], channels: Sequence[int] = (32, 64, 128)):
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"ConvNet takes images (C, H, W); got shape {tuple(input_shape)}")
        before, height, width = input_shape
        stages = []
        for after in channels:
            stage = [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)]
            stage.append(nn.ReLU())
            if min(height, width) > 1:
                stage.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            stages.append(nn.Sequential(*stage))
            before = after
        self.stages = nn.Sequential(*stages)
        self.width = channels[-1]

    @property
    def stage_outputs(self) -> list[nn.Module]:
        """Modules whose outputs are the stages', (B, C, H, W)."""
        return list(self.stages)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x).mean((2, 3))
