"""Parity of ever longer bit strings: the simplest task that needs a state to change its sign."""

import torch
from torch import Tensor

from clplat.scenario import Scenario
from scenarios.languages import Language, growing

PAD = 2  # the token before a string


def bit_strings(lengths: Tensor, total: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of `total` tokens; the last lengths[i] of row i are fair coins, those before are PAD.

    Tokens (count, total) as floats, and the parity of each row's coins.
    """
    bits = torch.randint(2, (len(lengths), total), generator=generator)
    drawn = torch.arange(total) >= total - lengths[:, None]
    return bits.where(drawn, PAD).float(), (bits * drawn).sum(1) % 2


def parity(
    experiences: int = 6,
    samples: int = 20000,
    test_samples: int = 1000,
    task_labels: bool = False,
    seed: int = 0,
) -> Scenario:
    """Experience k asks for the parity of 2^(k + 1) bits, tokens 0 and 1 with as many 2 before them
    as make all strings equally long.

    Training strings have 1 to 2^(k + 1) random bits, test strings 2^(k + 1). The last of six
    experiences is parity of length 64; a linear recurrence with positive eigenvalues cannot follow
    parity at every length (Grazzi et al. 2025). `seed` draws the bits.
    """
    language = Language(bit_strings, symbols=2, classes=2)
    return growing(language, experiences, samples, test_samples, task_labels, seed)
