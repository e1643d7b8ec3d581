"""Overrides and options in any order."""

import pytest

from clplat.arguments import parted

ASKED = ["--config-dir", "mylab", "--config-dir=other", "-m", "--cfg", "job", "--info", "all", "-i"]


@pytest.mark.parametrize("place", range(4))
def test_options_go_with_their_values_wherever_they_stand(place):
    overrides = ["strategy=ewc", "seed=0,1", "~schedule"]
    given = [*overrides[:place], *ASKED, *overrides[place:]]
    assert parted(given) == (overrides, ASKED)


@pytest.mark.parametrize(
    "given", ["strategy=lwf -m train.epochs=1,2", "strategy=lwf --config-dir . train.epochs=1,2 -m"]
)
def test_options_may_stand_among_overrides(given, command):
    outcome = command(given)
    assert outcome.status == 0, outcome.err
    assert "2 runs: 2 finished" in outcome.err
    assert outcome.err.count(" lwf seed 0: ") + outcome.out.count(" lwf seed 0: ") == 2
