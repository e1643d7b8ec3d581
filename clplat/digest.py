"""The digest that names a configuration, seeds and places apart."""

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

SEEDS = ("seed", "seed_data", "seed_init", "seed_train")
PLACES = ("out", "reference")
KEPT = ("resume", "checkpoint")  # how a run is kept, which changes nothing in it


def config_digest(config: DictConfig) -> str:
    """Eight hexadecimal digits that are equal for the seeds of one configuration and no other."""
    neutral: dict[str, Any] = {**dict.fromkeys(SEEDS, 0), **dict.fromkeys(PLACES)}
    same = OmegaConf.merge(config, neutral)
    values: Any = OmegaConf.to_container(same, resolve=True)
    text = json.dumps({k: v for k, v in values.items() if k not in KEPT}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
