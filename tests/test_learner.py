"""The learner against Avalanche's own loop, bare PyTorch loops and closed forms."""

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import (
    AGEMPlugin,
    CWRStarPlugin,
    EWCPlugin,
    GDumbPlugin,
    GEMPlugin,
    GSS_greedyPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    MASPlugin,
    MIRPlugin,
    RARPlugin,
    ReplayPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.supervised import Naive
from torch import nn

from clplat import learner as learner_module
from clplat.errors import TrainingError
from clplat.evaluation import DuringTraining, Evaluator
from clplat.learner import hook_table
from clplat.prepare import Prepare
from clplat.schedule import LearningRate, cosine, step
from strategies.der import DER
from strategies.ewc import EWC
from strategies.lwf import LwF
from strategies.replay import Replay

HOOKS = [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_"))]
ITERATION = ("_iteration", "_forward", "_backward", "_update")


class EveryHook(SupervisedPlugin):
    """Calls `self.saw(hook, strategy)` at each hook that Avalanche's plugin class has."""

    def saw(self, hook: str, strategy: Any) -> None:
        raise NotImplementedError

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for hook in HOOKS:
            setattr(cls, hook, lambda self, strategy, _hook=hook, **_: self.saw(_hook, strategy))


class At(SupervisedPlugin):
    """Calls a function at one hook."""

    def __init__(self, hook: str, function: Any):
        super().__init__()
        self.__class__ = type("At", (At,), {hook: lambda self, strategy, **_: function(strategy)})


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], msg=lambda m, n=name: f"{n}: {m}")


