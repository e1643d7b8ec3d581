"""Parity of ever longer bit strings: the simplest task that needs a state to change its sign."""

import torch
from torch import Tensor

from clplat.errors import InputError
from clplat.prepare import Prepare
from clplat.scenario import Scenario
from scenarios.streams import make_scenario


def bit_strings(lengths: Tensor, total: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of `total` bits; the last lengths[i] of row i are fair coins, the others 0.

    Bits (count, total) as floats 0 and 1, and the parity of each row's sum.
    """
    bits = torch.randint(2, (len(lengths), total), generator=generator)
    bits *= torch.arange(total) >= total - lengths[:, None]
    return bits.float(), bits.sum(1) % 2


def parity(
    experiences: int = 6,
    samples: int = 20000,
    test_samples: int = 1000,
    task_labels: bool = False,
    seed: int = 0,
) -> Scenario:
    """Experience k asks for the parity of 2^(k + 1) bits, in strings as long as the last's.

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
    longest = [2 ** (k + 1) for k in range(experiences)]
    train, test = [], []
    for length in longest:
        lengths = torch.randint(1, length + 1, (samples,), generator=generator)
        train.append(bit_strings(lengths, longest[-1], generator))
        test.append(bit_strings(torch.full((test_samples,), length), longest[-1], generator))
    return make_scenario(train, test, 2, task_labels, Prepare())
