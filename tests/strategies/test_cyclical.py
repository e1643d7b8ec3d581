"""The cyclical curriculum: its draws, its batches, a naive loop beside it, cost, and refusals."""

import copy
import json
from itertools import permutations
from pathlib import Path

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.batches import Batches
from clplat.data import tensors_of
from clplat.drawn import DrawnData
from clplat.errors import InputError
from clplat.footprint import memory_bytes
from clplat.scenario import Scenario
from scenarios.streams import stream_of
from strategies.cyclical import CurriculumBatches, Cyclical, draw, probabilities
from strategies.pacing import CURRICULA
from tests.handed_over import through_a_file

HEADS = ["single", "growing", "multi"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Seen(SupervisedPlugin):
    """The samples of each epoch of the loop, batch by batch, as tuples of their pixels."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append([])

    def before_forward(self, strategy, **kwargs):
        x = getattr(strategy, "stored_x", strategy.mb_x)
        self.epochs[-1].append([tuple(row) for row in x.flatten(1).tolist()])


# --- draws ------------------------------------------------------------------------------------


def test_probabilities_go_by_the_inverse_of_clamped_losses():
    losses = torch.tensor([2.0, 0.5, 0.0, 1e-9, 0.01, 30.0])
    inverse = [0.5, 2.0, 100.0, 100.0, 100.0, 1 / 30]
    found = probabilities(losses, 0.01)
    expected = torch.tensor([s / sum(inverse) for s in inverse], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    clamped = [2.0, 0.5, 0.01, 0.01, 0.01, 30.0]
    expected = torch.tensor([s / sum(clamped) for s in clamped], dtype=torch.float64)
    torch.testing.assert_close(probabilities(losses, 0.01, True), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_samples_are_drawn_one_after_the_other_without_replacement(size):
    p, draws = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64), 10000
    expected = {}  # of each set, over the orders in which it may come
    for order in permutations(range(4), size):
        chance, left = 1.0, 1.0
        for k in order:
            chance, left = chance * float(p[k]) / left, left - float(p[k])
        expected[frozenset(order)] = expected.get(frozenset(order), 0) + chance
    order, counts, first = generator(), dict.fromkeys(expected, 0), torch.zeros(4)
    for _ in range(draws):
        drawn = draw(p, size, order)
        counts[frozenset(drawn.tolist())] += 1
        first[drawn[0]] += 1
    for members, chance in expected.items():
        assert counts[members] / draws == pytest.approx(chance, abs=0.02)
    for k in range(4):  # what comes first is any of those drawn
        inclusion = sum(chance for members, chance in expected.items() if k in members)
        assert first[k] / draws == pytest.approx(inclusion / size, abs=0.02)


def test_all_samples_come_by_the_permutation_of_plain_training():
    p = probabilities(torch.rand(37), 0.01)
    one, other = generator(4), generator(4)
    assert torch.equal(draw(p, 37, one), torch.randperm(37, generator=other))
    assert torch.equal(one.get_state(), other.get_state())


def test_batches_run_on_from_epoch_to_epoch_and_from_pass_to_pass():
    epochs = [[3, 0, 5], [1], [6, 2, 4, 0, 1, 3, 5], [9, 8, 7]]
    columns = [torch.arange(11) * 10, torch.arange(11), torch.zeros(11)]
    batches = CurriculumBatches(columns, 4, lambda k: torch.tensor(epochs[k]))
    assert len(batches) == len(Batches(columns, 4)) == 3
    found = list(batches)
    assert [y.tolist() for _, y, _ in found] == [[3, 0, 5, 1], [6, 2, 4, 0], [1, 3, 5]]
    assert all(torch.equal(x, y * 10) for x, y, _ in found)
    assert (batches.epoch, len(batches.rest)) == (3, 0)  # none is drawn before it is needed
    columns = [column[:3] for column in columns]
    batches = CurriculumBatches(columns, 4, lambda k: torch.tensor([[0, 1], [2, 0], [1, 1]][k]))
    assert [y.tolist() for _ in range(2) for _, y, _ in batches] == [[0, 1, 2], [0, 1, 1]]


# --- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["random", "self", "reverse"])
def test_on_all_data_it_is_plain_training_to_the_bit(clusters, mlp, make_learner, weights, scores):
    models = []
    for plugins in ((), (Cyclical("cyclical", scores, start=1, end=1),)):
        torch.manual_seed(2)
        learner = make_learner(mlp(dropout=0.3), *plugins, epochs=3)
        learner.train(clusters(samples=11).train_stream)
        models.append(weights(learner.model))
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


@pytest.mark.parametrize("curriculum", CURRICULA)
def test_as_many_samples_and_updates_as_plain_training_and_none_twice_in_an_epoch(
    clusters, mlp, make_learner, curriculum
):
    scenario, seen = clusters(samples=11), Seen()
    strategy = Cyclical(curriculum, scorer_epochs=1)
    learner = make_learner(mlp(), strategy, seen, epochs=5)
    learner.train(scenario.train_stream[0])
    assert [[len(b) for b in epoch] for epoch in seen.epochs] == [[8, 8, 6]] * 5
    assert learner.clock.train_iterations == 15
    samples = [row for epoch in seen.epochs for batch in epoch for row in batch]
    for size in CURRICULA[curriculum](0.25, 1, 0.5, 5, 22):
        epoch, samples = samples[:size], samples[size:]
        assert len(set(epoch)) == size
    assert not samples


def naive(model, experience, curriculum, epochs, losses=None):
    """A bare loop of one experience: batches of 8, SGD at 0.1, draws by the order of seed 0."""
    x, y, _ = tensors_of(experience.dataset)
    x = x.float() / 255
    order, optimizer = generator(), torch.optim.SGD(model.parameters(), lr=0.1)
    sizes, queue = CURRICULA[curriculum](0.25, 1, 0.5, epochs, len(y)), []
    for _ in range(epochs):
        for start in range(0, len(y), 8):
            while len(queue) < min(8, len(y) - start):
                if curriculum == "self_paced":
                    model.eval()
                    losses = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
                    model.train()
                p = probabilities(losses, 0.1)
                queue += draw(p, sizes.pop(0), order).tolist()
            index = queue[: min(8, len(y) - start)]
            queue = queue[len(index) :]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize(
    ("curriculum", "scores"), [*((name, "self") for name in CURRICULA), ("cyclical", "random")]
)
def test_it_ends_at_the_weights_of_a_naive_loop(
    clusters, mlp, make_learner, bare_loop, curriculum, scores
):
    experience = clusters(samples=11).train_stream[0]
    learner = make_learner(mlp(), Cyclical(curriculum, scores, scorer_epochs=2), epochs=4)
    learner.train(experience)

    x, y, _ = tensors_of(experience.dataset)
    scored = bare_loop(mlp(), [experience])
    losses = nn.functional.cross_entropy(scored(x.float() / 255), y, reduction="none").detach()
    losses = torch.ones(22) if scores == "random" else losses
    reference = naive(mlp(), experience, curriculum, 4, losses)
    for one, other in zip(learner.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_easy_samples_come_more_often_and_in_reverse_hard_ones(clusters, mlp, make_learner):
    experience = clusters(samples=30).train_stream[0]
    x = tensors_of(experience.dataset)[0]
    place = {tuple(row): k for k, row in enumerate(x.flatten(1).tolist())}
    correlation, kept = {}, {}

    class Keep(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            kept["losses"] = strategy.plugins[0]._losses

    for scores in ("self", "random", "reverse"):
        strategy, seen = Cyclical("cyclical", scores, 0.25, 0.25, scorer_epochs=3), Seen()
        learner = make_learner(mlp(), strategy, seen, Keep(), epochs=60, lr=0.01)
        learner.train(experience)
        counts = torch.zeros(60)
        for epoch in seen.epochs:
            for batch in epoch:
                for row in batch:
                    counts[place[row]] += 1
        assert counts.sum() == 60 * 60
        if scores == "random":
            assert counts.std() < 3 * 60**0.5
            continue
        rank = kept["losses"].argsort().argsort().float()
        correlation[scores] = float(torch.corrcoef(torch.stack([counts, rank]))[0, 1])
    assert correlation["self"] < -0.5
    assert correlation["reverse"] > 0.5


def test_losses_of_another_run_are_drawn_by_as_its_own(
    clusters, mlp, make_learner, weights, tmp_path
):
    scenario, folder, models = clusters(samples=11), str(tmp_path), []
    writing = Cyclical(scorer_epochs=3, write_losses=folder)
    reading = Cyclical(scores="transfer", read_losses=folder)
    for strategy in (writing, reading):
        learner = make_learner(mlp(), strategy, epochs=3)
        learner.train(scenario.train_stream)
        models.append(weights(learner.model))
    reading.check(scenario)
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert writing.measured["scorer_iterations"] == 3 * 3 * 3
    assert reading.measured == {"scorer_iterations": 0, "scored_samples": 0, "scoring_seconds": 0}


@pytest.mark.parametrize("scores", ["self", "random"])
def test_in_avalanches_loop_it_gives_the_weights_that_it_gives_in_ours(
    clusters, mlp, make_learner, make_template, scores
):
    models = []
    for make, name in ((make_learner, "epochs"), (make_template, "train_epochs")):
        loop = make(mlp(), Cyclical(scores=scores), **{name: 4})
        torch.manual_seed(0)  # Avalanche's loop has no generator of its own
        loop.train(clusters(samples=11).train_stream[0])
        models.append(loop.model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)


def test_what_scoring_costs_is_measured_and_nothing_is_held(clusters, mlp, make_learner):
    stream = clusters(samples=11).train_stream
    expected = {"self": (2 * 3 * 4, 2 * 22), "reverse": (2 * 3 * 4, 2 * 22), "random": (0, 0)}
    for scores, (iterations, samples) in expected.items():
        strategy = Cyclical(scores=scores)
        learner = make_learner(mlp(), strategy, epochs=4)
        learner.train(stream[:2])
        assert strategy.measured["scorer_iterations"] == iterations
        assert strategy.measured["scored_samples"] == samples
        assert (strategy.measured["scoring_seconds"] > 0) == (scores != "random")
        assert memory_bytes(strategy, learner.model) == 0

    strategy = Cyclical("self_paced")
    make_learner(mlp(), strategy, epochs=7).train(stream[0])
    partial = sum(size < 22 for size in CURRICULA["self_paced"](0.25, 1, 0.5, 7, 22))
    assert strategy.measured["scorer_iterations"] == 0
    assert strategy.measured["scored_samples"] == 22 * partial


# --- state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("curriculum", ["cyclical", "self_paced"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head, curriculum):
    strategy, restored = resume_and_compare(lambda: Cyclical(curriculum), head)
    seconds = "scoring_seconds"
    assert strategy.measured.pop(seconds) > 0
    assert restored.measured.pop(seconds) > 0
    assert strategy.measured == restored.measured


class Interrupted(SupervisedPlugin):
    """Keeps all there is to keep at the end of the second epoch of the second experience."""

    def after_training_epoch(self, strategy, **kwargs):
        clock = strategy.clock
        if (clock.train_exp_counter, clock.train_exp_epochs) == (1, 1):
            self.state = through_a_file(strategy.plugins[0].state_dict())
            self.model, self.order = copy.deepcopy(strategy.model), strategy.order.get_state()


class Stop(SupervisedPlugin):
    """Ends the experience after so many epochs."""

    def after_training_epoch(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs == 2:
            strategy.stop_training()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("curriculum", CURRICULA)
def test_it_goes_on_from_its_state_in_mid_experience(
    clusters, mlp, make_learner, weights, head, curriculum
):
    stream = clusters(samples=11, task_labels=head == "multi").train_stream
    interrupted, seen, rest = Interrupted(), Seen(), Seen()
    options = {"epochs": 5, "batch_size": 3}
    learner = make_learner(mlp(head), Cyclical(curriculum), interrupted, seen, **options)
    learner.train(stream[:2])

    restored = Cyclical(curriculum)
    restored.load_state_dict(interrupted.state)
    restored.load_state_dict(restored.state_dict())
    resumed = make_learner(interrupted.model, restored, rest, Stop(), **options)
    resumed.order.set_state(interrupted.order)
    resumed.clock.train_exp_counter = 1
    resumed.train(stream[1])
    assert rest.epochs[:3] == seen.epochs[-3:]
    assert (
        restored.measured["scorer_iterations"] == interrupted.state["measured"]["scorer_iterations"]
    )
    one, other = weights(learner.model), weights(resumed.model)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


# --- refusals ---------------------------------------------------------------------------------

SHARES = (
    "strategy.start={}, strategy.end={}, strategy.alpha={}: expected shares of the data, "
    "0 < start <= end <= 1, and a ratio between them, 0 < alpha < 1; for example 0.25, 1 and 0.5"
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            (dict(zip(("start", "end", "alpha"), given, strict=True)), SHARES.format(*given))
            for given in [(0, 1, 0.5), (0.5, 0.4, 0.5), (0.5, 1.1, 0.5), (0.25, 1, 1), (0.25, 1, 0)]
        ),
        (
            {"least_loss": 0},
            "strategy.least_loss=0: expected more than 0, for 1/loss to be finite; for example "
            "strategy.least_loss=0.1",
        ),
        *(
            (
                {"scorer_epochs": given},
                f"strategy.scorer_epochs={given}: expected a whole number of at least 1; raise "
                "it, or leave it null for train.epochs",
            )
            for given in (0, 1.5)
        ),
        (
            {"curriculum": "spiral"},
            "strategy.curriculum=spiral: choose one of cyclical, increasing, decreasing, "
            "self_paced",
        ),
        (
            {"scores": "easy"},
            "strategy.scores=easy: choose one of self, reverse, transfer, random",
        ),
        (
            {"curriculum": "self_paced", "scores": "random"},
            "strategy.scores=random: a self-paced curriculum goes by the losses of the model in "
            "training; set strategy.scores=self, or strategy.curriculum=increasing",
        ),
        *(
            (
                {"scores": scores, "read_losses": folder},
                f"strategy.scores={scores}, strategy.read_losses={folder or 'null'}: transfer "
                "goes by the folder that another run wrote by strategy.write_losses, and nothing "
                "else does; set both, or neither",
            )
            for scores, folder in (("transfer", None), ("self", "losses"))
        ),
        *(
            (
                {**given, "write_losses": "losses"},
                "strategy.write_losses=losses: no other model is trained here; set "
                "strategy.scores=self or reverse, and a curriculum that is not self_paced",
            )
            for given in ({"scores": "random"}, {"curriculum": "self_paced"})
        ),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(InputError) as error:
        Cyclical(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "scenario=online_digits strategy=cyclical",
            "strategy: Cyclical acts where an experience begins or ends, and this scenario is one",
        ),
        (
            "scenario=recall strategy=cyclical backbone=mingru backbone.pooling=none "
            "backbone.vocabulary=129",
            "strategy: Cyclical asks for the class of each sample, and this scenario has several",
        ),
        (
            "strategy=cyclical head=nearest_mean",
            "head=nearest_mean: samples are scored by what the model answers in evaluation, and "
            "its means are of earlier experiences then; set head=auto, or strategy.scores=random",
        ),
        (
            "strategy=cyclical strategy.scores=transfer strategy.read_losses=nowhere",
            "strategy.read_losses=nowhere: experience_0.pt: no such file; give the folder that",
        ),
        (
            "scenario=cfsl/classes_and_samples_4 scenario.tasks=2 strategy=cyclical "
            "strategy.write_losses=losses",
            "strategy.read_losses, strategy.write_losses: a folder holds the losses of one "
            "task's experiences, and this scenario has 2 tasks; set both to null",
        ),
        (
            "strategy=cyclical data.resident_gigabytes=0",
            "strategy: Cyclical draws from samples that are held as tensors, and these are read "
            "by a DataLoader; raise data.resident_gigabytes, or choose finetune",
        ),
    ],
)
def test_what_does_not_fit_is_refused(command, arguments, message):
    outcome = command(f"{arguments} train.epochs=1 out=runs/a")
    assert outcome.status == 2
    assert message in outcome.err


def test_samples_that_are_drawn_anew_are_refused():
    """Of one target each: those of our own scenarios have several."""
    data = DrawnData(lambda count, g: (torch.rand(count, 3), torch.zeros(count).long()), 5, 0, 0)
    stream = stream_of("train", [data])
    scenario = Scenario([stream], n_classes=1, input_shape=(3,))
    with pytest.raises(InputError) as error:
        Cyclical().check(scenario)
    assert str(error.value) == (
        "strategy: Cyclical draws again and again from samples that lie ready, and this scenario "
        "draws fresh ones for every batch; choose finetune, or a scenario of samples, such as "
        "split_digits"
    )


def test_a_run_says_what_its_scores_cost(command):
    common = "scenario.experiences=2 train.epochs=2 train.batch_size=64"
    measured = {}
    for name in ("cyclical", "cyclical_random"):
        outcome = command(f"{common} strategy={name} out=runs/{name}")
        assert outcome.status == 0, outcome.err
        measured[name] = json.loads(Path(f"runs/{name}/result.json").read_text())["measured"]
    assert measured["cyclical"]["scorer_iterations"] > 0
    assert measured["cyclical_random"]["scorer_iterations"] == 0
