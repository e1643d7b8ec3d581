"""Every op's test runs on NaN-filled memory, on each device there is; kernels on the CPU where
Triton interprets them (TRITON_INTERPRET=1), which excludes compiling in the same process.
"""

from collections.abc import Iterator

import pytest
import torch

from clplat.ops.tier import INTERPRETED

collect_ignore_glob = ["test_*_ahead_of_time.py"] if INTERPRETED else []

DEVICES = ["cpu"]
if torch.cuda.is_available() and not INTERPRETED:
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def nan_filled_memory() -> Iterator[None]:
    """Memory that an op does not write holds NaN, so that reading it shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
