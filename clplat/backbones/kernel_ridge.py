"""Kernel ridge regression on random Fourier features (Rahimi & Recht 2007)."""

import math

import torch
from torch import Tensor


def random_features(features: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    """sqrt(2 / F) cos(omega z + b): (B, D), (F, D) and (F,) to (B, F).

    With frequencies from N(0, 1 / s^2) and phases from U(0, 2 pi), the products of two rows are on
    average exp(-||z - z'||^2 / (2 s^2)).
    """
    scale = math.sqrt(2 / len(phases))
    return scale * torch.addmm(phases, features, frequencies.T).cos()


def ridge(kernel: Tensor, targets: Tensor, strength: Tensor) -> Tensor:
    """alpha = (K + strength I)^-1 Y: (M, M) and (M, C) to (M, C), solved in float64.

    Of a positive strength: nothing is asked of the device to see whether there is a solution.
    """
    eye = torch.eye(len(kernel), dtype=torch.float64, device=kernel.device)
    system = kernel.double() + strength.double() * eye
    return torch.linalg.solve_ex(system, targets.double())[0].to(kernel.dtype)
