"""Kernel continual learning: its loss by dense kernels in float64, its coresets, and its state."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.convnet import ConvNet
from clplat.backbones.heads import MASKED, Multi
from clplat.backbones.kernel import Kernel
from clplat.backbones.mlp import MLP
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.prepare import Prepare
from clplat.several import Several
from strategies.kcl import KCL, balanced_draw
from strategies.lwf import LwF
from strategies.replay import Replay
from tests.handed_over import HandedOver

SHAPE, CLASSES = (1, 4, 4), 6


def make_model(encoder="mlp", **settings):
    torch.manual_seed(0)
    made = MLP(SHAPE, [9]) if encoder == "mlp" else ConvNet(SHAPE, [3, 5])
    settings = {"random_features": 13, "bandwidth": 0.7, **settings}
    return classifier(made, Kernel(made.width, CLASSES, **settings))


LARGE = {"random_features": 400, "bandwidth": 0.25}


@pytest.fixture
def mlp():
    """In place of the one that `resume_and_compare` would take: with a kernel."""
    return lambda head: make_model()


def trained(make_learner, stream, *plugins, model=None, **options):
    learner = make_learner(model or make_model(), *plugins, **options)
    torch.manual_seed(1)
    for experience in stream:
        learner.train(experience)
    return learner


def dense(model, task, coreset, labels, x):
    """Logits as the equations have them, coreset and batch passed one after the other."""
    head = model.head

    def phi(inputs):
        z = model.encoder(inputs)
        z = z / z.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return math.sqrt(2 / 13) * torch.cos(z @ head.frequencies.T + head.phases)

    own, classes = head.linears[str(task)], [2 * task, 2 * task + 1]
    c, eye = phi(coreset), torch.eye(len(labels), dtype=torch.float64)
    targets = torch.stack([(labels == k).double() for k in classes], 1)
    inverse = (c @ c.T + (own.ridge.abs() + 0.01) * eye).inverse()
    logits = own.scale * (phi(x) @ c.T) @ inverse @ targets + own.shift
    output = torch.full((len(x), CLASSES), MASKED, dtype=torch.float64)
    return output.index_copy(1, torch.tensor(classes), logits)


class Before(SupervisedPlugin):
    """Keeps the model of each iteration; stands before the strategy."""

    def before_forward(self, strategy, **kwargs):
        self.model = copy.deepcopy(strategy.model).double()


class After(SupervisedPlugin):
    """Compares each loss and its gradients with those of the dense kernel in float64."""

    def __init__(self, before, coreset_of):
        super().__init__()
        self.before, self.coreset_of, self.seen = before, coreset_of, 0

    def after_backward(self, strategy, **kwargs):
        model, task = self.before.model, strategy.experience.task_labels[0]
        coreset, labels = self.coreset_of(task)
        x, y = strategy.mb_x.double(), strategy.mb_y
        assert len(x) == len(y) <= strategy.train_mb_size
        loss = nn.functional.cross_entropy(dense(model, task, coreset, labels, x), y)
        assert strategy.loss.item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
        loss.backward()
        largest = 0.0
        for (name, p), q in zip(strategy.model.named_parameters(), model.parameters(), strict=True):
            if q.grad is None:
                assert p.grad is None or not p.grad.any(), name
            else:
                torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-5, msg=name)
                largest = max(largest, float(q.grad.abs().max()))
        assert largest > 1e-4
        self.seen += 1


def test_the_loss_of_every_batch_is_that_of_the_dense_kernel(clusters, make_learner):
    strategy, before = KCL(3), Before()

    def coreset_of(task):
        x, y = strategy.coresets[task]
        return x.double() / 255, y

    after = After(before, coreset_of)
    trained(make_learner, clusters(task_labels=True).train_stream, before, strategy, after, lr=0.5)
    assert after.seen == 3 * 2 * 3  # 24 samples less 6, in batches of 8


def test_earlier_tasks_are_solved_for_by_the_encoder_as_it_is_now(clusters, make_learner):
    scenario, strategy = clusters(task_labels=True), KCL(3)
    learner = trained(make_learner, scenario.train_stream, strategy, lr=0.5)
    with torch.no_grad():  # as if it were trained on
        next(learner.model.encoder.parameters()).add_(0.1)
    learner.eval(scenario.test_stream)
    model, learner.model = copy.deepcopy(learner.model).double(), learner.model.eval()
    for task, experience in enumerate(scenario.test_stream):
        x = torch.stack([item[0] for item in experience.dataset])
        coreset, labels = strategy.coresets[task]
        expected = dense(model, task, coreset.double() / 255, labels, x.double())
        found = learner.model(x, torch.full((len(x),), task))
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


class Seen(SupervisedPlugin):
    """Every sample of each experience's first epoch, and passes of the encoder."""

    def __init__(self):
        super().__init__()
        self.batches, self.stored, self.passes = [], [], 0

    def before_training_exp(self, strategy, **kwargs):
        self.stored = []
        self.batches.append(self.stored)
        hook = lambda *_: setattr(self, "passes", self.passes + 1)  # noqa: E731
        self.handle = strategy.model.encoder.register_forward_hook(hook)

    def before_backward(self, strategy, **kwargs):
        assert strategy.model.head.coreset is None
        if strategy.clock.train_exp_epochs == 0:
            assert len(strategy.mb_x) == len(strategy.mb_y) == len(strategy.stored_x)
            self.stored += strategy.stored_x.flatten(1).tolist()

    def after_training_epoch(self, strategy, **kwargs):
        self.handle.remove()


