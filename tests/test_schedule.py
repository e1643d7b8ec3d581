"""Schedules in closed form, and the plugin against PyTorch's own schedulers and a bare loop."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from clplat.adapter import AvalancheTemplate
from clplat.errors import InputError, TrainingError
from clplat.schedule import (
    LearningRate,
    constant,
    cosine,
    infinite,
    step,
    warm_cosine,
    warmup_stable_decay,
)
from tests.handed_over import through_a_file

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


# --- resuming from before an annealing -------------------------------------------------------

EPOCHS, ITERATIONS = 4, 12  # of 3 batches each: make_learner's batches of 8 of the clusters' 24
SCHEDULE = infinite(warmup=0.25, cooldown=0.25, annealing=0.25)
BEGINS = 9


class Watch(SupervisedPlugin):
    """Copies weights and optimizer state when an annealing begins, when it has ended, and when
    the next experience begins; notes the rates."""

    def __init__(self):
        super().__init__()
        self.before, self.after, self.begun, self.rates = [], [], [], []

    def before_training_exp(self, strategy, **kwargs):
        self.begun.append(state_of(strategy))

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == BEGINS:
            self.before.append(state_of(strategy))

    def before_update(self, strategy, **kwargs):
        self.rates.append(strategy.optimizer.param_groups[0]["lr"])

    def after_training_exp(self, strategy, **kwargs):
        self.after.append(state_of(strategy))


def state_of(strategy) -> dict[str, torch.Tensor]:
    """Weights and moments by name, copied."""
    values = dict(strategy.model.state_dict())
    for name, parameter in strategy.model.named_parameters():
        for key, value in strategy.optimizer.state.get(parameter, {}).items():
            values[f"{name} {key}"] = value
    return {name: value.clone() for name, value in values.items()}


def differing(one: dict, other: dict) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def adam(groups):
    return Adam(groups, lr=0.01)


def momentum(groups):
    return SGD(groups, lr=0.1, momentum=0.9)


def rates_expected(peak: float) -> list[float]:
    rise, half = [0, 1 / 3, 2 / 3], [math.cos(math.pi * k / 3) for k in range(3)]
    first = [*rise, *[0.1 + 0.9 * (1 + c) / 2 for c in half], *[0.1] * 3]
    annealed = [0.1 ** (1 + k / 3) for k in range(3)]
    return [peak * factor for factor in [*first, *annealed, *[0.1] * 9, *annealed]]


def test_a_run_is_that_of_a_bare_loop_that_saves_and_loads(clusters, mlp, make_learner, bare_loop):
    stream = clusters(experiences=2).train_stream
    watch = Watch()
    plugins = (LearningRate(SCHEDULE), watch)
    learner = make_learner(mlp(), *plugins, optimizer=momentum, epochs=EPOCHS)
    learner.train(stream)
    assert watch.rates == pytest.approx(rates_expected(0.1), rel=1e-12)

    reference = mlp()
    optimizer = momentum(reference.parameters())
    count, saved = 0, []

    def update(x, y):
        nonlocal count
        if count == ITERATIONS:
            reference.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        if count == BEGINS:
            saved.extend(copy.deepcopy([reference.state_dict(), optimizer.state_dict()]))
        optimizer.param_groups[0]["lr"] = watch.rates[count]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(reference(x), y).backward()
        optimizer.step()
        count += 1

    bare_loop(reference, stream, epochs=EPOCHS, update=update)
    assert count == 2 * ITERATIONS
    for name, value in learner.model.state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [adam, momentum])
def test_each_experience_begins_bit_for_bit_where_the_last_ones_annealing_began(
    clusters, mlp, make_learner, optimizer
):
    watch = Watch()
    plugins = (watch, LearningRate(SCHEDULE))  # after its own kind too, an experience has begun
    learner = make_learner(mlp(), *plugins, optimizer=optimizer, epochs=EPOCHS)
    learner.train(clusters(experiences=3).train_stream)
    for before, after, begun in zip(watch.before, watch.after, watch.begun[1:], strict=False):
        assert not differing(before, begun)
        assert differing(after, begun)
    assert not differing(watch.after[-1], state_of(learner))  # the end is annealed


def test_an_evaluation_between_experiences_sees_the_annealed_weights(
    clusters, mlp, make_learner, weights
):
    scenario, seen = clusters(experiences=2), []

    class Evaluated(SupervisedPlugin):
        def before_eval_exp(self, strategy, **kwargs):
            seen.append(weights(strategy.model))

    watch = Watch()
    plugins = (LearningRate(SCHEDULE), watch, Evaluated())
    learner = make_learner(mlp(), *plugins, epochs=EPOCHS)
    for experience in scenario.train_stream:
        learner.train(experience)
        learner.eval(scenario.test_stream)
    assert not differing(seen[0], watch.after[0])
    assert not differing(seen[2], watch.after[1])
    assert not differing(watch.before[0], watch.begun[1])


@pytest.mark.parametrize("head", ["growing", "multi"])
def test_a_head_that_grew_since_keeps_what_is_new(clusters, mlp, make_learner, head):
    scenario = clusters(experiences=3, task_labels=head == "multi")
    watch = Watch()
    plugins = (LearningRate(SCHEDULE), watch)
    learner = make_learner(mlp(head), *plugins, optimizer=adam, epochs=EPOCHS)
    for experience in scenario.train_stream:
        learner.train(experience)
        learner.eval(scenario.test_stream)  # makes the heads of tasks to come
        watch.after[-1] = state_of(learner)
    for before, after, begun in zip(watch.before, watch.after, watch.begun[1:], strict=False):
        for name, value in before.items():
            if "columns" in name:
                continue
            leading = tuple(slice(size) for size in value.shape)
            assert torch.equal(begun[name][leading], value), name
            if "exp_avg" in name:
                assert not begun[name][value.shape[0] :].any(), name
        for name in begun.keys() & after.keys() - before.keys():
            assert torch.equal(begun[name], after[name]), name
    new = watch.begun[1].keys() & watch.after[0].keys() - watch.before[0].keys()
    assert bool(new) == (head == "multi")


def test_a_head_that_an_evaluation_replaced_by_a_wider_one_is_put_back_with_its_moments(
    clusters, mlp, make_learner
):
    watch, stream = Watch(), clusters(experiences=2).train_stream
    plugins = (LearningRate(SCHEDULE), watch)
    learner = make_learner(mlp(), *plugins, optimizer=adam, epochs=EPOCHS)
    learner.train(stream[0])
    wide = torch.nn.Linear(12, 8)
    new_rows = wide.weight[6:].detach().clone()
    learner.model.head = wide
    learner.train(stream[1])
    before, begun = watch.before[0], watch.begun[1]
    assert torch.equal(begun["head.weight"], torch.cat([before["head.weight"], new_rows]))
    for key in ("head.weight exp_avg", "head.weight exp_avg_sq"):
        assert torch.equal(begun[key], torch.cat([before[key], torch.zeros(2, 12)])), key
    assert begun["head.weight step"] == BEGINS


def test_a_run_in_avalanches_loop_is_the_run_in_ours(
    avalanche_clusters, mlp, make_learner, make_template, clusters, weights
):
    template = make_template(mlp("multi"), LearningRate(SCHEDULE), train_epochs=EPOCHS)
    template.train(avalanche_clusters(task_labels=True).train_stream)
    learner = make_learner(mlp("multi"), LearningRate(SCHEDULE), epochs=EPOCHS)
    learner.train(clusters(task_labels=True).train_stream)
    mine, theirs = weights(learner.model), weights(template.model)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)


def test_avalanches_loop_begins_bit_for_bit_where_the_annealing_began(
    avalanche_clusters, mlp, make_template
):
    watch, model = Watch(), mlp()
    options = {"train_epochs": EPOCHS, "optimizer": Adam(model.parameters(), lr=0.01)}
    template = make_template(model, LearningRate(SCHEDULE), watch, **options)
    template.train(avalanche_clusters(experiences=2).train_stream)
    assert watch.rates == pytest.approx(rates_expected(0.01), rel=1e-12)
    assert not differing(watch.before[0], watch.begun[1])


def test_a_template_behind_our_face_does_the_same(clusters, mlp, make_learner, weights):
    stream, ends = clusters(experiences=2).train_stream, []
    for make in (make_learner, None):
        plugins = [LearningRate(SCHEDULE)]
        if make:
            learner = make(mlp(), *plugins, optimizer=momentum, epochs=EPOCHS)
        else:
            options = {"optimizer": momentum, "batch_size": 8, "epochs": EPOCHS}
            learner = AvalancheTemplate(mlp(), template=Naive, plugins=plugins, **options)
        learner.train(stream)
        ends.append(weights(learner.model))
    assert not differing(*ends)


class Stops(SupervisedPlugin):
    """Ends each experience after so many iterations."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations + 1 == self.after:
            strategy.stop_training()


