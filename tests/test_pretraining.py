"""Pre-training: the losses against plain loops, what it learns from, and what it leaves alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from torch import nn

from clplat.backbones.mlp import MLP
from clplat.build import build_learner, build_scenario, pretrain
from clplat.data import tensors_of
from clplat.errors import InputError
from clplat.footprint import memory_bytes
from clplat.prepare import Prepare
from clplat.pretraining import Prototypical, Supervised, draw_episode, nothing, prototypical_loss
from clplat.progress import RunProgress
from clplat.stream import StreamRun
from scenarios.streams import make_scenario

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def composed(*overrides: str) -> dict:
    with initialize_config_module("clplat.conf", version_base="1.3"):
        node = compose("config", overrides=["device=cpu", *overrides])
    config = OmegaConf.to_container(node, resolve=True)
    assert isinstance(config, dict)
    return config


CLASSES, PER_CLASS = 7, 9


def general_data() -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (1, 4, 4) in 7 noisy clusters, 9 of each, out of order."""
    draws = generator()
    y = torch.randperm(CLASSES * PER_CLASS, generator=draws) % CLASSES
    centres = torch.rand(CLASSES, 1, 4, 4, generator=draws)
    noise = 0.15 * torch.randn(len(y), 1, 4, 4, generator=draws)
    return ((centres[y] + noise).clamp(0, 1) * 255).to(torch.uint8), y


@pytest.fixture
def scenario():
    """Beside the general stream, experiences of inputs that none of its samples has."""
    x, y = torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.arange(6)
    return make_scenario([(x, y)], [(x, y)], 6, False, Prepare(), general=general_data())


@pytest.fixture
def exact():
    """The same in float64, in which a loop and a naive one differ by rounding alone."""
    x, y = general_data()
    pair = (x / 255).double(), y
    return make_scenario([pair], [pair], CLASSES, False, Prepare(), general=pair)


def drawn() -> MLP:
    torch.manual_seed(0)
    return MLP((1, 4, 4), [11, 6])


@pytest.fixture
def encoder() -> MLP:
    return drawn()


class Seen(nn.Module):
    """An encoder that remembers its inputs."""

    def __init__(self, encoder: MLP):
        super().__init__()
        self.encoder, self.width, self.inputs = encoder, encoder.width, []

    def forward(self, x):
        self.inputs.append(x.clone())
        return self.encoder(x)


def no_step() -> None:
    pass


def rows(x: torch.Tensor) -> list[tuple]:
    return [tuple(row) for row in x.flatten(1).tolist()]


# --- episodes --------------------------------------------------------------------------------