def test_the_coreset_is_of_each_class_and_is_not_trained_on(clusters, make_learner):
    strategy, seen = KCL(4), Seen()
    stream = clusters(task_labels=True).train_stream
    trained(make_learner, stream, strategy, seen)
    for task, experience in enumerate(stream):
        x, y = strategy.coresets[task]
        assert x.dtype == torch.uint8
        assert y.tolist() == [2 * task] * 4 + [2 * task + 1] * 4
        whole = [(255 * item[0]).round().flatten().tolist() for item in experience.dataset]
        assert sorted(seen.batches[task] + x.flatten(1).tolist()) == sorted(whole)
        by_label = {
            (*row,): int(item[1]) for row, item in zip(whole, experience.dataset, strict=True)
        }
        assert [by_label[(*row,)] for row in x.flatten(1).float().tolist()] == y.tolist()


def test_the_encoder_runs_once_an_iteration(clusters, make_learner):
    seen = Seen()
    trained(make_learner, clusters(task_labels=True).train_stream, KCL(4), seen, epochs=1)
    assert seen.passes == 3 * 2


def test_a_draw_has_as_many_of_each_label_and_is_the_seeds():
    places = {7: [0, 3, 4, 8], 2: [1, 2, 5, 6, 7], 5: [9]}
    torch.manual_seed(0)
    draws = [balanced_draw(places, 3).tolist() for _ in range(40)]
    for drawn in draws:
        assert [sum(p in of for p in drawn) for of in places.values()] == [3, 3, 1]
        assert sorted(set(drawn)) == drawn
    assert len(set(map(tuple, draws))) > 10
    torch.manual_seed(0)
    assert balanced_draw(places, 3).tolist() == draws[0]


def test_a_task_that_comes_again_gains_as_many_samples(clusters, make_learner):
    strategy, stream = KCL(3), clusters(task_labels=True).train_stream
    trained(make_learner, [stream[0], stream[1], stream[0]], strategy, epochs=1)
    assert [len(strategy.coresets[task][1]) for task in (0, 1)] == [12, 6]


def test_the_coreset_is_augmented_in_training_alone(clusters, make_learner):
    calls = []

    def prepare(x, training):
        calls.append((len(x), training))
        return Prepare()(x)

    scenario = clusters(task_labels=True)
    learner = make_learner(make_model(), KCL(3), prepare=prepare, epochs=1)
    learner.train(scenario.train_stream[0])
    assert calls == [(8, True), (6, True), (8, True), (6, True), (2, True), (6, True), (6, False)]


