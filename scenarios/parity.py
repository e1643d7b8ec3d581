"""Parity of ever longer bit strings: the simplest task that needs a state to change its sign."""

import torch
from torch import Tensor

from clplat.errors import InputError
from clplat.prepare import Prepare
from clplat.scenario import Scenario
from scenarios.streams import make_scenario

PAD = 2  # the token before a string
# Tokens before the longest string: on fewer, a network that starts from h = 0 is not yet at rest
# where all the shorter strings find it, and may count from odd what they count from even.
REST = 8


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
    if not 1 <= experiences <= 12:
        raise InputError(
            f"scenario.experiences={experiences}: expected 1 to 12, each twice as long as the one "
            "before; choose one of these"
        )
    for key, value in (("samples", samples), ("test_samples", test_samples)):
        if value < 1:
            raise InputError(f"scenario.{key}={value}: expected at least 1; raise it")
    generator = torch.Generator().manual_seed(seed)
    total = 2**experiences + REST
    train, test = [], []
    for length in (2 ** (k + 1) for k in range(experiences)):
        lengths = torch.randint(1, length + 1, (samples,), generator=generator)
        train.append(bit_strings(lengths, total, generator))
        test.append(bit_strings(torch.full((test_samples,), length), total, generator))
    return make_scenario(train, test, 2, task_labels, Prepare())
