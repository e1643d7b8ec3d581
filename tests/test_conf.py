"""Every file of conf/ composes, builds and trains one step: a new file is tested by existing."""

import gzip
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import clplat.conf
from clplat.build import build_analysis, build_encoder, build_learner, build_scenario, pretrain
from clplat.check import GROUPS, KEYS, check
from strategies.frozen import Frozen

CONF = Path(clplat.conf.__file__).parent


def files(group: str) -> list[str]:
    """The files of one group; tests/test_adapter.py has those of strategy/avalanche."""
    found = [p.relative_to(CONF / group) for p in (CONF / group).rglob("*.yaml")]
    return sorted(p.with_suffix("").as_posix() for p in found if p.parts[0] != "avalanche")


# What cannot be built beside the default choices of the other groups, and what it goes with.
TOKENS = ("backbone=mingru", "backbone.pooling=none")
LEVELS = ("scenario=n_parity", "backbone=recurrent", "backbone.width=8", "head=levels")
COMPANIONS = {
    "scenario=n_parity": LEVELS,
    "backbone=recurrent": LEVELS,
    "head=levels": LEVELS,
    "analysis=recurrent": LEVELS,
    "analysis=few_shot": ("scenario.experiences=5",),
    "head=prototypes": ("strategy=frozen",),
    "hypernet=kernels": ("backbone=convnet",),
    "strategy=gere": ("scenario=text", *TOKENS, "backbone.vocabulary=256", "head=single"),
    "strategy=kcl": ("scenario.task_labels=true",),
    "strategy=gkcl": ("scenario.task_labels=true", "strategy.generator_steps=2"),
    "head=kernel": ("strategy=kcl", "scenario.task_labels=true"),
    "strategy=podnet": ("backbone=convnet",),
    "strategy=several": ("+strategy@strategy.replay=replay", "+strategy@strategy.lwf=lwf"),
    "scenario=text": (*TOKENS, "backbone.vocabulary=256"),
    "scenario=recall": (*TOKENS, "backbone.vocabulary=129"),
    "scenario=passkey": (*TOKENS, "backbone.vocabulary=129"),
}


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_module("clplat.conf", version_base="1.3"):
        more = COMPANIONS.get(overrides[0], ())
        node = compose("config", overrides=["scenario.experiences=2", *overrides, *more])
    config: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    check(config, [])
    return config


def write_idx(path: Path, values: torch.Tensor) -> None:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + values.numpy().tobytes()))