def furthest(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# --- hooks and attributes ------------------------------------------------------------------------


class Log(EveryHook):
    def __init__(self):
        super().__init__()
        self.lines = []

    def saw(self, hook, strategy):
        line = [
            hook,
            strategy.is_training,
            strategy.model.training,
            strategy.clock.train_iterations,
        ]
        line += [strategy.clock.train_exp_counter, strategy.clock.train_exp_epochs]
        if not hook.endswith(("_training", "_eval")):
            line.append(strategy.experience.current_experience)
        if hook.endswith(ITERATION) and hook != "after_training_iteration":
            line.append(len(strategy.mb_y))
        self.lines.append(tuple(line))


class StopsAtTheThirdIteration(SupervisedPlugin):
    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 2:
            strategy.stop_training()


class EvaluatesAtEachSecondIteration(SupervisedPlugin):
    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations % 2:
            strategy.eval(strategy.experience.origin_stream)


@pytest.mark.parametrize(
    "other", [SupervisedPlugin, StopsAtTheThirdIteration, EvaluatesAtEachSecondIteration]
)
def test_hooks_fire_in_the_order_of_avalanches_template(
    clusters, mlp, make_learner, make_template, other
):
    scenario = clusters(samples=9)  # 18 samples: the last of three batches has 2
    logs = []
    for make in (make_learner, make_template):
        log = Log()
        loop = make(mlp(), other(), log)
        loop.train(scenario.train_stream[0])
        loop.eval(scenario.test_stream)
        loop.train(scenario.train_stream[1])
        loop.eval(scenario.test_stream[1])
        logs.append(log.lines)
    assert {line[0] for line in logs[0]} == set(HOOKS)
    assert logs[0] == logs[1]


def test_one_call_trains_on_several_experiences_as_avalanches_template_does(
    clusters, mlp, make_learner, make_template
):
    logs = [Log(), Log()]
    for make, log in zip((make_learner, make_template), logs, strict=True):
        make(mlp(), log).train(clusters().train_stream)
    assert logs[0].lines == logs[1].lines


class Snapshot(EveryHook):
    """What a plugin may read at each hook, as values that two loops can be compared by."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def saw(self, hook, strategy):
        seen = {
            "is_training": strategy.is_training,
            "is_eval": strategy.is_eval,
            "device": strategy.device,
            "train_mb_size": strategy.train_mb_size,
            "eval_mb_size": strategy.eval_mb_size,
            "train_epochs": strategy.train_epochs,
            "stream": [e.current_experience for e in strategy.current_eval_stream],
            "listed": [p in strategy.plugins for p in (self, strategy.clock)],
            "learning rate": strategy.optimizer.param_groups[0]["lr"],
            "held": sum(len(g["params"]) for g in strategy.optimizer.param_groups),
            "weight": next(strategy.model.parameters()).sum().item(),
            "criterion of": strategy._criterion(torch.eye(6), torch.arange(6)).item(),
        }
        if not hook.endswith(("_training", "_eval")):
            seen["experience"] = strategy.experience.current_experience
            seen["classes"] = strategy.experience.classes_in_this_experience
        if hook.endswith(("exp", "epoch", *ITERATION)) or hook.startswith("after_train_dataset"):
            seen["adapted_dataset"] = len(strategy.adapted_dataset)
        if hook.endswith(("exp", "epoch", *ITERATION)):
            seen["dataloader"] = len(strategy.dataloader)
        if hook.endswith(ITERATION) or hook == "after_training_exp":
            columns = (strategy.mb_x, strategy.mb_y, strategy.mb_task_id)
            seen["batch"] = [column.tolist() for column in columns]
            seen["batch is of these"] = [c.tolist() for c in strategy.mbatch] == seen["batch"]
        if hook == "before_forward":
            seen["loss"] = 0.0 + strategy.loss
        if hook in ("after_forward", "before_backward", "after_update", "after_eval_forward"):
            seen["output"] = strategy.mb_output.tolist()
            seen["criterion"] = strategy.criterion().item()
        if hook in ("after_forward", "after_eval_forward"):
            seen["forward"] = strategy.forward().tolist()
        if hook in ("before_backward", "before_update", "after_eval_iteration"):
            seen["loss"] = strategy.loss.item()
        if hook in ("after_backward", "before_update"):
            seen["gradient"] = [p.grad.tolist() for p in strategy.model.parameters()]
        self.lines.append((hook, seen))


def test_plugins_read_the_same_attributes_and_values_as_in_avalanches_template(
    avalanche_clusters, mlp, make_learner, make_template
):
    benchmark, lines = avalanche_clusters(experiences=2), []
    for make in (make_learner, make_template):
        snapshot = Snapshot()
        loop = make(mlp(), snapshot)
        for experience in benchmark.train_stream:
            loop.train(experience)
            loop.eval(benchmark.test_stream)
        lines.append(snapshot.lines)
    assert len(lines[0]) == len(lines[1])
    for (hook, ours), (theirs_hook, theirs) in zip(*lines, strict=True):
        assert hook == theirs_hook
        assert ours == theirs, hook


def test_plugins_can_make_a_new_optimizer_and_adapt_any_model(clusters, mlp, make_learner):
    made = {}

    def replace(strategy):
        made["before"] = strategy.optimizer
        strategy.make_optimizer()
        made["kept"] = strategy.optimizer
        strategy.make_optimizer(reset_optimizer_state=True)
        made["new"] = strategy.optimizer
        made["own"] = strategy.model_adaptation()
        made["other"] = strategy.model_adaptation(mlp("growing"))

    learner = make_learner(mlp("growing"), At("before_training_exp", replace))
    learner.train(clusters().train_stream[0])
    assert made["kept"] is made["before"]
    assert made["new"] is not made["before"]
    assert learner.optimizer is made["new"]
    assert made["own"] is learner.model
    assert made["other"].head.columns.tolist() == [0, 1]
    held = {p for group in learner.optimizer.param_groups for p in group["params"]}
    assert held == set(learner.model.parameters())


def test_hooks_that_a_plugin_leaves_idle_are_not_called():
    table = hook_table([SupervisedPlugin(), At("before_forward", print)])
    assert sorted(table) == sorted(HOOKS)
    assert [hook for hook, methods in table.items() if methods] == ["before_forward"]


# --- the same weights as other loops -------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fine_tuning_gives_the_weights_of_a_bare_pytorch_loop(
    clusters, mlp, make_learner, weights, momentum, bare_loop
):
    scenario = clusters(samples=9)

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=momentum)

    learner = make_learner(mlp(), optimizer=sgd)
    for experience in scenario.train_stream:
        learner.train(experience)
        learner.eval(scenario.test_stream)
    bare = mlp()
    bare_loop(bare, scenario.train_stream, optimizer=sgd(bare.parameters()))
    assert_same(weights(learner.model), weights(bare))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_full_batches_give_the_weights_of_avalanches_naive(
    clusters, mlp, make_learner, weights, kind
):
    scenario, options = (
        clusters(),
        {"lr": 0.05} | ({"momentum": 0.9} if kind is torch.optim.SGD else {}),
    )
    learner = make_learner(
        mlp(), optimizer=lambda groups: kind(groups, **options), batch_size=24, epochs=6
    )
    model = mlp()
    naive = Naive(
        model=model,
        optimizer=kind(model.parameters(), **options),
        train_mb_size=24,
        train_epochs=6,
        evaluator=None,
    )
    for experience in scenario.train_stream:
        learner.train(experience)
        naive.train(experience)
    assert_close(weights(learner.model), weights(naive.model))


@pytest.mark.parametrize("head", ["growing", "multi"])
def test_a_head_that_grows_gives_the_weights_of_avalanches_template(
    clusters, mlp, make_learner, make_template, weights, head
):
    scenario = clusters(task_labels=head == "multi")
    models = []
    for make in (make_learner, make_template):
        loop = make(mlp(head))
        torch.manual_seed(5)  # growing draws weights
        for experience in scenario.train_stream:
            loop.train(experience)
        models.append(weights(loop.model))
    assert_close(*models)


def si_plugin(model):
    # On the CPU the plugin keeps views of contiguous weights, not copies, so that its penalty is
    # always zero; of transposed weights it takes copies.
    weight = model.encoder.layers[1].weight
    weight.data = weight.data.T.contiguous().T
    return SynapticIntelligencePlugin(si_lambda=100.0)


STOCK = {
    "LwF": lambda model, optimizer: LwFPlugin(),
    "EWC": lambda model, optimizer: EWCPlugin(ewc_lambda=5.0),
    "online EWC": lambda model, optimizer: EWCPlugin(5.0, mode="online", decay_factor=0.5),
    "SI": lambda model, optimizer: si_plugin(model),
    "MAS": lambda model, optimizer: MASPlugin(lambda_reg=1.0),
    "A-GEM": lambda model, optimizer: AGEMPlugin(patterns_per_experience=10, sample_size=8),
    "GEM": lambda model, optimizer: GEMPlugin(patterns_per_experience=10, memory_strength=0.5),
    "RWalk": lambda model, optimizer: RWalkPlugin(ewc_lambda=1.0, delta_t=2),
    "replay": lambda model, optimizer: ReplayPlugin(mem_size=10),
    "MIR": lambda model, optimizer: MIRPlugin(batch_size_mem=4, mem_size=10),
    "GSS": lambda model, optimizer: GSS_greedyPlugin(40, 1, input_size=[1, 4, 4]),
    "RAR": lambda model, optimizer: RARPlugin(
        batch_size_mem=4, mem_size=10, name_ext_layer="encoder.layers.2"
    ),
    "CWR*": lambda model, optimizer: CWRStarPlugin(model),
    "GDumb": lambda model, optimizer: GDumbPlugin(mem_size=10),
    "LRScheduler": lambda model, optimizer: LRSchedulerPlugin(
        torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    ),
}


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_plugin_acts_and_gives_the_weights_it_gives_in_avalanches_template(
    clusters, mlp, make_learner, make_template, weights, name, bare_loop
):
    scenario, models = clusters(experiences=3), []
    for make in (make_learner, make_template):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        plugin = STOCK[name](model, optimizer)
        given = optimizer if make is make_template else lambda _, made=optimizer: made
        loop = make(model, plugin, optimizer=given)
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)
        for experience in scenario.train_stream:
            loop.train(experience)
        models.append(weights(loop.model))
    assert_close(*models)
    fine_tuned = weights(bare_loop(mlp(), scenario.train_stream))
    assert furthest(models[0], fine_tuned) > 1e-3


# --- precision, clipping, accumulation, schedule -------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_mixed_precision_gives_the_weights_of_a_bare_autocast_loop(
    clusters, mlp, make_learner, weights, precision, clip, bare_loop
):
    stream = clusters(experiences=2).train_stream
    learner = make_learner(mlp(), precision=precision, grad_clip=clip)
    learner.train(stream)

    bare = mlp()
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def update(x, y):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype):
            output = bare(x)
        assert output.dtype == dtype
        scaler.scale(nn.functional.cross_entropy(output.float(), y)).backward()
        scaler.unscale_(optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(bare.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()

    bare_loop(bare, stream, update=update)
    assert learner.mb_output.dtype == torch.float32
    assert_same(weights(learner.model), weights(bare))
    full = weights(bare_loop(mlp(), stream))
    assert clip is not None or 0 < furthest(weights(bare), full) < 0.05


def test_gradients_are_clipped_to_the_norm_that_a_manual_computation_gives(
    clusters, mlp, make_learner, weights, bare_loop
):
    stream, clip, norms = clusters(experiences=2).train_stream, 0.8, []
    learner = make_learner(mlp(), grad_clip=clip)
    learner.train(stream)

    bare = mlp()

    def update(x, y):
        loss = nn.functional.cross_entropy(bare(x), y)
        gradients = torch.autograd.grad(loss, list(bare.parameters()))
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
        with torch.no_grad():
            for parameter, gradient in zip(bare.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient * min(1.0, clip / norms[-1])

    bare_loop(bare, stream, update=update)
    assert min(norms) < clip < max(norms)
    assert_close(weights(learner.model), weights(bare))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("batches", "samples"), [(2, 16), (2, 12), (3, 20)])  # of 2 classes each
def test_accumulated_batches_of_8_are_one_large_batch_also_where_the_last_are_fewer(
    clusters, mlp, make_learner, weights, batches, samples, precision
):
    models, updates = [], []
    for size, accumulate in ((8, batches), (8 * batches, 1)):
        count = []
        learner = make_learner(
            mlp(),
            At("after_update", count.append),
            batch_size=size,
            accumulate=accumulate,
            precision=precision,
            grad_clip=0.8,
        )
        learner.train(clusters(experiences=2, samples=samples).train_stream)
        models.append(weights(learner.model))
        updates.append(len(count))
    assert updates[0] == updates[1]
    tolerance = {"fp32": 1e-6, "fp16": 1e-3}[precision]
    assert furthest(*models) < tolerance


@pytest.mark.parametrize(
    ("schedule", "factor"),
    [
        (cosine(0.1), lambda done: 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2),
        (step([0.5, 0.75], 0.1), lambda done: 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01),
    ],
)
def test_the_learning_rate_follows_its_schedule_anew_in_each_experience(
    clusters, mlp, make_learner, schedule, factor
):
    rates = []
    learner = make_learner(
        mlp("growing"),
        LearningRate(schedule),
        At("before_update", lambda s: rates.append(s.optimizer.param_groups[0]["lr"])),
        lr=0.3,
        epochs=4,
    )
    learner.train(clusters(experiences=2).train_stream)
    expected = [0.3 * factor(k / 12) for k in range(12)]  # 4 epochs of 3 batches
    assert rates == pytest.approx(expected * 2)


def test_a_schedule_whose_optimizer_was_restored_starts_from_the_same_peak(
    clusters, mlp, make_learner
):
    stream = clusters(experiences=2).train_stream
    learner = make_learner(mlp(), LearningRate(cosine()), lr=0.3)
    learner.train(stream[0])
    rates = []
    resumed = make_learner(
        mlp(),
        LearningRate(cosine()),
        At("before_update", lambda s: rates.append(s.optimizer.param_groups[0]["lr"])),
        lr=0.3,
    )
    resumed.optimizer.load_state_dict(learner.optimizer.state_dict())
    resumed.train(stream[1])
    assert rates[0] == pytest.approx(0.3)


# --- a loss that is not finite -------------------------------------------------------------------


class Spoil(SupervisedPlugin):
    """Makes the loss infinite, once or always from there on."""

    def __init__(self, experience, epoch, iteration):
        super().__init__()
        self.at, self.seen = (experience, epoch, iteration), 0

    def before_backward(self, strategy, **kwargs):
        clock = strategy.clock
        now = (clock.train_exp_counter, clock.train_exp_epochs, clock.train_epoch_iterations)
        self.seen = now
        if now == self.at:
            strategy.loss = strategy.loss * float("inf")


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(clusters, mlp, make_learner):
    plugin = Spoil(experience=1, epoch=1, iteration=2)
    learner = make_learner(mlp(), plugin, epochs=3)
    learner.train(clusters().train_stream[0])
    with pytest.raises(TrainingError) as caught:
        learner.train(clusters().train_stream[1])
    assert str(caught.value) == (
        "the loss is not finite (experience 1, epoch 1, iteration 2, counted from 0): "
        "lower optimizer.lr, or set train.grad_clip=1"
    )


def test_a_long_epoch_stops_soon_after_the_loss_is_not_finite(
    clusters, mlp, make_learner, monkeypatch
):
    monkeypatch.setattr(learner_module, "CHECK_EVERY", 4)
    plugin = Spoil(experience=0, epoch=0, iteration=5)
    learner = make_learner(mlp(), plugin, batch_size=1)  # an epoch of 24 iterations
    with pytest.raises(TrainingError, match="experience 0, epoch 0, iteration 5, counted"):
        learner.train(clusters().train_stream[0])
    assert plugin.seen == (0, 0, 7)


# --- growth, stopping, evaluation inside training ------------------------------------------------


def test_a_growing_head_joins_the_optimizer_with_the_old_adam_state_kept(
    clusters, mlp, make_learner
):
    stream, seen = clusters(experiences=2).train_stream, {}
    model = mlp("growing")

    def look(strategy):
        states = {n: strategy.optimizer.state.get(p, {}) for n, p in model.named_parameters()}
        seen[strategy.clock.train_exp_counter] = copy.deepcopy(states)
        held = [p for group in strategy.optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held)) == 4
        assert set(held) == set(model.parameters())

    learner = make_learner(
        model,
        At("before_training_exp", look),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=0.01),
    )
    learner.train(stream[0])
    before = {n: copy.deepcopy(learner.optimizer.state[p]) for n, p in model.named_parameters()}
    old_head = model.head.linear
    learner.train(stream[1])

    assert all(before[name]["step"] == 6 for name in before)
    for name, state in seen[1].items():
        assert state["step"] == 6
        for moment in ("exp_avg", "exp_avg_sq"):
            then, now = before[name][moment], state[moment]
            rows = len(then)
            assert torch.equal(now[:rows], then)
            assert now[rows:].numel() == (0 if "encoder" in name else now[rows:].numel())
            assert not now[rows:].any()
    assert seen[1]["head.linear.weight"]["exp_avg"].shape == (4, 12)
    assert learner.optimizer.state[model.head.linear.weight]["step"] == 12
    assert not set(old_head.parameters()) & set(learner.optimizer.state)


def test_new_outputs_of_a_growing_head_are_trained(clusters, mlp, make_learner):
    stream, model, at_start = clusters(experiences=2).train_stream, mlp("growing"), []
    learner = make_learner(
        model,
        At("before_training_exp", lambda s: at_start.append(s.model.head.linear.weight.clone())),
    )
    learner.train(stream)
    assert at_start[1].shape == (4, 12)
    assert (model.head.linear.weight - at_start[1]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize(("stops", "expected"), [([0, 1, 2], [3, 3, 3]), ([1], [12, 3, 12])])
def test_stop_training_ends_the_experience_and_not_the_next_one(
    clusters, mlp, make_learner, stops, expected
):
    counts = []

    def stop(strategy):
        if strategy.clock.train_exp_counter in stops and strategy.clock.train_exp_iterations == 2:
            strategy.stop_training()

    learner = make_learner(
        mlp(),
        At("after_training_iteration", stop),
        At("after_training_exp", lambda s: counts.append(s.clock.train_exp_iterations)),
        batch_size=4,
    )
    learner.train(clusters().train_stream)
    assert counts == expected


@pytest.mark.parametrize("resident_bytes", [float("inf"), 0])
@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_evaluation_inside_training_leaves_the_final_weights_as_they_are_without(
    clusters, mlp, make_learner, weights, head, resident_bytes
):
    scenario, models = clusters(task_labels=head == "multi"), []
    for every in (100, 2):
        calls = []
        learner = make_learner(
            mlp(head, dropout=0.3),
            Replay(10),
            DuringTraining(scenario.test_stream, every, lambda *call, to=calls: to.append(call)),
            evaluator=Evaluator(),
            resident_bytes=resident_bytes,
        )
        learner.eval(scenario.test_stream)  # as a run does, for the untrained model
        torch.manual_seed(7)
        for experience in scenario.train_stream:
            learner.train(experience)
        models.append(weights(learner.model))
    assert len(calls) == 9  # 6 iterations, evaluated after each second one, 3 times
    assert_same(*models)


def test_evaluation_inside_training_gives_back_everything_a_plugin_reads(
    clusters, mlp, make_learner
):
    scenario = clusters(experiences=2)
    names = ("experience", "adapted_dataset", "dataloader", "mbatch", "stored_x", "mb_output")
    names += ("loss", "is_training", "is_eval", "losses", "optimizer", "model")
    checked = []

    def look(strategy):
        strategy.model.encoder.eval()  # a frozen part keeps its mode
        before = [getattr(strategy, name) for name in names]
        scores = strategy.eval(scenario.test_stream)
        after = [getattr(strategy, name) for name in names]
        assert len(scores) == 2
        assert all(a is b for a, b in zip(before, after, strict=True))
        assert strategy.model.training
        assert not strategy.model.encoder.training
        checked.append(strategy.current_eval_stream)

    learner = make_learner(mlp(), At("after_training_iteration", look), evaluator=Evaluator())
    learner.train(scenario.train_stream)
    assert checked == [[]] * 12


def test_evaluation_runs_without_gradients_and_in_evaluation_mode(clusters, mlp, make_learner):
    seen = []

    def look(strategy):
        seen.append((strategy.mb_output.requires_grad, strategy.model.training, strategy.is_eval))

    learner = make_learner(mlp(dropout=0.5), At("after_eval_forward", look))
    learner.eval(clusters().test_stream[0])
    assert seen == [(False, False, True)]


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_is_not_resident_gives_the_same_weights(
    clusters, mlp, make_learner, weights, workers
):
    models = []
    for resident_bytes in (float("inf"), 0):
        learner = make_learner(
            mlp(dropout=0.3), resident_bytes=resident_bytes, workers=workers, epochs=2
        )
        torch.manual_seed(7)
        for experience in clusters(experiences=2, samples=9).train_stream:
            learner.train(experience)
        assert isinstance(learner.dataloader, torch.utils.data.DataLoader) == (resident_bytes == 0)
        models.append(weights(learner.model))
    assert_close(*models)


def test_samples_are_scaled_once_and_kept_as_stored_beside(clusters, mlp, make_learner):
    seen = []
    learner = make_learner(
        mlp(),
        At("before_forward", lambda s: seen.append((s.mb_x, s.stored_x))),
        prepare=Prepare(mean=(0.5,), std=(0.25,)),
    )
    learner.train(clusters().train_stream[0])
    for x, stored in seen:
        assert stored.dtype == torch.uint8
        torch.testing.assert_close(x, (stored / 255 - 0.5) / 0.25)


# --- compiled encoders ---------------------------------------------------------------------------


@pytest.fixture
def compiled():
    """Compiles a model's encoder without a code generator, which is slow and tested by torch."""

    def compile_encoder(model):
        model.encoder.compile(backend="aot_eager")
        return model

    yield compile_encoder
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("make_plugin", "head"),
    [
        (SupervisedPlugin, "single"),
        (LwF, "single"),
        (LwF, "multi"),
        (lambda: EWC(10.0), "multi"),
        (lambda: EWC(10.0, "batch"), "growing"),
        (lambda: DER(10), "single"),
        (lambda: Replay(10, "herding"), "single"),
    ],
)
def test_a_compiled_encoder_trains_to_the_weights_of_an_eager_one(
    clusters, mlp, make_learner, weights, compiled, make_plugin, head
):
    scenario, models = clusters(task_labels=head == "multi"), []
    for model in (mlp(head), compiled(mlp(head))):
        learner = make_learner(model, make_plugin(), evaluator=Evaluator())
        torch.manual_seed(7)
        for experience in scenario.train_stream:
            learner.train(experience)
            learner.eval(scenario.test_stream)
        models.append(weights(learner.model))
    assert_close(*models)
