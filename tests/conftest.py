"""Fixtures that more than one test file uses: small scenarios, a small model, and both loops."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from avalanche.benchmarks import CLScenario, benchmark_from_datasets
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.classification_dataset import (
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.core import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import Growing, Multi, single
from clplat.backbones.mlp import MLP
from clplat.learner import Learner
from clplat.prepare import Prepare
from scenarios.streams import make_scenario
from tests.browser import Browser, opened
from tests.command import Command
from tests.handed_over import through_a_file

# The same examples in every run, and as long as a busy machine needs for each.
hypothesis.settings.register_profile("clplat", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("clplat")

torch.set_num_threads(1)  # tensors this small gain nothing from more

Pairs = list[tuple[Tensor, Tensor]]


def _clusters(experiences: int, classes: int, samples: int) -> tuple[Pairs, Pairs]:
    """uint8 images (1, 4, 4) in noisy clusters, of `classes` new classes each experience."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(experiences * classes, 1, 4, 4, generator=generator)

    def pairs(count: int) -> Pairs:
        made = []
        for k in range(experiences):
            y = torch.arange(k * classes, (k + 1) * classes).repeat_interleave(count)
            noise = 0.25 * torch.randn(len(y), 1, 4, 4, generator=generator)
            made.append((((centres[y] + noise).clamp(0, 1) * 255).to(torch.uint8), y))
        return made

    return pairs(samples), pairs(max(4, samples // 2))


@pytest.fixture(scope="session")
def clusters() -> Callable[..., CLScenario]:
    """Makes a small scenario of our own: uint8 images, two new classes an experience."""

    def make(
        experiences: int = 3, classes: int = 2, samples: int = 12, task_labels: bool = False
    ) -> CLScenario:
        train, test = _clusters(experiences, classes, samples)
        return make_scenario(train, test, experiences * classes, task_labels, Prepare())

    return make


@pytest.fixture(scope="session")
def avalanche_clusters() -> Callable[..., CLScenario]:
    """Makes a benchmark of the same samples as floats, by Avalanche's means alone."""

    def dataset(x: Tensor, y: Tensor, task: int) -> AvalancheDataset:
        attributes = [DataAttribute(y, "targets"), TaskLabels([task] * len(y))]
        data = [TensorDataset(x.float() / 255, y)]
        return TaskAwareSupervisedClassificationDataset(data, data_attributes=attributes)

    def make(
        experiences: int = 3, classes: int = 2, samples: int = 12, task_labels: bool = False
    ) -> CLScenario:
        train, test = (
            [dataset(x, y, k if task_labels else 0) for k, (x, y) in enumerate(pairs)]
            for pairs in _clusters(experiences, classes, samples)
        )
        benchmark = benchmark_from_datasets(train=train, test=test)
        benchmark = with_task_labels(with_classes_timeline(benchmark))
        for stream in (benchmark.train_stream, benchmark.test_stream):
            for experience in stream:  # Avalanche's multi-head classifier cannot take its sets
                classes = sorted(experience.classes_in_this_experience)
                experience.classes_in_this_experience = classes
        return benchmark

    return make


@pytest.fixture(scope="session")
def mlp() -> Callable[..., nn.Module]:
    """Makes an MLP for the clusters, with the same weights at each call."""

    def make(head: str = "single", width: int = 12, dropout: float = 0.0) -> nn.Module:
        torch.manual_seed(0)
        heads = {"single": single, "growing": Growing, "multi": Multi}
        return classifier(MLP((1, 4, 4), [width], dropout), heads[head](width, 6))

    return make


@pytest.fixture(scope="session")
def make_learner() -> Callable[..., Learner]:
    """Makes our learner: SGD at a rate of 0.1, batches of 8, 2 epochs, the order of seed 0."""

    def make(model: nn.Module, *plugins: Any, lr: float = 0.1, **options: Any) -> Learner:
        def sgd(groups: list) -> torch.optim.Optimizer:
            return torch.optim.SGD(groups, lr=lr)

        options = {"optimizer": sgd, "batch_size": 8, "epochs": 2, **options}
        return Learner(model, plugins=plugins, **options)

    return make


class DrawnBatches:
    """What our learner's order would draw, made item by item."""

    def __init__(self, dataset: Any, batch_size: int, order: torch.Generator):
        self.dataset, self.batch_size, self.order = dataset, batch_size, order

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        permutation = torch.randperm(len(self.dataset), generator=self.order).tolist()
        for k in range(0, len(permutation), self.batch_size):
            items = [self.dataset[i] for i in permutation[k : k + self.batch_size]]
            x, y, task = zip(*items, strict=True)
            yield [torch.stack(x), torch.tensor(y), torch.tensor(task)]


class SameOrder(SupervisedPlugin):
    """Gives Avalanche's loop the batches that our learner draws from the order of seed 0."""

    def __init__(self) -> None:
        super().__init__()
        self.order = torch.Generator().manual_seed(0)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        data, size = strategy.adapted_dataset, strategy.train_mb_size
        strategy.order = self.order  # for strategies that make batches of their own
        strategy.dataloader = DrawnBatches(data, size, self.order)


@pytest.fixture(scope="session")
def make_template() -> Callable[..., SupervisedTemplate]:
    """Makes Avalanche's own loop with the settings of `make_learner`, batch order included."""

    def make(
        model: nn.Module, *plugins: Any, lr: float = 0.1, **options: Any
    ) -> SupervisedTemplate:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        options = {"optimizer": optimizer, "train_mb_size": 8, "train_epochs": 2, **options}
        options = {"eval_mb_size": 512, "evaluator": None, **options}
        return SupervisedTemplate(model=model, plugins=[SameOrder(), *plugins], **options)

    return make


@pytest.fixture(scope="session")
def weights() -> Callable[[nn.Module], dict[str, Tensor]]:
    """Copies a model's parameters and buffers, by name."""
    return lambda model: {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="session")
def bare_loop() -> Callable[..., nn.Module]:
    """Trains without any framework, on the batches that the order of seed 0 draws.

    On each of `parts` in turn: an experience, or a list of several taken together.
    """

    def train(
        model: nn.Module,
        parts: Any,
        epochs: int = 2,
        batch_size: int = 8,
        optimizer: torch.optim.Optimizer | None = None,
        update: Callable[[Tensor, Tensor], None] | None = None,
    ) -> nn.Module:
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
        order = torch.Generator().manual_seed(0)

        def plain_update(x: Tensor, y: Tensor) -> None:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

        for part in parts:
            together = part if isinstance(part, list) else [part]
            items = [item for e in together for item in e.dataset]
            x, y = torch.stack([i[0] for i in items]), torch.tensor([int(i[1]) for i in items])
            for _ in range(epochs):
                for index in torch.randperm(len(y), generator=order).split(batch_size):
                    (update or plain_update)(x[index], y[index])
        return model

    return train


@pytest.fixture(params=["bf16", "fp16"])
def assert_near_in_half(
    request: pytest.FixtureRequest, make_learner: Callable[..., Learner]
) -> Callable[..., Any]:
    """Trains in mixed and in full precision, and returns the strategy of the mixed one."""

    def compare(
        make_model: Callable[[], nn.Module],
        make_strategy: Callable[[], Any],
        stream: Any,
        atol: float = 0.02,
        **options: Any,
    ) -> Any:
        models = []
        for precision in ("fp32", request.param):
            model, strategy = make_model(), make_strategy()
            learner = make_learner(model, strategy, precision=precision, **options)
            if learner.scaler:
                learner.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # none is skipped
            torch.manual_seed(0)
            learner.train(stream)
            models.append(learner.model)
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other, rtol=0.05, atol=atol)
        return strategy

    return compare


@pytest.fixture
def resume_and_compare(
    clusters: Any, mlp: Any, make_learner: Any
) -> Callable[[Callable[[], Any], str], tuple[Any, Any]]:
    """Trains on 2 experiences, then on a third twice: by the strategy itself, and by a new one
    that was given its saved state; asserts equal losses and weights, and returns both strategies.
    """

    def compare(make_strategy: Callable[[], Any], head: str = "single") -> tuple[Any, Any]:
        stream = clusters(task_labels=head == "multi").train_stream
        strategy, restored = make_strategy(), make_strategy()
        learner = make_learner(mlp(head), strategy)
        learner.train([stream[0], stream[1]])
        restored.load_state_dict(through_a_file(strategy.state_dict()))
        # Saved again before anything was trained, the state is still all there.
        restored.load_state_dict(through_a_file(restored.state_dict()))

        resumed = make_learner(copy.deepcopy(learner.model), restored)
        resumed.order.set_state(learner.order.get_state())
        vars(resumed.clock).update(vars(learner.clock))
        generator = torch.get_rng_state()
        learner.train(stream[2])
        torch.set_rng_state(generator)
        resumed.train(stream[2])

        assert torch.equal(torch.stack(learner.losses), torch.stack(resumed.losses))
        one, other = learner.model.state_dict(), resumed.model.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        return strategy, restored

    return compare


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A tiny Llama of random weights over bytes, and the folder in which it was saved."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, str(folder)


@pytest.fixture
def assert_same_in_avalanche(
    avalanche_clusters: Any, make_learner: Any, make_template: Any, weights: Any
) -> Callable[..., None]:
    """Asserts that a strategy trains a model to the same weights in Avalanche's own loop."""

    def compare(make_model: Callable[[], Any], make: Callable[[], Any], task_labels: bool) -> None:
        benchmark, models = avalanche_clusters(task_labels=task_labels), []
        for make_loop in (make_learner, make_template):
            loop = make_loop(make_model(), make())
            torch.manual_seed(4)
            for experience in benchmark.train_stream:
                loop.train(experience)
            models.append(weights(loop.model))
        assert models[0].keys() == models[1].keys()
        for name in models[0]:
            torch.testing.assert_close(models[0][name], models[1][name])

    return compare


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless chromium; tests that use it bear the marker `browser`."""
    with opened() as driver:
        yield driver


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Command:
    """The command line, called from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capfd)
