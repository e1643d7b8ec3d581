"""Residual networks in the forms used for 32x32 images (He et al. 2016)."""

from collections.abc import Sequence

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; 1x1 convolution on the shortcut where shapes differ."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.before_relu = nn.Identity()  # where the sum can be tapped

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first_norm(self.first(x)).relu()
        y = self.second_norm(self.second(hidden)) + self.shortcut(x)
        return self.before_relu(y).relu()


class ResNet(nn.Module):
    """A 3x3 stem, then stages of basic blocks, each stage but the first at half the resolution.

    ResNet-18 for CIFAR: channels 64, 128, 256, 512 with 2 blocks each. ResNet-32 for CIFAR:
    channels 16, 32, 64 with 5 blocks each.
    """

    def __init__(self, input_shape: Sequence[int], channels: Sequence[int], blocks: int):
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(f"ResNet takes images (C, H, W); got shape {tuple(input_shape)}")
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], channels[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(channels[0]),
            nn.ReLU(),
        )
        stages, before = [], channels[0]
        for k, after in enumerate(channels):
            strides = [1 if k == 0 else 2] + [1] * (blocks - 1)
            inputs = [before] + [after] * (blocks - 1)
            stages.append(
                nn.Sequential(
                    *(BasicBlock(i, after, s) for i, s in zip(inputs, strides, strict=True))
                )
            )
            before = after
        self.stages = nn.Sequential(*stages)
        self.width = before

    @property
    def stage_outputs(self) -> list[nn.Module]:
        """Modules whose outputs (B, C, H, W) are the stages', before the last ReLU of each."""
        return [stage[-1].before_relu for stage in self.stages]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x)).mean((2, 3))