def naive_loss(support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Snell et al. 2017, algorithm 1, in plain loops."""
    ways, shots, _ = support.shape
    means = [sum(support[k, s] for s in range(shots)) / shots for k in range(ways)]
    losses = []
    for label in range(ways):
        for asked in query[label]:
            distances = torch.stack([((asked - mean) ** 2).sum() for mean in means])
            losses.append(distances[label] + torch.exp(-distances).sum().log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("sizes", [(1, 1, 1, 3), (5, 1, 3, 7), (3, 4, 2, 5), (7, 2, 1, 1)])
def test_the_prototypical_loss_is_that_of_a_naive_loop_gradients_included(sizes):
    ways, shots, queries, width = sizes
    support = torch.randn(ways, shots, width, dtype=torch.float64, generator=generator())
    query = torch.randn(ways, queries, width, dtype=torch.float64, generator=generator(1))
    gradients = []
    for loss in (prototypical_loss, naive_loss):
        leaves = [support.clone().requires_grad_(), query.clone().requires_grad_()]
        value = loss(*leaves)
        gradients.append([value, *torch.autograd.grad(value, leaves)])
    for ours, naive in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, naive, rtol=1e-10, atol=1e-12)


def test_an_episode_is_of_distinct_classes_and_its_samples_are_all_different():
    y = torch.randint(6, (120,), generator=generator())
    members = [(y == label).nonzero()[:, 0] for label in range(6)]
    draws, classes, counts = generator(1), torch.zeros(6), torch.zeros(120)
    for _ in range(1500):
        support, query = draw_episode(members, 4, 2, 3, draws)
        assert support.shape == (4, 2)
        assert query.shape == (4, 3)
        for part in (support, query):
            assert (y[part] == y[support[:, :1]]).all()  # a class to a row
        assert len(y[support[:, 0]].unique()) == 4
        assert len(torch.cat([support, query], 1).unique()) == 20
        classes[y[support[:, 0]]] += 1
        counts[support.flatten()] += 1
    torch.testing.assert_close(classes, torch.full((6,), 1000.0), rtol=0, atol=80)
    assert counts.min() > 0  # every sample serves


def test_episodes_may_take_all_classes_and_all_samples():
    members = [torch.arange(3), torch.arange(3, 6)]
    support, query = draw_episode(members, 2, 1, 2, generator())
    assert sorted(torch.cat([support, query], 1).flatten().tolist()) == list(range(6))


# --- what it learns from, and how --------------------------------------------------------------


METHODS = {
    "supervised": Supervised(epochs=3, batch_size=10, lr=0.01),
    "prototypical": Prototypical(epochs=3, episodes=20, ways=5, shots=2, queries=3, lr=0.01),
}


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_from_the_general_stream_alone(name, scenario, encoder):
    seen, x = Seen(encoder), general_data()[0].float() / 255
    METHODS[name](seen, scenario, CPU, 0, no_step)
    inputs = [row for batch in seen.inputs for row in rows(batch)]
    assert set(inputs) == set(rows(x))
    if name == "supervised":  # every sample once an epoch
        assert sorted(inputs) == sorted(rows(x) * 3)
    else:  # 60 episodes of 5 classes with 5 samples
        assert [len(batch) for batch in seen.inputs] == [25] * 60


@pytest.mark.parametrize("name", METHODS)
def test_it_tells_of_every_epoch(name, scenario, encoder):
    epochs = []
    METHODS[name](encoder, scenario, CPU, 0, lambda: epochs.append(1))
    assert len(epochs) == METHODS[name].epochs == 3


def test_supervised_is_a_bare_loop_with_adam_and_a_head_of_its_own(exact, encoder, monkeypatch):
    monkeypatch.setattr("clplat.pretraining.single", lambda *sizes: nn.Linear(*sizes).double())
    torch.manual_seed(4)
    METHODS["supervised"](encoder.double(), exact, CPU, 8, no_step)

    (x, y, _), bare, order = tensors_of(exact.streams["general"][0].dataset), drawn(), generator(8)
    torch.manual_seed(4)
    head = nn.Linear(6, CLASSES).double()
    optimizer = torch.optim.Adam([*bare.double().parameters(), *head.parameters()], lr=0.01)
    for _ in range(3):
        for index in torch.randperm(len(y), generator=order).split(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(bare(x[index])), y[index]).backward()
            optimizer.step()
    for ours, plain in zip(encoder.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10)


def test_prototypical_is_a_bare_loop_with_adam_over_episodes(exact, encoder):
    method = Prototypical(2, 3, ways=4, shots=2, queries=3, lr=0.01)
    method(encoder.double(), exact, CPU, 8, no_step)

    (x, y, _), bare, draws = tensors_of(exact.streams["general"][0].dataset), drawn(), generator(8)
    members = [(y == label).nonzero()[:, 0] for label in range(CLASSES)]
    optimizer = torch.optim.Adam(bare.double().parameters(), lr=0.01)
    for _ in range(6):
        parts = draw_episode(members, 4, 2, 3, draws)
        optimizer.zero_grad()
        naive_loss(*(bare(x[index.flatten()]).view(4, -1, 6) for index in parts)).backward()
        optimizer.step()
    for ours, plain in zip(encoder.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10)


def test_supervised_lowers_the_loss(scenario, encoder):
    losses = []

    def criterion(output, target):
        losses.append(nn.functional.cross_entropy(output, target))
        return losses[-1]

    scenario.criterion = criterion
    Supervised(epochs=20, batch_size=21, lr=0.03)(encoder, scenario, CPU, 0, no_step)
    values = torch.stack(losses).detach().view(20, 3).mean(1)
    assert values[-1] < 0.6 * values[0]
    assert values[0] == pytest.approx(np.log(CLASSES), rel=0.1)  # it began with chance


def test_prototypical_lowers_the_loss_of_episodes_not_trained_on(scenario, encoder):
    x, y = general_data()
    members = [(y == label).nonzero()[:, 0] for label in range(CLASSES)]

    def loss() -> float:
        draws, values = generator(99), []
        for _ in range(50):
            parts = draw_episode(members, 5, 1, 3, draws)
            features = [encoder(x[i.flatten()] / 255).detach().view(5, -1, 6) for i in parts]
            values.append(float(prototypical_loss(*features)))
        return float(np.mean(values))

    before = loss()
    Prototypical(2, 50, ways=5, shots=1, queries=3, lr=0.01)(encoder, scenario, CPU, 0, no_step)
    assert loss() < 0.6 * before


@pytest.mark.parametrize("name", METHODS)
def test_training_augments_as_the_scenario_does(name, encoder, monkeypatch):
    x, y = general_data()
    flipping = make_scenario(
        [(x, y)], [(x, y)], CLASSES, False, Prepare((0.5,), (0.5,), flip=True), general=(x, y)
    )
    seen, normal = Seen(encoder), (x.float() / 255 - 0.5) / 0.5
    METHODS[name](seen, flipping, CPU, 0, no_step)
    inputs = {row for batch in seen.inputs for row in rows(batch)}
    assert inputs <= set(rows(normal)) | set(rows(normal.flip(-1)))
    assert len(inputs) > len(x)


def test_labels_of_the_general_stream_may_have_gaps(encoder):
    x, y = general_data()
    odd = make_scenario([(x, y)], [(x, y)], 7, False, Prepare(), general=(x, 3 * y + 1))
    for method in METHODS.values():
        method(encoder, odd, CPU, 0, no_step)
    assert all(p.isfinite().all() for p in encoder.parameters())


# --- in a run --------------------------------------------------------------------------------

FEW = ("scenario=cfsl/classes_and_samples_4", "scenario.tasks=2", "pretraining.epochs=1")
QUICK = {
    "supervised": (*FEW, "pretraining=supervised", "pretraining.batch_size=500"),
    "prototypical": (*FEW, "pretraining=prototypical", "pretraining.episodes=3"),
}


def pretrained(name: str, *overrides: str) -> dict[str, torch.Tensor]:
    config = composed(*QUICK[name], *overrides)
    weights = pretrain(config, build_scenario(config, []), lambda epochs: None, no_step)
    assert weights is not None
    return weights


def same(one: dict, other: dict) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", QUICK)
def test_the_seeds_of_weights_and_of_training_set_it_and_tasks_do_not(name):
    weights = pretrained(name)
    torch.manual_seed(77)  # the state of the global generator matters not
    assert same(weights, pretrained(name))
    assert same(weights, pretrained(name, "seed_data=5"))
    assert same(weights, pretrained(name, "scenario.part=validation", "head=prototypes"))
    assert not same(weights, pretrained(name, "seed_init=5"))
    assert not same(weights, pretrained(name, "seed_train=5"))


def encoder_of(learner: Any) -> dict[str, torch.Tensor]:
    return learner.model.encoder.state_dict()


@pytest.mark.parametrize("name", QUICK)
def test_it_is_of_the_encoder_alone_and_of_all_of_it(name):
    config = composed(*QUICK[name], "backbone=convnet", "backbone.channels=[3,4]")
    scenario = build_scenario(config, [])
    weights = pretrain(config, scenario, lambda epochs: None, no_step)
    learner, _ = build_learner(config, scenario)
    assert weights is not None
    assert weights.keys() == encoder_of(learner).keys()
    statistics = [key for key in weights if key.endswith("running_mean")]
    assert statistics
    assert all(weights[key].any() for key in statistics)


def test_without_pretraining_the_encoder_is_left_as_drawn():
    assert nothing() is None
    config = composed("pretraining=none")
    told = []
    assert pretrain(config, build_scenario(config, []), told.append, no_step) is None
    assert not told


def test_a_run_begins_with_the_encoder_and_with_the_head_that_it_would_have_had(scenario):
    config = composed("backbone.hidden=[11,6]")
    plain = StreamRun(config, scenario, RunProgress())
    weights = {key: value + 1 for key, value in encoder_of(plain.learner).items()}
    run = StreamRun(config, scenario, RunProgress(), weights)
    assert same(encoder_of(run.learner), weights)
    whole = run.learner.model.state_dict(), plain.learner.model.state_dict()
    heads = [{k: v for k, v in w.items() if not k.startswith("encoder.")} for w in whole]
    assert len(heads[0]) == 2
    assert same(*heads)
    assert memory_bytes(run.strategy, run.learner.model) == 0


# --- what is refused -------------------------------------------------------------------------

NO_DATA = (
    "pretraining: this scenario has no general data to pre-train on; set pretraining=none, or "
    "choose a scenario that has, such as cfsl/classes_and_samples_4"
)


@pytest.mark.parametrize("name", METHODS)
def test_a_scenario_without_general_data_is_refused(name, clusters, encoder):
    with pytest.raises(InputError) as error:
        METHODS[name](encoder, clusters(), CPU, 0, no_step)
    assert str(error.value) == NO_DATA


@pytest.mark.parametrize("settings", [{"ways": 8}, {"shots": 7}, {"queries": 9}])
def test_an_episode_larger_than_the_general_stream_is_refused(scenario, encoder, settings):
    sizes = {"ways": 7, "shots": 1, "queries": 3} | settings
    with pytest.raises(InputError) as error:
        Prototypical(1, 1, **sizes)(encoder, scenario, CPU, 0, no_step)
    assert str(error.value) == (
        f"pretraining.ways={sizes['ways']}, shots={sizes['shots']}, queries={sizes['queries']}: "
        "the general stream has 7 classes of 9 samples or more; lower them"
    )


def test_an_episode_as_large_as_the_general_stream_is_not_refused(scenario, encoder):
    Prototypical(1, 1, ways=7, shots=4, queries=5)(encoder, scenario, CPU, 0, no_step)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretraining=supervised", NO_DATA),
        ("pretraining=prototypical", NO_DATA),
        ("scenario=online_digits pretraining=supervised", NO_DATA),
        ("pretraining=supervised pretraining.epochs=0", "pretraining.epochs=0: expected a whole"),
        ("pretraining=prototypical pretraining.ways=2.5", "pretraining.ways=2.5: expected a whole"),
        ("pretraining=prototypical pretraining.lr=0", "pretraining.lr=0: expected a number above"),
        (
            "pretraining=prototypical scenario=cfsl/instance_4x5 pretraining.queries=40",
            "pretraining.ways=20, shots=1, queries=40: the general stream has 160 classes of 40",
        ),
    ],
)
def test_bad_settings_are_told_before_anything_is_written(command, arguments, message):
    outcome = command(f"out=runs/a {arguments}")
    assert outcome.status == 2
    assert message in outcome.err
    assert not Path("runs/a").exists()


def test_pretraining_raises_the_accuracy_of_few_shot_learning(command):
    arguments = (
        "scenario=cfsl/classes_and_samples_4 scenario.tasks=20 strategy=frozen head=prototypes "
        "pretraining.epochs=2 pretraining.lr=0.003"
    )
    for name in ("none", "supervised", "prototypical"):
        given = arguments if name != "none" else arguments.partition("pretraining")[0]
        assert command(f"{given} pretraining={name} out=runs/{name}").status == 0
    score = {
        name: json.loads(Path(f"runs/{name}/result.json").read_text())["accuracy"]
        for name in ("none", "supervised", "prototypical")
    }
    assert score["none"] > 0.15  # chance is 0.1
    assert score["supervised"] > score["none"] + 0.03
    assert score["prototypical"] > score["none"] + 0.05


# A text, in which each token of a sample has a target of its own.
TEXT = (
    "scenario=text scenario.sources=[a.txt] scenario.general=b.txt scenario.samples=300 "
    "scenario.test_samples=3 scenario.window=8 train.epochs=1 out=runs/a "
    "backbone=mingru backbone.pooling=none backbone.vocabulary=256 backbone.width=8"
)


def write_texts() -> None:
    for name in "ab":
        Path(f"{name}.txt").write_text(f"the quick brown {name} jumps over the lazy dog; " * 20)


def test_a_text_to_pre_train_on_is_pre_trained_on(command):
    write_texts()
    outcome = command(f"{TEXT} pretraining=supervised pretraining.epochs=1")
    assert outcome.status == 0, outcome.err


def test_episodes_of_samples_that_are_of_no_one_class_are_refused(command):
    write_texts()
    outcome = command(f"{TEXT} pretraining=prototypical pretraining.ways=2")
    assert outcome.status == 2
    assert "pretraining" in outcome.err
    assert not Path("runs/a").exists()


def test_the_data_of_a_general_stream_are_as_given(scenario):
    x, y, task = tensors_of(scenario.streams["general"][0].dataset)
    assert torch.equal(x, general_data()[0])
    assert torch.equal(y, general_data()[1])
    assert not task.any()


def trained_and_read(command, settings):
    """The folders of two runs: one pre-trains its encoder, the other reads that encoder's file."""
    one = "pretraining=supervised pretraining.epochs=1 out=runs/one"
    other = "pretraining=file pretraining.path=runs/one/encoder.pt out=runs/other"
    for which in (one, other):
        outcome = command(f"{settings} {which}")
        assert outcome.status == 0, outcome.err
    matrices = [np.load(f"runs/{name}/accuracy_matrix.npy") for name in ("one", "other")]
    np.testing.assert_array_equal(*matrices)
    return Path("runs/one"), Path("runs/other")


def test_tasks_are_the_same_whether_the_encoder_was_trained_just_now_or_read(command):
    folders = trained_and_read(
        command,
        "scenario=cfsl/new_classes_3 scenario.tasks=2 strategy=latest_replay train.epochs=2 "
        "backbone.dropout=0.5",
    )
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in folders]
    scores = [[json.loads(line).get("cross_entropy") for line in of_run] for of_run in lines]
    assert scores[0] == scores[1]


def test_pretraining_leaves_no_trace_in_the_random_draws_of_a_stream(command):
    trained_and_read(
        command,
        "scenario=text scenario.sources=[english,python] scenario.samples=48 "
        "scenario.test_samples=4 scenario.window=8 train.epochs=1 train.batch_size=8 "
        "backbone=mingru backbone.pooling=none backbone.vocabulary=256 backbone.width=4 "
        "scenario.general=cpp strategy=replay strategy.memory=reservoir strategy.capacity=20",
    )
