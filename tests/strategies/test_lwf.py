"""LwF against its closed form, naive second passes, and Avalanche's plugin."""

import copy
import math

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LwFPlugin

from clplat.errors import InputError
from strategies.lwf import LwF, distillation


def softmax(row, temperature):
    exponentials = [math.exp(v / temperature) for v in row]
    return [e / sum(exponentials) for e in exponentials]


def naive_distillation(logits, old_logits, temperature):
    """Cross-entropy, mean over samples, in plain Python."""
    total = 0.0
    for new, old in zip(logits.tolist(), old_logits.tolist(), strict=True):
        p, q = softmax(new, temperature), softmax(old, temperature)
        total -= sum(b * math.log(a) for a, b in zip(p, q, strict=True))
    return total / len(logits)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_distillation_has_the_value_and_gradient_of_its_closed_form(temperature):
    torch.manual_seed(0)
    logits = (3 * torch.randn(5, 7, dtype=torch.float64)).requires_grad_()
    old = 3 * torch.randn(5, 7, dtype=torch.float64)
    loss = distillation(logits, old, temperature)
    assert loss.item() == pytest.approx(naive_distillation(logits, old, temperature), rel=1e-12)

    (gradient,) = torch.autograd.grad(loss, logits)
    p, q = (torch.tensor([softmax(r, temperature) for r in z.tolist()]) for z in (logits, old))
    torch.testing.assert_close(gradient, (p - q).double() / (temperature * 5), rtol=1e-5, atol=1e-7)


def test_the_old_answers_themselves_have_no_gradient():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    distillation(logits, logits.detach(), 2.0).backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))


class Watch(SupervisedPlugin):
    """What LwF adds to the loss, beside what naive passes of both models would."""

    def __init__(self, lwf, head):
        super().__init__()
        self.lwf, self.head = lwf, head
        self.teacher, self.seen = None, {}
        self.added, self.expected = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.lwf.before_training_exp(strategy, **kwargs)

    def after_forward(self, strategy, **kwargs):
        self.lwf.after_forward(strategy, **kwargs)

    def before_backward(self, strategy, **kwargs):
        before = strategy.loss.detach().clone()
        self.lwf.before_backward(strategy, **kwargs)
        self.added.append((strategy.loss.detach() - before).item())
        expected = 0.0
        for task, classes in self.seen.items():
            inputs = (task,) if self.head == "multi" else ()
            with torch.no_grad():
                new, old = (
                    m(strategy.mb_x, *inputs)[:, classes].double()
                    for m in (copy.deepcopy(strategy.model).eval(), self.teacher)
                )
            expected += naive_distillation(new, old, 2.0)
        self.expected.append(3.0 * expected)

    def after_training_exp(self, strategy, **kwargs):
        self.lwf.after_training_exp(strategy, **kwargs)
        self.teacher = copy.deepcopy(strategy.model).eval()
        data = strategy.experience.dataset
        task = int(data.targets_task_labels[0]) if self.head == "multi" else 0
        self.seen[task] = self.seen.get(task, []) + sorted(set(map(int, data.targets)))


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_the_loss_gains_the_distillation_of_every_earlier_task(clusters, mlp, make_learner, head):
    watch = Watch(LwF(strength=3.0, temperature=2.0), head)
    learner = make_learner(mlp(head), watch)
    for experience in clusters(task_labels=head == "multi").train_stream:
        learner.train(experience)
    assert watch.expected[:6] == [0.0] * 6
    assert watch.added == pytest.approx(watch.expected, rel=1e-3, abs=1e-6)
    assert max(watch.added) > 1e-4


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_it_trains_to_the_weights_of_avalanches_plugin(clusters, mlp, make_learner, weights, head):
    stream, models = clusters(task_labels=head == "multi").train_stream, []
    for plugin in (LwF(2.0, temperature=1.5), LwFPlugin(alpha=2.0, temperature=1.5)):
        learner = make_learner(mlp(head), plugin)
        for experience in stream:
            learner.train(experience)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-5)


def test_classes_of_a_task_that_comes_again_are_all_distilled(clusters, mlp, make_learner):
    stream = clusters().train_stream
    lwf = LwF()
    learner = make_learner(mlp(), lwf)
    learner.train([stream[1], stream[0], stream[1]])
    assert lwf.seen == {0: [0, 1, 2, 3]}


def test_the_encoder_runs_once_an_iteration_for_all_heads(clusters, mlp, make_learner):
    model, calls = mlp("multi"), []
    learner = make_learner(model, LwF())
    stream = clusters(task_labels=True).train_stream
    learner.train([stream[0], stream[1]])
    handle = model.encoder.register_forward_hook(lambda *_: calls.append(1))
    learner.train(stream[2])
    handle.remove()
    assert len(calls) == 6
    assert not model.encoder._forward_hooks  # the tap is closed


def test_the_teacher_stays_as_the_model_was(clusters, mlp, make_learner, weights):
    stream, lwf = clusters().train_stream, LwF()
    learner = make_learner(mlp(dropout=0.5), lwf)
    learner.train(stream[0])
    teacher, then = lwf.teacher, weights(learner.model)
    seen = []

    class Look(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            seen.append(weights(lwf.teacher))

    make_learner(learner.model, lwf, Look()).train(stream[1])
    assert len(seen) == 6
    assert all(torch.equal(state[name], then[name]) for state in seen for name in then)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert lwf.teacher is not teacher


@pytest.mark.parametrize("head", ["single", "multi"])
def test_strength_0_is_fine_tuning_to_the_bit(clusters, mlp, make_learner, weights, head):
    models = []
    for plugins in ([], [LwF(strength=0.0)]):
        learner = make_learner(mlp(head), *plugins)
        learner.train(clusters(task_labels=head == "multi").train_stream)
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_mixed_precision_trains_nearly_as_full_precision(clusters, mlp, assert_near_in_half, head):
    stream = clusters(task_labels=head == "multi").train_stream
    assert_near_in_half(lambda: mlp(head), LwF, stream)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, restored = resume_and_compare(lambda: LwF(2.0), head)
    assert (
        restored.seen
        == strategy.seen
        == ({0: [0, 1], 1: [2, 3], 2: [4, 5]} if head == "multi" else {0: [0, 1, 2, 3, 4, 5]})
    )


def test_a_temperature_of_0_is_refused():
    with pytest.raises(InputError) as caught:
        LwF(temperature=0)
    assert str(caught.value) == "strategy.temperature=0: expected more than 0; raise it"
