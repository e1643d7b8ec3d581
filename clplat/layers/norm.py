"""The norms that all layers use."""

from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean x^2 + 1e-5) * weight over the last axis (Zhang and Sennrich 2019).

    torch's own term is a rounding of the dtype: what is read from a memory that holds next to
    nothing would be blown up, rounding errors and gradients with it, and differ between dtypes.
    Computed in the dtype of its weights, so in float32 under autocast; the output is as the input.
    """

    def __init__(self, width: int):
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight)).to(x.dtype)


def unit(x: Tensor) -> Tensor:
    """x / |x| over the last axis; what is shorter than 0.001 is divided by that.

    With torch's bound of 1e-12 a token that is zero would have gradients of 1e12.
    """
    # autocast gives lengths in float32
    return nn.functional.normalize(x, dim=-1, eps=1e-3).to(x.dtype)
