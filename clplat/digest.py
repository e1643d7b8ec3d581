"""The digest that names a configuration, seeds and places apart."""

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

SEEDS = ("seed", "seed_data", "seed_init", "seed_train")
PLACES = ("out", "reference")


def config_digest(config: DictConfig) -> str:
    """Eight hexadecimal digits that are equal for the seeds of one configuration and no other."""
    neutral: dict[str, Any] = {**dict.fromkeys(SEEDS, 0), **dict.fromkeys(PLACES)}
    same = OmegaConf.merge(config, neutral)
    text = json.dumps(OmegaConf.to_container(same, resolve=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
