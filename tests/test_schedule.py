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
from clplat.schedule import (
    LearningRate,
    constant,
    cosine,
    infinite,
    step,
    warm_cosine,
    warmup_stable_decay,
)

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


@pytest.mark.parametrize("gamma", [-0.5, 0.0, 1.5, math.nan, "nan"])
def test_a_factor_that_would_turn_the_rate_round_is_refused(gamma):
    with pytest.raises(InputError) as error:
        step(gamma=gamma)
    assert str(error.value) == (
        f"schedule.gamma={gamma}: expected a factor above 0 and at most 1; for example "
        "schedule.gamma=0.1"
    )


@pytest.mark.parametrize("milestones", [[30, 60], [-0.5], [0.5, 1.5], (0.5, math.nan)])
def test_milestones_that_are_no_shares_are_refused(milestones):
    with pytest.raises(InputError) as error:
        step(milestones)
    assert str(error.value) == (
        f"schedule.milestones={list(milestones)}: each is a share of the experience, in 0..1; "
        "divide epochs by train.epochs"
    )


@pytest.mark.parametrize(
    ("done", "factor"),
    [
        *[(0, 0.2), (0.1, 0.4), (0.35, 0.9), (0.4, 1)],
        *[(0.55, 0.1 + 0.9 * (2 + 2**0.5) / 4), (0.7, 0.55), (1, 0.1)],
    ],
)
def test_warm_cosine_rises_along_a_line_and_falls_along_half_a_cosine(done, factor):
    assert warm_cosine(warmup=0.4, start=0.2, final=0.1)(done) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("done", "factor"),
    [(0, 0.2), (0.1, 0.6), (0.2, 1), (0.5, 1), (0.6, 1), (0.7, 0.775), (0.8, 0.55), (1, 0.1)],
)
def test_warmup_stable_decay_rises_stays_and_falls(done, factor):
    schedule = warmup_stable_decay(warmup=0.2, decay=0.4, start=0.2, final=0.1)
    assert schedule(done) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("done", "first", "later"),
    [
        *[(0, 0, 0.1), (0.05, 0.25, 0.1), (0.2, 1, 0.1), (0.4, 0.55, 0.1)],
        *[(0.5, 0.1 + 0.9 * (2 - 2**0.5) / 4, 0.1), (0.6, 0.1, 0.1), (0.75, 0.1, 0.1)],
        *[(0.8, 0.1, 0.1), (0.9, 0.01**0.5 * 0.1**0.5, 0.01**0.5 * 0.1**0.5), (1, 0.01, 0.01)],
    ],
)
def test_infinite_has_four_phases_at_first_and_two_later(done, first, later):
    schedule = infinite(warmup=0.2, cooldown=0.4, annealing=0.2, constant=0.1, final=0.01)
    assert schedule.first(done) == pytest.approx(first, rel=1e-12)
    assert schedule.later(done) == pytest.approx(later, rel=1e-12)
    assert schedule.annealing == 0.2


shares = st.tuples(*[st.floats(0.05, 1) for _ in range(4)]).map(
    lambda four: [round(one / sum(four), 6) for one in four[:3]]
)


@given(phases=shares, done=shares_done, start=st.floats(0, 1), final=st.floats(0.01, 1))
def test_no_schedule_jumps(phases, done, start, final):
    warmup, cooldown, annealing = phases
    schedules = [
        warm_cosine(warmup, start, final),
        warmup_stable_decay(warmup, annealing, start, final),
        infinite(warmup, cooldown, annealing, final, final**2).first,
        infinite(warmup, cooldown, annealing, final, final**2).later,
    ]
    joints = [warmup, warmup + cooldown, 1 - annealing]
    for schedule in schedules:
        assert 0 <= schedule(done) <= 1 + 1e-12
        for joint in joints:  # the steepest is a ln(100) in a share of about 0.01
            assert schedule(joint - 1e-9) == pytest.approx(schedule(joint + 1e-9), abs=1e-5)


def test_phases_may_be_absent():
    assert warm_cosine(warmup=0)(0) == 1
    assert warm_cosine(warmup=1, start=0.5)(1) == 1
    assert warmup_stable_decay(warmup=0, decay=0)(0) == 1
    assert warmup_stable_decay(warmup=0, decay=0)(1) == 1
    schedule = infinite(warmup=0, cooldown=0, annealing=0)
    assert [schedule.first(done) for done in (0, 0.5, 1)] == [0.1, 0.1, 0.1]
    assert infinite(warmup=0, cooldown=0.5).first(0) == 1
    assert infinite(warmup=0.5, cooldown=0).first(0.5) == 0.1
    assert infinite(warmup=0.5, cooldown=0.5, annealing=0).first(1) == 0.1


@pytest.mark.parametrize("phases", [(0.1, 0.2, 0.7), (0.7, 0.2, 0.1), (0.1, 0.3, 0.6), (0, 0, 1)])
def test_phases_that_fill_the_experience_to_a_rounding_are_taken(phases):
    warmup, cooldown, annealing = phases
    assert infinite(warmup, cooldown, annealing).first(1) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: infinite(warmup=0.5, cooldown=0.4, annealing=0.3),
            "schedule.warmup=0.5, schedule.cooldown=0.4, schedule.annealing=0.3: phases that are "
            "1.2 experiences long together; expected at most 1; shorten one of them",
        ),
        (
            lambda: warmup_stable_decay(warmup=0.5, decay=0.75),
            "schedule.warmup=0.5, schedule.decay=0.75: phases that are 1.25 experiences long "
            "together; expected at most 1; shorten one of them",
        ),
        (
            lambda: infinite(cooldown=-0.1),
            "schedule.cooldown=-0.1: expected a share of the experience, in 0..1; for example "
            "schedule.cooldown=0.1",
        ),
        (
            lambda: infinite(annealing=math.nan),
            "schedule.annealing=nan: expected a share of the experience, in 0..1; for example "
            "schedule.annealing=0.1",
        ),
        (
            lambda: warm_cosine(warmup=5),
            "schedule.warmup=5: expected a share of the experience, in 0..1; for example "
            "schedule.warmup=0.1",
        ),
        (
            lambda: warm_cosine(start=1.5),
            "schedule.start=1.5: expected a share of the peak rate, in 0..1; for example "
            "schedule.start=0.01",
        ),
        (
            lambda: warmup_stable_decay(final=-1),
            "schedule.final=-1: expected a share of the peak rate, in 0..1; for example "
            "schedule.final=0.01",
        ),
    ],
)
def test_phases_and_rates_that_do_not_add_up_are_refused(make, text):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == text


@pytest.mark.parametrize(
    ("rate", "final"), [(0.1, 0.2), (0.1, 0), (0, 0), (1.5, 0.1), (-0.1, -0.2), (math.nan, 0.1)]
)
def test_rates_of_the_infinite_schedule_that_are_out_of_order_are_refused(rate, final):
    with pytest.raises(InputError) as error:
        infinite(constant=rate, final=final)
    assert str(error.value) == (
        f"schedule.constant={rate}, schedule.final={final}: shares of the peak rate, expected "
        "0 < final <= constant <= 1; for example constant=0.1 and final=0.01"
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
