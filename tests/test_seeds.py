"""`seeds=n`: several runs and their mean by one command."""

import re
from pathlib import Path

import pytest

from clplat.errors import InputError
from clplat.seeds import with_seeds


def test_it_is_a_sweep_over_the_first_seeds():
    assert with_seeds(["strategy=ewc", "seeds=3"]) == ["--multirun", "strategy=ewc", "seed=0,1,2"]
    assert with_seeds(["-m", "seeds=1", "a=1,2"]) == ["--multirun", "a=1,2", "seed=0"]
    assert with_seeds(["-m", "seed=1,2"]) == ["-m", "seed=1,2"]


@pytest.mark.parametrize("given", [["seeds=0"], ["seeds=x"], ["seeds=-1"], ["seeds=2", "seeds=3"]])
def test_anything_but_a_number_of_seeds_is_refused(given):
    with pytest.raises(InputError) as error:
        with_seeds(given)
    assert str(error.value) == (
        f"{' '.join(given)}: expected one whole number of at least 1, the number of seeds from 0 "
        "on; for example seeds=5"
    )


def test_seeds_beside_a_seed_are_refused():
    with pytest.raises(InputError, match="seeds=2 seed=4: both say which seeds; leave out one"):
        with_seeds(["seeds=2", "seed=4"])
    with pytest.raises(InputError, match=r"seeds=2 \+\+seed=5: both say which seeds"):
        with_seeds(["seeds=2", "++seed=5"])


def test_one_command_gives_the_runs_and_their_mean(command):
    outcome = command("strategy=finetune,replay train.epochs=1 seeds=2")
    assert outcome.status == 0, outcome.err
    assert "4 runs: 4 finished" in outcome.err
    for name in ("finetune", "replay"):
        assert re.search(rf"│ {name} +│ +2 │ 0\.\d+ ± 0\.\d+", outcome.out), outcome.out


@pytest.mark.parametrize("asked", ["seeds=2", "-m strategy=finetune,lwf"])
def test_the_runs_of_a_sweep_lie_below_the_one_place_that_is_given(asked, command):
    outcome = command(f"train.epochs=1 out=runs/a {asked}")
    assert outcome.status == 0, outcome.err
    assert "2 runs: 2 finished" in outcome.err
    places = [str(file.parent) for file in Path("runs/a").rglob("result.json")]
    assert len(places) == 2
    scheme = r"runs/a/split_digits/(finetune|lwf|replay)/[0-9a-f]{8}/seed_[01]"
    assert all(re.fullmatch(scheme, place) for place in places), places


def test_a_place_for_each_run_is_taken_as_it_is(command):
    outcome = command(
        "strategy=replay train.epochs=1 seeds=2 'out=runs/${strategy.memory}/${seed}'"
    )
    assert outcome.status == 0, outcome.err
    places = {str(file.parent) for file in Path().rglob("result.json")}
    assert places == {"runs/class_balanced/0", "runs/class_balanced/1"}