class Watching(SupervisedPlugin):
    """Evaluates after every iteration."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream

    def after_training_iteration(self, strategy, **kwargs):
        strategy.eval(self.stream)


@pytest.mark.parametrize("encoder", ["mlp", "convnet"])
def test_evaluating_amid_training_changes_nothing(clusters, make_learner, encoder):
    scenario, models = clusters(task_labels=True), []
    for watching in ([], [Watching(scenario.test_stream)]):
        learner = make_learner(make_model(encoder), KCL(3), *watching)
        learner.eval(scenario.test_stream)  # makes the heads
        torch.manual_seed(1)
        learner.train(scenario.train_stream[0])
        models.append(learner.model)
    pairs = zip(*(m.state_dict().values() for m in models), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_it_is_solved_for_in_evaluation_mode_as_soon_as_an_experience_ends(clusters, make_learner):
    scenario = clusters(task_labels=True)
    learner = make_learner(make_model("convnet"), KCL(3), epochs=1)
    learner.train(scenario.train_stream[0])
    assert learner.model.encoder.stages[0][1].num_batches_tracked == 3  # 18 samples by 8
    assert learner.model.encoder.training
    solved = learner.model.head.linears["0"].weight.clone()
    learner.eval(scenario.test_stream[0])
    assert solved.any()
    assert torch.equal(learner.model.head.linears["0"].weight, solved)


def test_it_forgets_little(clusters, make_learner):
    scenario = clusters(samples=30, task_labels=True)
    options = {"model": make_model(**LARGE), "evaluator": Evaluator(), "epochs": 10, "lr": 0.05}
    learner = trained(make_learner, scenario.train_stream, KCL(5), **options)
    assert min(learner.eval(scenario.test_stream)) > 0.8


def test_it_goes_with_distillation_of_old_answers(clusters, make_learner):
    scenario = clusters(samples=30, task_labels=True)
    both = Several(kcl=KCL(5), lwf=LwF()).parts.values()
    options = {"model": make_model(**LARGE), "evaluator": Evaluator()}
    learner = trained(make_learner, scenario.train_stream, *both, **options)
    assert min(learner.eval(scenario.test_stream)) > 0.6


def test_mixed_precision_trains_nearly_as_full_precision(clusters, assert_near_in_half):
    stream = clusters(task_labels=True).train_stream
    assert_near_in_half(lambda: make_model(**LARGE), lambda: KCL(3), stream, lr=0.05)


# --- its state -----------------------------------------------------------------------------------


def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare):
    strategy, restored = resume_and_compare(lambda: KCL(3), "multi")
    for task in range(3):
        pairs = zip(strategy.coresets[task], restored.coresets[task], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def begins_again(old, new, loop):
    """As a run that is taken up again."""
    before = loop.adapted_dataset
    loop.adapted_dataset = loop.experience.dataset.train()
    new.after_train_dataset_adaptation(loop)
    assert len(loop.adapted_dataset) == len(before)
    new.before_training_exp(loop)


def goes_on(old, new, loop):
    """As if nothing had happened."""


@pytest.mark.parametrize("again", [goes_on, begins_again])
def test_it_goes_on_from_its_state_in_mid_experience(clusters, make_learner, again):
    models, make = [], lambda: KCL(3)
    for plugin in (make(), HandedOver(make, 9, again)):
        stream = clusters(task_labels=True).train_stream
        models.append(trained(make_learner, stream, plugin).model)
    assert plugin.seen == 18
    pairs = zip(*(m.state_dict().values() for m in models), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_avalanches_own_loop_trains_to_the_same_weights(assert_same_in_avalanche):
    assert_same_in_avalanche(make_model, lambda: KCL(3), task_labels=True)


def test_memory_is_the_coresets(clusters, make_learner):
    strategy = KCL(3)
    assert strategy.memory_bytes == 0
    trained(make_learner, clusters(task_labels=True).train_stream, strategy, epochs=1)
    assert strategy.memory_bytes == 3 * 6 * (16 + 8)  # bytes of an image, of a label


# --- what it refuses -----------------------------------------------------------------------------


def refusal(what):
    with pytest.raises(InputError) as caught:
        what()
    return str(caught.value)


def test_a_coreset_of_all_samples_is_refused(clusters):
    scenario = clusters(task_labels=True)
    KCL(11).check(scenario)
    assert refusal(lambda: KCL(12).check(scenario)) == (
        "strategy.samples=12: experience 0 has at most 12 samples of a class, and none would be "
        "left to train on; set strategy.samples=11 or less"
    )
    assert refusal(lambda: KCL(0)) == "strategy.samples=0: expected at least 1; raise it"


def test_experiences_of_several_tasks_are_refused():
    stream = [SimpleNamespace(task_labels=[0]), SimpleNamespace(task_labels=[1, 2])]
    assert refusal(lambda: KCL().check(SimpleNamespace(train_stream=stream))) == (
        "scenario: experience 1 has 2 tasks, and KCL solves for one at a time; choose one of a "
        "task an experience, such as split_digits"
    )


def test_models_without_an_encoder_or_a_kernel_are_refused():
    KCL().check_model(make_model())
    encoder = MLP(SHAPE, [9])
    assert refusal(lambda: KCL().check_model(classifier(encoder, Multi(9, CLASSES)))) == (
        "head: KCL predicts by kernel ridge regression, and Multi does not; set head=kernel"
    )
    assert refusal(lambda: KCL().check_model(nn.Linear(2, 2))) == (
        "hypernet: KCL trains an encoder, and Linear generates its weights for each task; set "
        "hypernet=none"
    )


def test_replay_does_not_go_with_it():
    text = refusal(lambda: Several(kcl=KCL(), replay=Replay(20)))
    assert "both kcl and replay decide on the batches" in text
