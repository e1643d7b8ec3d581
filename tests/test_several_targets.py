"""Scenarios whose samples have several targets each: what fits them, and what is refused."""

import pytest

QUICK = (
    "scenario=recall backbone=mingru backbone.pooling=none backbone.vocabulary=13 backbone.width=8 "
    "scenario.experiences=2 scenario.pairs=2 scenario.keys=8 scenario.values=4 scenario.samples=16 "
    "scenario.test_samples=8 train.epochs=1 train.batch_size=8 out=runs/a"
)


@pytest.mark.parametrize("strategy", ["finetune", "joint"])
def test_what_fits_trains(command, strategy):
    outcome = command(f"{QUICK} strategy={strategy}")
    assert outcome.status == 0, outcome.err
    assert "share recalled" in outcome.err


@pytest.mark.parametrize(
    "strategy", ["der", "derpp", "latest_replay", "replay strategy.memory=reservoir"]
)
def test_a_memory_of_samples_that_differ_in_length_is_refused(command, strategy):
    outcome = command(f"{QUICK} strategy={strategy}")
    assert outcome.status == 2
    assert "keeps samples in a memory, and this scenario draws sequences anew" in outcome.err


@pytest.mark.parametrize(
    "strategy", ["lwf", "ewc", "avalanche/naive", "avalanche/er_ace", "avalanche/lwf"]
)
def test_strategies_that_ask_for_one_class_a_sample_are_refused(command, strategy):
    outcome = command(f"{QUICK} strategy={strategy}")
    assert outcome.status == 2
    assert "asks for the class of each sample, and this scenario has several" in outcome.err


@pytest.mark.parametrize("head", ["multi", "growing", "cosine", "nearest_mean", "prototypes"])
def test_heads_for_one_target_are_refused(command, head):
    outcome = command(f"{QUICK} head={head}")
    assert outcome.status == 2
    assert "set head=single" in outcome.err or "set scenario.task_labels=true" in outcome.err


TEXT = (
    "scenario=text scenario.sources=[english] scenario.samples=8 scenario.test_samples=4 "
    "scenario.window=8 train.epochs=1 backbone=mingru backbone.width=4 out=runs/a"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            f"{TEXT} backbone.pooling=none",
            "backbone.vocabulary=null: this scenario's inputs are tokens of 256 kinds; set "
            "backbone.vocabulary=256",
        ),
        (
            f"{TEXT} backbone.vocabulary=256",
            "answers once for each sample, and this scenario asks at every position; take a",
        ),
        (
            f"{TEXT} backbone.vocabulary=256 backbone.pooling=none strategy=replay",
            "strategy.memory=class_balanced: it goes by the class of each sample, and this",
        ),
        (
            "backbone=mingru backbone.pooling=none out=runs/a",
            "answers at every position, and this scenario asks once for each sample; set "
            "backbone.pooling=last",
        ),
        (
            "scenario=recall out=runs/a",
            "backbone: MLP cannot read this scenario's inputs, of shape",
        ),
        (
            "head=prototypes out=runs/a",
            "head=prototypes: FineTune trains the encoder, and the prototypes of earlier",
        ),
    ],
)
def test_backbones_and_heads_that_do_not_fit_are_told(command, arguments, message):
    outcome = command(arguments)
    assert outcome.status == 2
    assert message in outcome.err
