"""`tune.experiences`: settings chosen on the first experiences, and the runs with them."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from clplat.command import tuned
from clplat.errors import InputError
from clplat.sweep import Sweep
from clplat.tuning import Candidate, Tuning, candidates, told, tuning


def line(objective, *given):
    return {"given": [*given], "objective": objective}


def test_the_search_sees_the_first_experiences_and_their_validation_split_alone():
    asked = ["-m", "strategy=ewc", "strategy.strength=1,10", "out=runs/a", "tune.experiences=3"]
    plan = tuning([*asked, "seeds=2"])
    assert plan is not None
    assert plan.search == [
        "--multirun",
        "strategy=ewc",
        "strategy.strength=1,10",
        "seeds=2",
        "train.experiences=3",
        "scenario.validation=0.2",
    ]
    assert "scenario.validation=0.1" in Tuning("3", "0.1", []).search
    assert tuning(["strategy=ewc"]) is None


def test_the_final_runs_have_the_seeds_the_place_and_the_launcher_that_were_asked_for():
    asked = ["strategy=ewc", "seeds=4", "out=runs/a/${seed}", "hydra/launcher=joblib", "-m"]
    plan = tuning([*asked, "hydra.launcher.n_jobs=2", "tune.experiences=1"])
    assert plan is not None
    assert plan.final(Candidate(("strategy=ewc", "strategy.strength=10"), [0.5])) == [
        "--multirun",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        "strategy=ewc",
        "strategy.strength=10",
        "seeds=4",
        "out=runs/a/${seed}",
    ]


def test_the_final_runs_have_the_options_and_what_is_asked_of_hydra_but_the_search():
    options = ["--config-dir", "mylab", "--config-dir=mylab", "-cd", "other"]
    asked = ["hydra.searchpath=[file://lab]", "hydra.sweep.dir=d", "+hydra.job.name=a"]
    search = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "tune.experiences=1"]
    plan = tuning([*options, "strategy=ewc", *asked, *search])
    assert plan is not None
    chosen = Candidate(("strategy=ewc",), [0.5])
    assert plan.final(chosen) == ["--multirun", *options, *asked, "strategy=ewc"]


def test_what_is_forced_or_added_is_compared_or_chosen_as_what_is_set():
    lines = [line(0.5, "++scenario.experiences=5"), line(0.9, "++scenario.experiences=2")]
    assert len([*candidates(lines)]) == 2
    lines = [line(0.5, "+strategy.x=5", "++seed=0"), line(0.9, "+strategy.x=5", "++seed=1")]
    assert [c.accuracies for c in next(candidates(lines))] == [[0.5, 0.9]]


def test_a_final_run_that_is_stopped_is_the_last(monkeypatch):
    codes = [0, 130]
    lines = [line(0.5, "strategy=ewc"), line(0.5, "strategy=mas")]
    monkeypatch.setattr(Sweep, "current", SimpleNamespace(done=[Path("a")], lines=lines))
    monkeypatch.setattr("clplat.command.carry_out", lambda asked: codes.pop(0))
    plan = tuning(["strategy=ewc,mas", "tune.experiences=1"])
    assert plan is not None
    assert tuned(plan) == 130
    assert codes == []


def test_optuna_proposes_for_one_seed_and_the_runs_have_all():
    plan = tuning(["hydra/sweeper=optuna", "strategy=ewc", "seeds=4", "tune.experiences=1"])
    assert plan is not None
    assert "seeds=4" not in plan.search
    assert plan.final(Candidate(("strategy=ewc",), [0.5])) == [
        "--multirun",
        "strategy=ewc",
        "seeds=4",
    ]


def test_settings_are_chosen_by_the_mean_over_seeds_for_each_strategy_and_scenario():
    first = ["train.experiences=2", "scenario.validation=0.2"]
    lines = [
        line(
            accuracy,
            f"strategy={strategy}",
            f"strategy.strength={strength}",
            f"seed={seed}",
            *first,
        )
        for strategy, strength, seed, accuracy in [
            ("ewc", 1, 0, 0.9),
            ("ewc", 1, 1, 0.3),
            ("ewc", 10, 0, 0.7),
            ("ewc", 10, 1, 0.7),
            ("mas", 1, 0, 0.8),
            ("mas", 1, 1, 0.8),
            ("mas", 10, 0, 0.99),
            ("mas", 10, 1, None),  # it failed
        ]
    ]
    ewc, mas = candidates(lines)
    assert [c.overrides[1] for c in ewc] == ["strategy.strength=10", "strategy.strength=1"]
    assert ewc[0].accuracies == [0.7, 0.7]
    assert [c.overrides for c in mas] == [("strategy=mas", "strategy.strength=1")]
    assert told(ewc, "2") == (
        "chosen on the first 2 experiences: strategy=ewc strategy.strength=10\n"
        "  0.700  strategy.strength=10\n"
        "  0.600  strategy.strength=1"
    )


def test_scenarios_are_compared_and_not_chosen():
    lines = [line(0.5, "scenario.task_labels=false"), line(0.9, "scenario.task_labels=true")]
    assert len([*candidates(lines)]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tune.experiences=0"],
            "tune.experiences=0: expected how many of the first experiences settings are chosen "
            "on, at least 1; for example tune.experiences=2",
        ),
        (
            ["tune.validation=0.1"],
            "tune.experiences=: expected how many of the first experiences settings are chosen "
            "on, at least 1; for example tune.experiences=2",
        ),
        (
            ["tune.experience=2"],
            "tune.experience: expected tune.experiences or tune.validation",
        ),
        (
            ["tune.experiences=2", "train.experiences=1"],
            "train.experiences: with tune.experiences that is tune.experiences; set "
            "tune.experiences instead",
        ),
        (
            ["tune.experiences=2", "scenario.validation=0.1"],
            "scenario.validation: with tune.experiences that is tune.validation; set "
            "tune.validation instead",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, message):
    with pytest.raises(InputError) as error:
        tuning(arguments)
    assert str(error.value) == message


def test_where_no_candidate_finished_it_says_so():
    with pytest.raises(InputError, match="no candidate finished of strategy=ewc"):
        [*candidates([line(None, "strategy=ewc", "strategy.strength=1")])]


def test_one_command_chooses_and_runs(command, tmp_path):
    given = "strategy=ewc strategy.strength=0,1 train.epochs=1 seeds=2 tune.experiences=2"
    outcome = command(given)
    assert outcome.status == 0, outcome.err
    chosen = re.search(r"experiences: strategy=ewc strategy.strength=(\d)", outcome.out)
    assert chosen, outcome.out
    searched = [*tmp_path.glob("runs/tune/split_digits/ewc/*/seed_*/result.json")]
    assert sorted(json.loads(file.read_text())["experiences"] for file in searched) == [2] * 4
    final = [*tmp_path.glob("runs/split_digits/ewc/*/seed_*/config.yaml")]
    assert len(final) == 2
    assert f"strength: {chosen[1]}" in final[0].read_text()
    assert re.search(r"ewc +│ +2 │", outcome.out)