@pytest.fixture
def made_up_data(tmp_path, monkeypatch):
    """Small random files in the formats of the real ones, where CLPLAT_DATA points."""
    monkeypatch.setenv("CLPLAT_DATA", str(tmp_path))
    generator = torch.Generator().manual_seed(0)

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    for folder in ("mnist", "fashion-mnist"):
        for part, count in (("train", 60), ("t10k", 20)):
            labels = torch.arange(count, dtype=torch.uint8) % 10
            write_idx(tmp_path / folder / f"{part}-images-idx3-ubyte.gz", pixels(count, 28, 28))
            write_idx(tmp_path / folder / f"{part}-labels-idx1-ubyte.gz", labels)
    for folder, names, classes, label_bytes in (
        ("cifar-10-batches-bin", [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"], 10, 1),
        ("cifar-100-binary", ["train", "test"], 100, 2),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            rows = pixels(2 * classes, label_bytes + 3072)
            rows[:, label_bytes - 1] = torch.arange(2 * classes) % classes
            (tmp_path / folder / f"{name}.bin").write_bytes(rows.numpy().tobytes())


def train_one_step(config: dict[str, Any]) -> None:
    """Build all objects, train each experience on one batch, evaluate; weights must move."""
    config["train"].update(epochs=1, batch_size=8)
    scenario = build_scenario(config, [])
    learner, strategy = build_learner(config, scenario, [OneIteration()])
    before = [p.clone() for p in learner.model.parameters()]
    for experience in list(scenario.train_stream)[:2]:
        learner.train(experience)
    after = list(learner.model.parameters())
    assert all(p.isfinite().all() for p in after)
    if isinstance(strategy, Frozen):
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=False))
    else:
        assert len(after) != len(before) or any(
            a.shape != b.shape or not torch.equal(a, b) for a, b in zip(after, before, strict=True)
        )
    scores = learner.eval(list(scenario.test_stream)[:2])
    if scenario.score.__name__ == "accuracy":
        assert all(0 <= score <= 1 for score in scores)
    assert all(math.isfinite(score) for score in scores)


class OneIteration:
    """Ends each experience after its first batch."""

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        strategy.stop_training()


@pytest.mark.parametrize("name", sorted(set(files("scenario")) - {"avalanche"}))
def test_every_scenario_trains_one_step(name, made_up_data):
    train_one_step(composed(f"scenario={name}"))


@pytest.mark.parametrize("task_labels", [False, True])
@pytest.mark.parametrize("name", files("strategy"))
def test_every_strategy_trains_one_step(name, task_labels):
    train_one_step(composed(f"strategy={name}", f"scenario.task_labels={task_labels}"))


# causal_lm needs a folder of weights: tests/backbones/test_causal_lm.py.
@pytest.mark.parametrize("name", sorted(set(files("backbone")) - {"causal_lm"}))
def test_every_backbone_trains_one_step(name):
    train_one_step(composed(f"backbone={name}"))


@pytest.mark.parametrize("name", files("head"))
def test_every_head_trains_one_step(name):
    labels = "true" if name in ("multi", "levels") else "false"
    train_one_step(composed(f"head={name}", f"scenario.task_labels={labels}"))


@pytest.mark.parametrize("task_labels", [False, True])
@pytest.mark.parametrize("name", files("hypernet"))
def test_every_hypernet_trains_one_step(name, task_labels):
    train_one_step(composed(f"hypernet={name}", f"scenario.task_labels={task_labels}"))


@pytest.mark.parametrize("name", files("optimizer"))
def test_every_optimizer_trains_one_step(name):
    train_one_step(composed(f"optimizer={name}"))


@pytest.mark.parametrize("name", files("schedule"))
def test_every_schedule_trains_one_step(name):
    train_one_step(composed(f"schedule={name}"))


def test_every_analysis_fits_what_it_is_for(made_up_data):
    for name in files("analysis"):
        config = composed(f"analysis={name}")
        scenario = build_scenario(config, [])
        learner, _ = build_learner(config, scenario)
        assert (build_analysis(config, learner, scenario) is None) == (name == "none")


@pytest.mark.parametrize("name", sorted(set(files("pretraining")) - {"none", "file"}))
def test_every_pretraining_trains_the_encoder(name):
    config = composed(
        f"pretraining={name}", "scenario=cfsl/classes_and_samples_4", "pretraining.epochs=1"
    )
    scenario = build_scenario(config, [])
    drawn, begun = build_encoder(config, scenario).state_dict(), []
    trained = pretrain(config, scenario, begun.append, lambda: begun.append("epoch"))
    assert begun == [1, "epoch"]
    assert trained is not None
    assert trained.keys() == drawn.keys()
    assert all(not torch.equal(trained[key], drawn[key]) for key in drawn)


def test_the_check_knows_every_key_of_the_config_file_and_no_other():
    config = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"))
    assert isinstance(config, dict)
    assert set(KEYS[""]) == set(config) - {"defaults", "hydra"}
    for section in ("train", "eval", "data"):
        assert set(KEYS[section]) == set(config[section])
    assert set(GROUPS) == {next(iter(d)) for d in config["defaults"] if isinstance(d, dict)} - {
        "experiment",
        "override hydra/job_logging",
        "override hydra/hydra_logging",
    }


@pytest.mark.parametrize("name", files("experiment"))
def test_every_experiment_composes_with_what_it_sweeps_over(name):
    with initialize_config_module("clplat.conf", version_base="1.3"):
        node = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
        swept = node.hydra.sweeper.params
        tunes = name.startswith("tune/")
        assert swept.seed == ("10,11" if tunes else "0,1,2")
        for place in (0, -1):
            chosen = [f"{key}={str(values).split(',')[place]}" for key, values in swept.items()]
            node = compose("config", overrides=[f"experiment={name}", *chosen, "out=runs"])
            config: Any = OmegaConf.to_container(node, resolve=True)
            check(config, [])
            assert config["train"]["experiences"] == (2 if tunes else None)
            assert bool(config["scenario"].get("validation")) == tunes


def test_every_key_has_a_comment_and_every_file_says_what_it_is():
    ours = [CONF / group / f"{name}.yaml" for group in GROUPS for name in files(group)]
    for file in [CONF / "config.yaml", *ours]:
        lines = file.read_text().partition("\nhydra:")[0].splitlines()
        assert lines[0].startswith("# "), f"{file}: the first line says what it is"
        keys = [line for line in lines if re.match(r"\s*[a-z]\w*: \S", line)]
        for line in keys:
            if not line.startswith("defaults:"):
                assert "#" in line, f"{file}: {line.strip()}"
