"""Whether what a config chooses goes together: refused, with the reason, before anything is run."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.dynamic_modules import MultiTaskModule

from clplat.adapter import TemplateStrategy
from clplat.backbones.heads import Cosine, Growing, Multi, NearestMean
from clplat.backbones.kernel import Kernel
from clplat.backbones.learned_prototypes import LearnedPrototypes
from clplat.backbones.levels import Levels
from clplat.backbones.local_similarity import LocalSimilarity
from clplat.backbones.prototypes import Prototypes
from clplat.backbones.sequence import SequenceModel
from clplat.drawn import drawn_data
from clplat.errors import InputError
from clplat.scenario import Scenario
from clplat.several import parts_of

BOUNDED = "or a scenario with experiences, such as split_digits"
ONE_ANSWER = (
    Multi,
    Growing,
    Cosine,
    LearnedPrototypes,
    LocalSimilarity,
    NearestMean,
    Prototypes,
)  # heads for one target a sample


def check_fit(model: Any, head: Any, strategy: Any, scenario: Scenario) -> None:
    """Refuse a head or a strategy that this scenario or this model cannot serve."""
    parts = parts_of(strategy)
    for part in parts:
        _check_needs(part, scenario)
    _check_head(head, scenario)
    if isinstance(head, Kernel) and not any(getattr(p, "gives_coresets", False) for p in parts):
        raise InputError(
            f"head=kernel: {name_of(parts[0])} gives it no samples to solve for its answers with; "
            "set strategy=kcl or gkcl, or head=auto"
        )
    if isinstance(head, Prototypes) and not any(getattr(part, "frozen", False) for part in parts):
        raise InputError(
            f"head=prototypes: {name_of(parts[0])} trains the encoder, and the prototypes of "
            "earlier experiences would be those of another; set strategy=frozen, or "
            "head=nearest_mean"
        )
    if scenario.marks and isinstance(head, NearestMean | Prototypes):
        raise InputError(
            "head: the means of nearest_mean and prototypes are computed where an experience ends, "
            f"and this scenario is one stream without boundaries; choose head=single, {BOUNDED}"
        )
    for part in parts:
        if hasattr(part, "check"):
            part.check(scenario)
        if hasattr(part, "check_model"):
            part.check_model(model)
        if hasattr(model, "check"):
            model.check(part)


def _check_head(head: Any, scenario: Scenario) -> None:
    if isinstance(head, MultiTaskModule) and not scenario.task_labels:
        raise InputError(
            "head=multi: a head for each task needs task labels, and the scenario gives none; "
            "set scenario.task_labels=true, or head=single"
        )
    if (scenario.head == "levels" and not isinstance(head, Levels)) or (
        scenario.head == "single" and isinstance(head, ONE_ANSWER)
    ):
        raise InputError(
            f"head: {type(head).__name__} gives one answer a sample, and this scenario asks for "
            f"several of each; set head={scenario.head}"
        )


def _check_needs(strategy: Any, scenario: Scenario) -> None:
    """Refuse a strategy that declares a need which the scenario does not serve."""
    if getattr(strategy, "needs_task_labels", False) and not scenario.task_labels:
        raise InputError(
            f"strategy: {name_of(strategy)} needs task labels, and the scenario gives none; "
            "set scenario.task_labels=true, or choose another strategy"
        )
    one_target = getattr(strategy, "one_target", from_avalanche(strategy))
    if scenario.head is not None and one_target:
        raise InputError(
            f"strategy: {name_of(strategy)} asks for the class of each sample, and this scenario "
            "has several targets of each; choose finetune, joint, cumulative, der, or replay "
            "with strategy.memory=reservoir"
        )
    keeps = getattr(strategy, "keeps_samples", hasattr(strategy, "memory"))
    if keeps and drawn_data(scenario.train_stream[0].dataset):
        raise InputError(
            f"strategy: {name_of(strategy)} keeps samples in a memory, and this scenario draws "
            "sequences anew for every batch, of ever other lengths; choose finetune, or curriculum"
        )
    if scenario.marks and needs_boundaries(strategy):
        raise InputError(
            f"strategy: {name_of(strategy)} acts where an experience begins or ends, and this "
            "scenario is one stream without boundaries; choose finetune, replay, der, derpp, "
            f"er_ace, mir, gss or a_gem, {BOUNDED}"
        )


def from_avalanche(strategy: Any) -> bool:
    """Whether it is a plugin or a loop of Avalanche's."""
    return type(strategy).__module__.startswith(
        ("avalanche.training", "clplat.bridges", "clplat.adapter")
    )


def name_of(strategy: Any) -> str:
    """Of its class, or of the class of Avalanche's loop that it brings."""
    kind = getattr(strategy, "template", type(strategy))
    return getattr(kind, "func", kind).__name__


def needs_boundaries(strategy: Any) -> bool:
    """Whether it acts where an experience begins or ends, or brings a loop that does.

    A strategy that also does without says so: `needs_boundaries = False`.
    """
    stages = ("train_dataset_adaptation", "training_exp")
    hooks = [f"{when}_{stage}" for when in ("before", "after") for stage in stages]
    acts = any(getattr(type(strategy), h, None) is not getattr(SupervisedPlugin, h) for h in hooks)
    return getattr(strategy, "needs_boundaries", isinstance(strategy, TemplateStrategy) or acts)


@torch.no_grad()
def check_encoder(encoder: Any, scenario: Scenario) -> None:
    """Refuse an encoder that cannot read the scenario's inputs, or answers in another form."""
    name, tokens = type(encoder).__name__, scenario.vocabulary
    if tokens is not None and isinstance(encoder, SequenceModel):
        known = encoder.vocabulary
        if known is None or known < tokens:
            given = "null" if known is None else known
            raise InputError(
                f"backbone.vocabulary={given}: this scenario's inputs are tokens of {tokens} "
                f"kinds; set backbone.vocabulary={tokens}"
            )
    # The shortest inputs and the longest, where they differ.
    for stream in (*scenario.segments[-1:], scenario.test_stream):
        x = torch.as_tensor(stream[0].dataset[0][0])[None]
        encoder.eval()
        try:
            features = encoder(x)
        except InputError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"backbone: {name} cannot read this scenario's inputs, of shape "
                f"{tuple(x.shape[1:])} ({str(error).splitlines()[0]}); choose another backbone"
            ) from error
        finally:
            encoder.train()
        if scenario.head == "single" and features.ndim != 3:
            raise InputError(
                f"backbone: {name} answers once for each sample, and this scenario asks at every "
                "position; take a sequence model with backbone.pooling=none"
            )
        if scenario.head != "single" and features.ndim != 2:
            raise InputError(
                f"backbone: {name} answers at every position, and this scenario asks once for "
                "each sample; set backbone.pooling=last, or choose another backbone"
            )
