"""The report of many runs, in a process of its own as the command line starts it."""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml

from clplat import metrics
from clplat.bench.timing import Figure, clock
from clplat.directory import CONFIG, DIGEST_LINE, LINES, MATRIX, RESULT

RUNS, EXPERIENCES = 1000, 10


def write_runs(folder: Path, configurations: int) -> None:
    """As many small run directories as RUNS, of so many configurations that differ in a setting."""
    generator = np.random.default_rng(0)
    for k in range(RUNS):
        number, seed = divmod(k, RUNS // configurations)
        out = folder / f"capacity_{number}" / f"seed_{seed}"
        out.mkdir(parents=True)
        matrix = generator.random((EXPERIENCES + 1, EXPERIENCES))
        seeds = dict.fromkeys(("seed", "seed_data", "seed_init", "seed_train"), seed)
        digest = f"{number:08x}"
        groups = {"scenario": "split_digits", "strategy": "replay", "backbone": "mlp"}
        result = {
            **groups,
            **metrics.summary(matrix),
            "experiences": EXPERIENCES,
            "accuracy_so_far": metrics.accuracy_so_far(matrix),
            "memory_bytes": 1000 * number,
            "seconds": 1.0 + number,
            "digest": digest,
            "seeds": seeds,
        }
        config = {
            **seeds,
            "out": str(out),
            **{f"part_{n}": {f"key_{m}": m for m in range(8)} for n in range(8)},
            "strategy": {"capacity": number},
        }
        (out / CONFIG).write_text(f"{DIGEST_LINE}{digest}\n{yaml.safe_dump(config)}")
        np.save(out / MATRIX, matrix)
        line = json.dumps({"experience": 0, "epoch": 0, "loss": 0.5, "seconds": 1.0}) + "\n"
        (out / LINES).write_text(line * 50)
        (out / "events.out.tfevents.0").write_bytes(bytes(24_000))
        (out / RESULT).write_text(json.dumps(result, indent=2))


def report() -> Iterator[Figure]:
    """Seconds for 1,000 runs: tables, figures and page of few and of many configurations."""
    for configurations in (20, 200, RUNS):
        with tempfile.TemporaryDirectory() as folder:
            write_runs(Path(folder), configurations)
            began, before = clock(), _processor_seconds()
            subprocess.run(
                [sys.executable, "-m", "clplat.report", folder], check=True, capture_output=True
            )
            name = f"clplat-report, {RUNS} runs of {configurations} configurations"
            yield Figure(name, clock() - began, 20.0, "s", at_most=True)
            print(f"    (of the processor: {_processor_seconds() - before:.1f} s)")


def _processor_seconds() -> float:
    """That ended children took, whatever else the machine did."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