@pytest.mark.parametrize(("after", "resumes"), [(5, False), (9, False), (10, True)])
def test_an_experience_that_stopped_before_its_annealing_is_gone_on_from(
    clusters, mlp, make_learner, after, resumes
):
    watch = Watch()
    plugins = (LearningRate(SCHEDULE), watch, Stops(after))
    learner = make_learner(mlp(), *plugins, optimizer=adam, epochs=EPOCHS)
    learner.train(clusters(experiences=2).train_stream)
    assert watch.rates[after] == pytest.approx(0.001)  # no second warm-up
    assert bool(differing(watch.after[0], watch.begun[1])) == resumes
    assert len(watch.before) == 2 * resumes


def test_other_schedules_keep_no_weights(clusters, mlp, make_learner):
    watch, plugin = Watch(), LearningRate(cosine())
    learner = make_learner(mlp(), plugin, watch, optimizer=adam, epochs=EPOCHS)
    learner.train(clusters(experiences=2).train_stream)
    assert not differing(watch.after[0], watch.begun[1])
    assert plugin.state_dict()["kept"] is None


def test_the_copy_is_let_go_when_it_has_been_put_back(clusters, mlp, make_learner):
    plugin, held = LearningRate(SCHEDULE), []

    class Holds(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            held.append(plugin.kept is not None)

        after_training_exp = before_training_exp

    learner = make_learner(mlp(), plugin, Holds(), epochs=EPOCHS)
    learner.train(clusters(experiences=2).train_stream)
    assert held == [False, True, False, True]


@pytest.mark.parametrize("optimizer", [adam, momentum])
def test_a_run_resumed_between_experiences_ends_as_it_would_have(
    clusters, mlp, make_learner, optimizer
):
    stream = clusters(experiences=2).train_stream
    options = {"optimizer": optimizer, "epochs": EPOCHS}
    plugin, again = LearningRate(SCHEDULE), LearningRate(SCHEDULE)
    learner = make_learner(mlp(), plugin, **options)
    learner.train(stream[0])
    resumed = make_learner(mlp(), again, **options)
    again.load_state_dict(through_a_file(plugin.state_dict()))
    resumed.model.load_state_dict(through_a_file(learner.model.state_dict()))
    resumed.optimizer.load_state_dict(through_a_file(learner.optimizer.state_dict()))
    resumed.order.set_state(learner.order.get_state())
    vars(resumed.clock).update(vars(learner.clock))
    learner.train(stream[1])
    resumed.train(stream[1])
    assert not differing(state_of(learner), state_of(resumed))


class SavedAt(SupervisedPlugin):
    """Saves plugin, model and optimizer at an iteration of the first experience, or loads them:
    as far as the loop goes, what resuming in mid-experience comes to."""

    def __init__(self, plugin, iteration, saved=None):
        super().__init__()
        self.plugin, self.iteration, self.saved = plugin, iteration, saved

    def after_training_iteration(self, strategy, **kwargs):
        clock = strategy.clock
        if (clock.train_exp_counter, clock.train_exp_iterations) != (0, self.iteration):
            return
        parts = (self.plugin, strategy.model, strategy.optimizer)
        if self.saved is None:
            self.saved = through_a_file([part.state_dict() for part in parts])
        else:
            for part, state in zip(parts, self.saved, strict=True):
                part.load_state_dict(state)


@pytest.mark.parametrize("iteration", [4, BEGINS - 1, BEGINS, BEGINS + 1])
def test_a_run_resumed_in_mid_experience_ends_as_it_would_have(
    clusters, mlp, make_learner, iteration
):
    stream = clusters(experiences=2).train_stream
    ends, saved = [], None
    for seed in range(2):  # the second begins with other weights, and is given the first's
        plugin, model = LearningRate(SCHEDULE), mlp()
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        saving = SavedAt(plugin, iteration, saved)
        learner = make_learner(model, plugin, saving, optimizer=adam, epochs=EPOCHS)
        learner.train(stream)
        saved = saving.saved
        ends.append(state_of(learner))
    assert not differing(*ends)


def test_an_experience_begun_again_within_its_annealing_is_not_put_back():
    plugin = LearningRate(SCHEDULE)
    plugin.kept, plugin.kept_in = {"weights": {}, "moments": {}}, 1
    plugin.before_train_dataset_adaptation(
        SimpleNamespace(clock=SimpleNamespace(train_exp_counter=1))
    )
    assert plugin.kept is not None


@pytest.mark.parametrize("resumed", [False, True])
def test_a_parameter_that_grew_in_place_within_the_annealing_is_named(
    clusters, mlp, make_learner, resumed
):
    schedule = LearningRate(SCHEDULE)

    class Grows(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            if resumed and strategy.clock.train_exp_iterations == BEGINS:
                schedule.load_state_dict(through_a_file(schedule.state_dict()))

        def after_training_exp(self, strategy, **kwargs):
            head = strategy.model.head
            head.weight.data = torch.cat([head.weight.data, head.weight.data[:1]])

    learner = make_learner(mlp(), schedule, Grows(), epochs=EPOCHS)
    with pytest.raises(TrainingError) as error:
        learner.train(clusters(experiences=2).train_stream)
    assert str(error.value) == (
        "schedule.annealing: head.weight grew from (6, 12) to (7, 12) after the annealing began, "
        "and the weights from before it no longer fit; anneal less, or choose another schedule"
    )
