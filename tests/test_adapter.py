"""Every strategy of conf/strategy/avalanche trains, and the adapter is faithful to Avalanche."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import CLScenario
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import DER, Naive
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clplat import bridges
from clplat.adapter import AvalancheTemplate, plugin, template
from clplat.batches import Batches
from clplat.build import build_learner, build_scenario
from clplat.errors import InputError, TrainingError
from clplat.evaluation import DuringTraining, Evaluator, TrainingScore
from clplat.learner import Learner
from clplat.prepare import Prepare
from clplat.quiet import hush_avalanche

CONF = Path(__file__).parents[1] / "conf"
NAMES = sorted(path.stem for path in (CONF / "strategy" / "avalanche").glob("*.yaml"))
FASTER = {"mer": ["strategy.inner_steps=1"]}
# What a strategy learns outside the model's weights.
STATE: dict[str, Callable[[Any], list[Tensor]]] = {"streaming_lda": lambda t: [t.muK.clone()]}
NOT_SWEPT = {"_target_", "template", "plugin", "needs_task_labels", "defaults"}


@pytest.fixture(autouse=True)
def quiet() -> None:
    hush_avalanche()


def composed(name: str, *overrides: str) -> DictConfig:
    """A small config of a strategy, given what the strategy says that it needs."""
    changes = [f"strategy=avalanche/{name}", "device=cpu", "train.epochs=1", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", changes)
    config.scenario.task_labels = config.strategy.get("needs_task_labels", False)
    config.train.epochs += config.strategy.get("prune_epochs", 0)
    return config


def built(config: DictConfig, observers: Sequence[Any] = ()) -> tuple[Any, CLScenario]:
    plain: Any = OmegaConf.to_container(config, resolve=True)
    scenario = build_scenario(plain, [])
    return build_learner(plain, scenario, observers)[0], scenario


def state(name: str, learner: Any) -> list[Tensor]:
    if name in STATE:
        return STATE[name](learner.strategy)
    return [p.detach().clone() for p in learner.model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", NAMES)
def test_every_config_trains_two_experiences(name: str) -> None:
    config, scores = composed(name, *FASTER.get(name, [])), []
    training = TrainingScore()
    learner, scenario = built(config, [training])
    stream = list(scenario.test_stream)
    scores.append(learner.eval(stream))
    for count, experience in enumerate(list(scenario.train_stream)[:2], 1):
        before = state(name, learner)
        learner.train(experience)
        scores.append(learner.eval(stream))
        assert not same(before, state(name, learner))
        assert learner.clock.train_exp_counter == count
        assert learner.clock.train_exp_iterations > 0
        assert len(learner.losses) > 0
    assert all(parameter.isfinite().all() for parameter in learner.model.parameters())
    assert all(len(row) == len(stream) and 0 <= min(row) <= max(row) <= 1 for row in scores)
    assert max(scores[1]) > 0
    if name == "scr":  # its outputs in training are no predictions
        assert training.mean() is None
    else:
        assert 0 <= training.mean() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_every_config_takes_task_labels(name: str) -> None:
    config = composed(name, *FASTER.get(name, []))
    config.scenario.task_labels = True
    learner, scenario = built(config)
    learner.eval(scenario.test_stream)  # as a run does first; it makes the heads
    learner.train(scenario.train_stream[0])
    assert 0 < learner.eval(scenario.test_stream[0])[0] <= 1


@pytest.mark.parametrize("name", ["packnet", "pnn"])
def test_isolated_weights_keep_an_old_task_as_it_was(name: str) -> None:
    learner, scenario = built(composed(name, "optimizer.lr=0.01"))
    first, second = list(scenario.train_stream)[:2]
    learner.train(first)
    after_first = learner.eval(scenario.test_stream)[0]
    learner.train(second)
    assert after_first > 0.8
    assert learner.eval(scenario.test_stream)[0] == after_first


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_a_config_reaches_avalanche(name: str) -> None:
    path = CONF / "strategy" / "avalanche" / f"{name}.yaml"
    text = path.read_text()
    assert text.startswith("# ")
    keys = set(OmegaConf.load(path)) - NOT_SWEPT  # type: ignore[arg-type]
    assert [key for key in keys if f"..{key}}}" not in text] == []


def test_sweepable_keys_reach_the_objects() -> None:
    er_ace = instantiate(composed("er_ace", "strategy.capacity=123").strategy, _convert_="all")
    assert er_ace.template.keywords["mem_size"] == 123
    ewc = instantiate(composed("ewc", "strategy.strength=0.5").strategy, _convert_="all")
    assert ewc.ewc_lambda == 0.5


# --- the adapter against Avalanche's own loop, and against ours ------------------------------


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def adapted(model: nn.Module, kind: Any = Naive, **options: Any) -> AvalancheTemplate:
    return AvalancheTemplate(model, adam, template=kind, **{"batch_size": 8, **options})


def trained_by_avalanche(
    model: nn.Module, scenario: CLScenario, batch_size: int, **loading: Any
) -> list[float]:
    evaluator: Any = Evaluator()
    strategy = Naive(
        model=model,
        optimizer=adam(model.parameters()),
        train_mb_size=batch_size,
        train_epochs=2,
        evaluator=evaluator,
    )
    for experience in scenario.train_stream:
        strategy.train(experience, **loading)
    strategy.eval(scenario.test_stream)
    return evaluator.scores


def test_equals_avalanches_own_loop_and_loaders_in_the_same_order(clusters, mlp):
    scenario, ours, theirs = clusters(), mlp(), mlp()
    learner = adapted(ours, epochs=2)
    learner.strategy.order = None  # as the data is stored
    learner.train(scenario.train_stream)
    expected = trained_by_avalanche(theirs, scenario, 8, shuffle=False)
    assert learner.eval(scenario.test_stream) == expected
    assert same(list(ours.parameters()), list(theirs.parameters()))


def test_equals_avalanches_own_loop_with_one_batch_an_experience(clusters, mlp):
    scenario, ours, theirs = clusters(), mlp(), mlp()
    learner = adapted(ours, epochs=2, batch_size=64)
    learner.train(scenario.train_stream)
    expected = trained_by_avalanche(theirs, scenario, 64)
    assert learner.eval(scenario.test_stream) == pytest.approx(expected)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_naive_equals_our_learner(clusters, mlp):
    scenario, ours, other = clusters(), mlp("growing"), mlp("growing")
    template, learner = adapted(ours, epochs=2), Learner(other, adam, batch_size=8, epochs=2)
    for loop in (template, learner):
        torch.manual_seed(0)
        loop.train(scenario.train_stream)
    assert same(list(ours.parameters()), list(other.parameters()))
    assert torch.equal(torch.stack([*template.losses]), torch.stack(learner.losses))


@pytest.mark.parametrize("kind", [Naive, partial(DER, mem_size=12, batch_size_mem=4)])
def test_evaluation_in_the_middle_changes_nothing(kind, clusters, mlp):
    scenario, found, curve = clusters(), [], []
    stream = list(scenario.test_stream)
    during = DuringTraining(stream, 2, lambda *what: curve.append(what))
    for plugins in ([], [during]):
        model, training = mlp(), TrainingScore()
        learner = adapted(model, kind, epochs=2, plugins=[*plugins, training])
        torch.manual_seed(0)
        learner.train(scenario.train_stream)
        found.append([*model.parameters(), torch.tensor(training.mean())])
    assert same(*found)
    assert curve
    assert all(len(scores) == len(stream) for *_, scores in curve)


class Watch(SupervisedPlugin):
    """Notes the loader of each experience and the inputs of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.loaders: list[type] = []
        self.inputs: list[tuple[Any, Any]] = []
        self.sizes: list[int] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.loaders.append(type(strategy.dataloader))

    before_eval_exp = before_training_exp

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.inputs.append((strategy.stored_x.dtype, strategy.mb_x.dtype))
        self.sizes.append(len(strategy.mb_y))

    after_eval_iteration = after_training_iteration


