"""The one place that turns config nodes into objects."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import EagerCLStream
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from clplat.adapter import AvalancheTemplate, TemplateStrategy
from clplat.backbones.classifier import classifier
from clplat.backbones.heads import NearestMean, NearestMeanFit
from clplat.backbones.prototypes import Prototypes
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.fit import check_encoder, check_fit, from_avalanche
from clplat.learner import Learner
from clplat.pretraining import Advance
from clplat.scenario import Scenario
from clplat.schedule import LearningRate
from clplat.several import parts_of
from clplat.targets import check_objects


def build_node(config: dict[str, Any], key: str, **arguments: Any) -> Any:
    """The object of one config node; what its constructor refuses becomes an InputError."""
    try:
        return instantiate(config[key], _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, InputError):
            raise cause from error
        name = "" if isinstance(cause, TypeError | ValueError) else f"{type(cause).__name__}: "
        reason = f"{name}{cause}" if cause is not None else str(error)
        raise InputError(
            f"{key}: {config[key]['_target_']} refused its arguments ({reason}); correct the "
            f"keys under {key} (HYDRA_FULL_ERROR=1 shows the whole trace)"
        ) from error


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices that torch "
            "can use; set device=cpu, or device=auto"
        )
    return device


def seed_everything(seed: int) -> None:
    """Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - Avalanche's plugins draw from the global generator
    torch.manual_seed(seed)


def refuse_for_templates(config: dict[str, Any]) -> None:
    """Settings of our loop, which a strategy that brings its own would silently ignore."""
    ours = {
        "precision": (config["precision"], "fp32"),
        "train.grad_clip": (config["train"]["grad_clip"], None),
        "train.accumulate": (config["train"]["accumulate"], 1),
    }
    for key, (given, only) in ours.items():
        if given != only:
            value = "null" if only is None else only
            raise InputError(
                f"{key}={given}: this Avalanche strategy brings its own loop, which has no such "
                f"setting; set {key}={value}, or choose a strategy that runs in ours"
            )


def build_scenario(config: dict[str, Any], folders: list[Path]) -> Scenario:
    """The scenario of a resolved config; first every target of the config is looked at."""
    check_objects(config, folders)
    seed_everything(config["seed_data"])
    scenario = build_node(config, "scenario")
    count = config["train"]["experiences"]
    return scenario if count is None else first_experiences(scenario, count)


def first_experiences(scenario: Scenario, count: int) -> Scenario:
    """The scenario with its first `count` experiences alone, to train on and to evaluate on."""
    known = len(scenario.train_stream)
    if scenario.marks or scenario.segments or scenario.tasks:
        raise InputError(
            f"train.experiences={count}: this scenario is one stream, one sequence or a series of "
            "tasks, of which no first experiences can be taken; set train.experiences=null"
        )
    if count > known:
        raise InputError(
            f"train.experiences={count}: the scenario has {known}; lower it, or set it to null "
            "for all"
        )
    for name in ("train_stream", "test_stream"):
        stream = getattr(scenario, name)
        setattr(scenario, name, EagerCLStream(stream.name, [stream[k] for k in range(count)]))
    return scenario


def build_encoder(config: dict[str, Any], scenario: Scenario) -> Any:
    """The encoder of a resolved config, as it is drawn."""
    seed_everything(config["seed_init"])
    return build_node(config, "backbone", input_shape=scenario.input_shape)


def pretrain(
    config: dict[str, Any], scenario: Scenario, begin: Callable[[int], None], advance: Advance
) -> dict[str, Any] | None:
    """The state of an encoder once it is pre-trained as a resolved config says; None: it is not.

    `begin` is told the number of epochs, `advance` when one has ended.
    """
    method = build_node(config, "pretraining")
    if method is None:
        return None
    encoder = build_encoder(config, scenario)
    seed_everything(config["seed_train"])
    begin(method.epochs)
    method(encoder, scenario, pick_device(config["device"]), config["seed_train"], advance)
    return encoder.state_dict()


