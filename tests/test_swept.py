"""Settings of choices that are swept over."""

import pytest

from clplat.swept import as_sweeps


@pytest.mark.parametrize(
    ("given", "sweeps"),
    [
        ("strategy=a,b strategy.x=5 seed=0", "strategy=a,b strategy.x=choice(5) seed=0"),
        ("strategy.x=[1,2] strategy=a,b", "strategy.x=choice([1,2]) strategy=a,b"),
        ("strategy=glob(*) strategy.x=1,2", "strategy=glob(*) strategy.x=1,2"),
        ("strategy=a,b strategy.x=null", "strategy=a,b strategy.x=null"),
        ("strategy=a,b +strategy.x=1 ~strategy.y", "strategy=a,b +strategy.x=1 ~strategy.y"),
        ("strategy=a backbone=b,c strategy.x=1", "strategy=a backbone=b,c strategy.x=1"),
        ("experiment=a,b strategy.x=1 hydra.x=1", "experiment=a,b strategy.x=choice(1) hydra.x=1"),
        ("seed=0,1 strategy.x=1 out=${seed}", "seed=0,1 strategy.x=1 out=${seed}"),
        ("strategy=a,b strategy.x=[", "strategy=a,b strategy.x=["),
    ],
)
def test_they_become_sweeps_of_one_value(given, sweeps):
    assert as_sweeps(given.split()) == sweeps.split()


def test_a_setting_that_the_default_choice_has_not_reaches_every_run(command, tmp_path):
    outcome = command("-m strategy=replay,derpp strategy.capacity=37 train.epochs=1 out=runs/a")
    assert outcome.status == 0, outcome.err
    assert "2 runs: 2 finished" in outcome.err
    configs = [*(tmp_path / "runs/a").rglob("config.yaml")]
    assert len(configs) == 2
    assert all("capacity: 37" in config.read_text() for config in configs)


def test_a_setting_that_one_choice_has_not_is_refused_before_any_run(command, tmp_path):
    outcome = command("-m strategy=replay,ewc strategy.capacity=37 train.epochs=1")
    assert outcome.status == 2
    assert "clplat: strategy.capacity: no such key (it belongs to strategy=replay, " in outcome.err
    assert not [*tmp_path.rglob("config.yaml")]