class OwnLoader(Naive):
    def make_train_dataloader(self, **kwargs: Any) -> None:
        self.dataloader = DataLoader(self.adapted_dataset, batch_size=5)


def test_loaders_are_ours_unless_the_template_has_its_own(clusters, mlp):
    scenario = clusters(experiences=1)
    for kind, expected in ((Naive, Batches), (OwnLoader, DataLoader)):
        watch = Watch()
        learner = adapted(mlp(), kind, plugins=[watch])
        learner.train(scenario.train_stream)
        learner.eval(scenario.test_stream)
        assert watch.loaders == [expected, Batches]


def test_inputs_are_held_as_stored_and_prepared_for_the_model(clusters, mlp):
    scenario, modes, watch = clusters(experiences=1), [], Watch()

    def prepare(x: Tensor, training: bool) -> Tensor:
        modes.append(training)
        return Prepare()(x, training)

    learner = adapted(mlp(), plugins=[watch], prepare=prepare)
    learner.train(scenario.train_stream)
    learner.eval(scenario.test_stream)
    assert set(watch.inputs) == {(torch.uint8, torch.float32)}
    assert modes == [True] * 3 + [False]


def test_data_too_large_to_hold_is_read_by_a_dataloader(clusters, mlp):
    scenario, watch = clusters(experiences=1), Watch()
    learner = adapted(mlp(), plugins=[watch], resident_bytes=0)
    learner.train(scenario.train_stream)
    learner.eval(scenario.test_stream)
    assert watch.loaders == [DataLoader, DataLoader]


