"""The infinite schedule: an experience starts from before the annealing of the last one."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch.optim import SGD, Adam

from clplat.adapter import AvalancheTemplate
from clplat.errors import TrainingError
from clplat.schedule import LearningRate, cosine, infinite
from tests.handed_over import through_a_file

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
