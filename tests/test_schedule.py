"""Schedules in closed form, and the plugin against PyTorch's own schedulers."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from clplat.errors import InputError
from clplat.schedule import LearningRate, constant, cosine, step

shares_done = st.floats(0, 1)


def make_strategy(*rates: float, epochs: int = 2, iterations: int = 5) -> SimpleNamespace:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return SimpleNamespace(
        optimizer=SGD(groups, lr=1.0),
        train_epochs=epochs,
        dataloader=[None] * iterations,
        clock=SimpleNamespace(train_exp_iterations=0),
    )


def rates_of(strategy: SimpleNamespace) -> list[float]:
    return [group["lr"] for group in strategy.optimizer.param_groups]


def train_experience(plugin: LearningRate, strategy: SimpleNamespace) -> list[list[float]]:
    """The rates at each iteration of one experience."""
    plugin.before_training_exp(strategy)
    rates = []
    for iteration in range(strategy.train_epochs * len(strategy.dataloader)):
        strategy.clock.train_exp_iterations = iteration
        plugin.before_training_iteration(strategy)
        rates.append(rates_of(strategy))
    return rates


# --- the functions ---------------------------------------------------------------------------


def test_constant_is_no_schedule():
    assert constant() is None


@given(done=shares_done, final=st.floats(0, 1))
def test_cosine_falls_from_1_to_final_in_mirror_images_about_the_middle(done, final):
    factor = cosine(final)
    assert factor(0) == 1
    assert factor(1) == pytest.approx(final, abs=1e-12)
    assert final - 1e-12 <= factor(done) <= 1
    assert factor(done) + factor(1 - done) == pytest.approx(1 + final, abs=1e-12)


@given(one=shares_done, other=shares_done)
def test_cosine_never_rises(one, other):
    assert cosine()(max(one, other)) <= cosine()(min(one, other))


@pytest.mark.parametrize(
    ("done", "factor"), [(0, 1), (0.4999, 1), (0.5, 0.1), (0.7499, 0.1), (0.75, 0.01), (1, 0.01)]
)
def test_step_falls_at_each_milestone_and_not_before(done, factor):
    assert step()(done) == pytest.approx(factor, rel=1e-12)


@given(
    done=shares_done,
    milestones=st.lists(shares_done, max_size=4),
    gamma=st.floats(0.1, 0.9),
)
def test_step_multiplies_by_gamma_once_for_each_milestone_passed(done, milestones, gamma):
    expected = 1.0
    for milestone in milestones:
        expected *= gamma if done >= milestone else 1
    assert step(milestones, gamma)(done) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("final", [-0.1, 1.5, math.nan])
def test_a_final_rate_that_is_no_share_of_the_peak_is_refused(final):
    with pytest.raises(InputError) as error:
        cosine(final)
    assert str(error.value) == (
        f"schedule.final={final}: a share of the peak rate is in 0..1; lower it"
    )


@pytest.mark.parametrize("milestones", [[30, 60], [-0.5], [0.5, 1.5], (0.5, math.nan)])
def test_milestones_that_are_no_shares_are_refused(milestones):
    with pytest.raises(InputError) as error:
        step(milestones)
    assert str(error.value) == (
        f"schedule.milestones={list(milestones)}: each is a share of the experience, in 0..1; "
        "divide epochs by train.epochs"
    )


# --- the plugin ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        (cosine(0.1), lambda optimizer: CosineAnnealingLR(optimizer, T_max=10, eta_min=0.05)),
        (step((0.3, 0.8), 0.5), lambda optimizer: MultiStepLR(optimizer, [3, 8], gamma=0.5)),
    ],
)
def test_rates_are_those_of_pytorchs_scheduler_stepped_every_iteration(schedule, scheduler):
    rates = train_experience(LearningRate(schedule), make_strategy(0.5))
    optimizer = make_strategy(0.5).optimizer
    theirs, expected = scheduler(optimizer), []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert [rate for (rate,) in rates] == pytest.approx(expected, rel=1e-12)


def test_each_group_has_a_peak_of_its_own():
    rates = train_experience(LearningRate(cosine()), make_strategy(0.5, 0.02))
    assert rates[0] == [0.5, 0.02]
    for one, other in rates:
        assert one / other == pytest.approx(25, rel=1e-12)


def test_every_experience_starts_at_the_peak_again():
    plugin, strategy = LearningRate(cosine()), make_strategy(0.5, 0.02)
    first = train_experience(plugin, strategy)
    assert train_experience(plugin, strategy) == first


def test_a_group_that_joins_later_peaks_at_its_own_rate():
    plugin, strategy = LearningRate(cosine()), make_strategy(0.5)
    train_experience(plugin, strategy)
    strategy.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1})
    assert train_experience(plugin, strategy)[0] == [0.5, 0.1]


def test_a_group_that_goes_takes_its_peak_with_it():
    plugin, strategy = LearningRate(cosine()), make_strategy(0.5, 0.02)
    train_experience(plugin, strategy)
    del strategy.optimizer.param_groups[1]
    assert train_experience(plugin, strategy)[0] == [0.5]


def test_a_new_optimizer_follows_the_same_peaks():
    plugin, strategy = LearningRate(cosine()), make_strategy(0.5)
    first = train_experience(plugin, strategy)
    strategy.optimizer = make_strategy(0.5).optimizer
    assert train_experience(plugin, strategy) == first


def test_an_experience_of_no_iterations_divides_by_nothing():
    plugin, strategy = LearningRate(cosine()), make_strategy(0.5, iterations=0)
    plugin.before_training_exp(strategy)
    plugin.before_training_iteration(strategy)
    assert rates_of(strategy) == [0.5]


def test_a_resumed_run_peaks_where_the_saved_one_did():
    plugin, strategy = LearningRate(cosine()), make_strategy(0.5, 0.02)
    first = train_experience(plugin, strategy)
    assert rates_of(strategy) != [0.5, 0.02]  # decayed when the optimizer is saved
    resumed = make_strategy(0.5, 0.02)
    resumed.optimizer.load_state_dict(strategy.optimizer.state_dict())
    assert train_experience(LearningRate(cosine()), resumed) == first
