"""Growth of a recurrent generator in training, and strategies that go on from a saved state."""

import logging

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.mlp import MLP as Perceptron
from clplat.errors import InputError
from clplat.layers.gated import MinGRU
from clplat.layers.recurrent import GRU, LSTM, LeakyRNN
from hypernets.chunked import Chunked
from hypernets.generated import Generated
from hypernets.rnn import RNN
from strategies.growth import Growth, grow
from strategies.hypernet import Hypernet, regulariser

LAYERS = {
    "LSTM": LSTM,
    "GRU": GRU,
    "LeakyRNN": LeakyRNN,
    "LeakyRNN, sum": lambda width: LeakyRNN(width, "leaky_relu", "sum"),
}
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "amsgrad": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
}


def model_of(layer="LSTM", labels=True):
    torch.manual_seed(0)
    target = classifier(Perceptron((1, 4, 4), [7]), nn.Linear(7, 6))
    return Generated(
        target,
        lambda layout: RNN(layout, 3, 2, 5, 41, LAYERS[layer]),
        task_labels=labels,
        classes=6,
    )


def all_numbers(model):
    return model.generator(model.embedding(model.tasks)).detach()


class Widths(SupervisedPlugin):
    """(experience, epoch, units) at every epoch's beginning."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_training_epoch(self, strategy, **kwargs):
        epoch, units = strategy.clock.train_exp_epochs, strategy.model.generator.body.hidden
        self.seen.append((strategy.experience.current_experience, epoch, units))


def units(clusters, make_learner, epochs, **settings):
    """Of each experience, at the beginning of its epochs and at its end."""
    watch, model, found = Widths(), model_of(), []
    learner = make_learner(model, Hypernet(0.1, **settings), watch, lr=1e-4, epochs=epochs)
    for experience in clusters(task_labels=True).train_stream:
        watch.seen = []
        learner.train(experience)
        learner.loss = learner.mb_output = None
        found.append([n for _, _, n in watch.seen] + [model.generator.body.hidden])
    return found


def test_it_grows_before_the_experiences_it_is_told(clusters, make_learner):
    found = units(clusters, make_learner, 2, grow_by=3, grow_at=(0, 2))
    assert found == [[8, 8, 8], [8, 8, 8], [11, 11, 11]]


class Free(SupervisedPlugin):
    """Lets go of the last graph, so that what is tested here is the moment alone."""

    def after_training_iteration(self, strategy, **kwargs):
        strategy.loss, strategy.mb_output = strategy.loss.detach(), None


@pytest.mark.parametrize(("epochs", "grown_from"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_it_grows_half_way_through_a_task_whose_loss_is_too_large(
    clusters, make_learner, epochs, grown_from
):
    watch, model, found = Widths(), model_of(), []
    strategy = Hypernet(0.1, grow_by=2, grow_above=1e-3)
    learner = make_learner(model, Free(), strategy, watch, lr=1e-4, epochs=epochs)
    learner.train(clusters(task_labels=True).train_stream[:2])
    for experience, epoch, n in watch.seen:
        found.append(n)
        assert n == 5 + 2 * experience + 2 * (epoch >= grown_from), (experience, epoch)
    assert len(found) == 2 * epochs


def test_the_loss_that_decides_is_the_mean_of_the_epochs_iterations(clusters, make_learner):
    stream = clusters(task_labels=True).train_stream[:1]
    means = []

    class Mean(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            means.append(float(torch.stack(strategy.losses).mean()))

    make_learner(model_of(), Free(), Mean(), accumulate=2, epochs=3).train(stream)
    for factor, grown in ((0.9999, 7), (1.0001, 5)):
        model = model_of()
        strategy = Hypernet(0.1, grow_by=2, grow_above=means[1] * factor)
        make_learner(model, Free(), strategy, accumulate=2, epochs=3).train(stream)
        assert model.generator.body.hidden == grown


def test_a_task_that_is_learned_does_not_grow_it(clusters, make_learner):
    assert units(clusters, make_learner, 2, grow_by=2, grow_above=100.0) == [[5, 5, 5]] * 3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_at_that_moment_nothing_generated_changes_and_moments_are_kept(
    layer, optimizer, clusters, make_learner, caplog
):
    model = model_of(layer)
    learner = make_learner(model, optimizer=OPTIMIZERS[optimizer])
    learner.train(clusters(task_labels=True).train_stream[:2])
    before, optim = all_numbers(model), learner.optimizer
    old = {n: (p.shape, copied(optim.state[p])) for n, p in model.generator.named_parameters()}
    with caplog.at_level(logging.INFO, "clplat"):
        grow(learner, 3)
    assert caplog.messages == ["the generator has 8 units from here on"]
    torch.testing.assert_close(all_numbers(model), before, rtol=0, atol=1e-6)

    free = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, free)) == sorted(id(p) for p in optim.param_groups[0]["params"])
    changed = 0
    for name, p in model.generator.named_parameters():
        shape, states = old[name]
        assert optim.state[p].keys() == states.keys()
        for key, value in optim.state[p].items():
            then = states[key]
            if then.ndim == 0 or p.shape == shape:
                assert torch.equal(value, then)
                continue
            changed += 1
            where = entries_of_old_units(name, p, 8)
            assert value.shape == p.shape
            assert torch.equal(value[where], then.flatten())
            assert not value[~where].any()
    assert changed >= 4


def copied(state):
    return {key: value.clone() for key, value in state.items()}


def entries_of_old_units(name, parameter, width):
    """A mask: gate by gate, the first 5 of `width` units on each axis of units."""
    axes = {"output.weight": [1], "recurrent.recurrent": [2, 3]}
    mask = torch.ones_like(parameter, dtype=torch.bool)
    for axis in axes.get(name.removeprefix("body."), [0]):
        index = torch.arange(parameter.shape[axis]) % width >= 5
        mask[(slice(None),) * axis + (index,)] = False
    return mask


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layer", LAYERS)
def test_training_goes_on_and_the_new_units_learn(layer, optimizer, clusters, make_learner):
    model = model_of(layer)
    learner = make_learner(model, Hypernet(0.1), optimizer=OPTIMIZERS[optimizer])
    stream = clusters(task_labels=True).train_stream
    learner.train(stream[0])
    grow(learner, 3)
    start = {n: p.detach().clone() for n, p in model.generator.named_parameters()}
    learner.train(stream[1])
    for name, p in model.generator.named_parameters():
        new = ~entries_of_old_units(name, p, 8) if p.shape != (p.numel(),) else p == p
        if name in ("body.output.weight", "body.recurrent.recurrent"):
            assert (p != start[name])[new].float().mean() > 0.9, name
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("targets", ["stored", "recomputed"])
@pytest.mark.parametrize("layer", LAYERS)
def test_growth_inside_a_task_leaves_the_regulariser_as_it_was(
    layer, targets, clusters, make_learner
):
    found = []

    class Watch(SupervisedPlugin):
        def value(self, learner):
            embeddings = learner.model.embedding(strategy.earlier).detach()
            wanted = strategy._targets(learner.model, None, embeddings)
            numbers = learner.model.generator(embeddings)
            return float(regulariser(numbers, wanted).detach())

        def after_training_epoch(self, learner, **kwargs):
            if learner.experience.current_experience != 1:
                return
            found.append((self.value(learner), learner.model.generator.body.hidden))
            learner.loss, learner.mb_output = learner.loss.detach(), None

    strategy = Hypernet(1e-6, targets=targets, grow_by=2, grow_above=1e-6)
    before = Watch()
    learner = make_learner(model_of(layer), Free(), before, strategy, Watch(), epochs=2)
    learner.train(clusters(task_labels=True).train_stream[:2])
    (value, width), (after, wider) = found[:2]
    assert wider == width + 2
    assert value > 1e-4
    assert after == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("name", ["as it is", "importance", "growth"])
def test_it_runs_in_avalanches_own_loop(name, avalanche_clusters, make_learner, make_template):
    settings = {
        "as it is": {"beta": 0.5},
        "importance": {"importance": "empirical", "targets": "recomputed"},
        "growth": {"grow_by": 2, "grow_at": (1,)},
    }[name]
    stream, models = avalanche_clusters(task_labels=True).train_stream, []
    for make_loop in (make_learner, make_template):
        loop = make_loop(model_of(), Hypernet(**settings))
        torch.manual_seed(4)
        for experience in stream:
            loop.train(experience)
        models.append(dict(loop.model.named_parameters()))
    for n, p in models[0].items():
        torch.testing.assert_close(p, models[1][n])


# --- a saved state -------------------------------------------------------------------------------

RESUMED = {
    "stored": {},
    "recomputed": {"targets": "recomputed"},
    "importance": {"importance": "exact", "subset": 1},
    "growth": {"grow_by": 2, "grow_at": (1, 2), "targets": "recomputed"},
    "classifier": {"inference": "classifier", "capacity": 20},
}


@pytest.fixture
def mlp():
    """In place of the one that `resume_and_compare` would take: weights are generated."""
    return lambda head: model_of(labels=head == "multi")


@pytest.mark.parametrize("name", RESUMED)
def test_a_restored_strategy_goes_on_exactly_as_the_original(name, resume_and_compare):
    head = "single" if name == "classifier" else "multi"
    strategy, restored = resume_and_compare(lambda: Hypernet(0.1, **RESUMED[name]), head)
    fresh = Hypernet(0.1, **RESUMED[name])
    fresh.load_state_dict(strategy.state_dict())
    for other in (restored, fresh):
        assert other.earlier == strategy.earlier == [0, 1]
        for field in ("targets", "importance", "weight"):
            one, two = getattr(strategy, field), getattr(other, field)
            assert (one is None and two is None) or torch.equal(one, two)
        assert other.before.keys() == strategy.before.keys()


# --- refusals ------------------------------------------------------------------------------------


def test_a_negative_number_of_units_is_refused():
    with pytest.raises(InputError) as caught:
        Growth(-1, None, ())
    assert str(caught.value) == (
        "strategy.grow_by=-1: expected a whole number of units to add, 0 or more; change it"
    )


@pytest.mark.parametrize("settings", [{"grow_above": 0.5}, {"grow_at": [1]}])
def test_a_time_to_grow_without_units_is_refused(settings):
    with pytest.raises(InputError) as caught:
        Hypernet(**settings)
    assert str(caught.value) == (
        "strategy.grow_by=0: grow_above and grow_at say when, and nothing is to be added; set "
        "strategy.grow_by=8 or so"
    )


@pytest.mark.parametrize(
    "generator", [Chunked, lambda layout: RNN(layout, layer=MinGRU)], ids=["chunked", "MinGRU"]
)
def test_a_generator_without_hidden_units_of_its_own_is_refused(generator):
    target = classifier(Perceptron((1, 4, 4), [7]), nn.Linear(7, 6))
    model = Generated(target, generator)
    Hypernet().check_model(model)
    with pytest.raises(InputError) as caught:
        Hypernet(grow_by=4, grow_at=[1]).check_model(model)
    assert str(caught.value) == (
        "strategy.grow_by=4: this generator has no hidden units to be added to; set hypernet=rnn "
        "with an LSTM, GRU or LeakyRNN, or strategy.grow_by=0"
    )
