"""The cases of the GPU bench, tiny and on the CPU: each runs forward and backward."""

import subprocess
import sys

import pytest
import torch

from clplat.bench.gpu import CHUNK, HEAD, cases, measure


def test_every_op_has_a_case_that_runs() -> None:
    names = []
    for case in cases(1, CHUNK + 1, 2 * HEAD, "cpu", torch.float32):
        names.append(case.name.split(",")[0].split(" ")[0])
        rows = list(measure(case, lambda call: 1.0 if call() is not None else 0.0))
        assert len(rows) >= 2
        for _, taken, moved, operations, share in rows:
            assert taken == 1.0
            assert moved > 0
            assert operations > 0
            assert 0 < share < 1
    assert sorted(names) == [
        *("delta_rule", "gated_rnn", "gated_scan", "linear_scan"),
        *("neural_memory", "newton_scan", "selective_scan", "ssd"),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to measure")
def test_without_a_device_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clplat.bench.gpu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout.strip().endswith("no CUDA device on this machine; nothing measured")