def build_analysis(config: dict[str, Any], learner: Any, scenario: Scenario) -> Any:
    """What looks at the network after each experience and at the end; None: nothing does."""
    analysis = build_node(config, "analysis")
    if analysis is None:
        return None
    if not isinstance(learner, Learner):
        raise InputError(
            "analysis: it looks into a loop of ours, and this strategy brings one of Avalanche's; "
            "choose a strategy of ours, or analysis=none"
        )
    analysis.check(learner.model)
    if hasattr(analysis, "check_scenario"):
        analysis.check_scenario(scenario)
    return analysis


def build_model(config: dict[str, Any], encoder: Any, head: Any, scenario: Scenario) -> Any:
    """Encoder and head put together, their weights generated where the config says so."""
    model = build_node(
        config,
        "hypernet",
        target=classifier(encoder, head),
        task_labels=scenario.task_labels,
        classes=scenario.n_classes if scenario.head is None else None,
    )
    pretrained = build_node(config, "pretraining") is not None or hasattr(encoder, "pretrained")
    if pretrained and not getattr(model, "begins_as_target", True):
        raise InputError(
            "hypernet: it generates all weights anew, and the encoder is pre-trained; set "
            "hypernet=low_rank, which changes the weights that there are"
        )
    return model


def build_learner(
    config: dict[str, Any],
    scenario: Scenario,
    observers: Sequence[Any] = (),
    weights: dict[str, Any] | None = None,
    checkpoints: Any = None,
) -> tuple[Learner | AvalancheTemplate, Any]:
    """Loop and strategy of a resolved config; `observers` are plugins that only watch.

    `weights` are the state that the encoder begins with, None for the one it is drawn with;
    `checkpoints` a plugin that acts when all others have.
    """
    device = pick_device(config["device"])
    encoder = build_encoder(config, scenario)
    if weights is not None:
        encoder.load_state_dict(weights)
    check_encoder(encoder, scenario)
    head = build_node(config, "head", features=encoder.width, classes=scenario.n_classes)
    if config["compile"]:
        encoder.compile()
    model = build_model(config, encoder, head, scenario)

    seed_everything(config["seed_train"])
    strategy, schedule = build_node(config, "strategy"), build_node(config, "schedule")
    check_fit(model, head, strategy, scenario)
    plugins: list[Any] = [LearningRate(schedule)] if schedule else []
    if isinstance(head, NearestMean):
        plugins.append(NearestMeanFit(getattr(strategy, "memory", None)))
    elif isinstance(head, Prototypes):  # of samples taken in once: not again from a memory
        plugins.append(NearestMeanFit())

    train = config["train"]
    if scenario.marks and train["epochs"] > 1:
        raise InputError(
            f"train.epochs={train['epochs']}: this scenario is a stream that is seen once; set "
            "train.epochs=1"
        )
    common = {
        "model": model,
        "optimizer": build_node(config, "optimizer"),
        "evaluator": Evaluator(scenario.score),
        "criterion": scenario.criterion,
        "batch_size": train["batch_size"],
        "epochs": train["epochs"],
        "eval_batch_size": config["eval"]["batch_size"],
        "device": device,
        "order": torch.Generator().manual_seed(config["seed_train"]),
        "prepare": scenario.prepare,
        "resident_bytes": config["data"]["resident_gigabytes"] * 2**30,
        "workers": config["data"]["workers"],
    }
    if isinstance(strategy, TemplateStrategy):
        refuse_for_templates(config)
        plugins = [*plugins, *observers]
        return AvalancheTemplate(template=strategy.template, plugins=plugins, **common), strategy
    parts = parts_of(strategy)
    if train["accumulate"] > 1 and any(map(from_avalanche, parts)):
        raise InputError(
            f"train.accumulate={train['accumulate']}: Avalanche's plugins may zero or rewrite the "
            "gradients between batches; set train.accumulate=1, or choose a strategy of ours"
        )
    learner = Learner(
        plugins=[*parts, *plugins, *observers],
        precision=config["precision"],
        grad_clip=train["grad_clip"],
        accumulate=train["accumulate"],
        checkpoints=checkpoints,
        **common,
    )
    for part in parts:
        if hasattr(part, "check_optimizer"):
            part.check_optimizer(learner.optimizer)
    return learner, strategy
