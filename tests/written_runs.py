"""Run directories as a run leaves them, of numbers that a test chooses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clplat.directory import CONFIG, MATRIX, RESULT


def write_run(
    out: Path,
    strategy: str = "replay",
    digest: str = "aaaa",
    seed: int | None = 0,
    accuracy: float | None = 0.5,
    config: dict[str, Any] | None = None,
    experiences: int = 2,
    **more: Any,
) -> Path:
    """A finished run; `more` are further entries of its result."""
    out.mkdir(parents=True)
    result = {
        "scenario": "split_digits",
        "strategy": strategy,
        "digest": digest,
        "experiences": experiences,
        "accuracy": accuracy,
        "forgetting": 0.5,
        "backward_transfer": -0.5,
        "seconds": 1.0,
        "memory_bytes": 2048,
        "accuracy_so_far": [1.0] * (experiences - 1) + [accuracy],
        **({} if seed is None else {"seeds": {"seed": seed, "seed_data": seed}}),
        **more,
    }
    (out / RESULT).write_text(json.dumps(result))
    if config is not None:
        (out / CONFIG).write_text(yaml.safe_dump(config))
    if accuracy is not None:
        np.save(out / MATRIX, np.full((experiences + 1, experiences), accuracy))
    return out