@pytest.mark.parametrize("resident_bytes", [0, float("inf")])
def test_a_template_may_leave_out_the_last_small_batch(resident_bytes, clusters, mlp):
    scenario, watch = clusters(experiences=1, samples=10), Watch()
    learner = adapted(mlp(), plugins=[watch], resident_bytes=resident_bytes)
    learner.strategy.train(scenario.train_stream, drop_last=True)
    assert watch.sizes == [8, 8]


def test_the_optimizer_holds_what_the_model_says_is_trainable(clusters, mlp):
    model = mlp()
    model.encoder.requires_grad_(False)
    learner = adapted(model)
    learner.train(clusters().train_stream)
    held = learner.optimizer.param_groups[0]["params"]
    assert held == list(model.head.parameters())


def test_a_template_may_bind_plugins_and_a_function_of_the_model(clusters, mlp):
    first, second, seen = Watch(), Watch(), []

    def wrap(model: nn.Module) -> nn.Module:
        seen.append(model)
        return nn.Sequential(model)

    model = mlp()
    learner = adapted(model, partial(Naive, model=wrap, plugins=[first]), plugins=[second])
    assert seen == [model]
    assert list(learner.model.parameters()) == list(model.parameters())
    assert isinstance(learner.model, nn.Sequential)
    assert learner.plugins[:2] == [first, second]
    assert learner.plugins[-1] is learner.clock
    learner.train(clusters().train_stream)


# --- what stops early, with a word on how to mend it -----------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(clusters, mlp):
    model = mlp()
    learner = adapted(model)
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(TrainingError, match=r"experience 0, epoch 0, iteration 0"):
        learner.train(clusters().train_stream)


@pytest.mark.parametrize("make", [template, plugin])
def test_a_draw_larger_than_the_memory_is_refused(make):
    with pytest.raises(InputError, match=r"strategy.batch_size=10: .*strategy.capacity=5"):
        make(None, capacity=5, batch_size=10)


def test_less_than_a_sample_an_experience_is_refused():
    learner, scenario = built(composed("gem", "strategy.capacity=4"))
    with pytest.raises(InputError, match=r"strategy.capacity=4: .* 5 experiences"):
        learner.train(scenario.train_stream)


def test_progressive_networks_want_an_mlp_and_a_head_for_each_task():
    with pytest.raises(InputError, match=r"expected backbone=mlp and head=multi"):
        built(composed("pnn", "head=single"))


def test_er_aml_draws_from_classes_smaller_than_a_batch(clusters, mlp):
    kind = partial(bridges.ERAML, mem_size=8, batch_size_mem=4)
    learner = adapted(mlp(), kind)
    learner.train(clusters().train_stream)
    assert learner.clock.train_exp_counter == 3
