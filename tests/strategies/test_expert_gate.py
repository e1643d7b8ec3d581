"""Expert Gate: its formulas by hand, which expert is made and which answers, in naive loops."""

import copy
import math
from functools import partial

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.backbones.heads import MASKED
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.footprint import memory_bytes
from strategies.expert_gate import ExpertGate, errors, fitted, gate, relatedness
from tests.handed_over import HandedOver
from tests.strategies.test_lwf import naive_distillation


def naive_error(x, autoencoder):
    """Of one sample, in plain Python."""
    encoder, bias, decoder, other = (weight.tolist() for weight in autoencoder)
    x = x.tolist()
    hidden = [
        max(0.0, sum(w * v for w, v in zip(row, x, strict=True)) + b)
        for row, b in zip(encoder, bias, strict=True)
    ]
    total = 0.0
    for row, b, v in zip(decoder, other, x, strict=True):
        z = sum(w * h for w, h in zip(row, hidden, strict=True)) + b
        total += (1 / (1 + math.exp(-z)) - v) ** 2
    return total


def some_autoencoders(count, width=7, hidden=3):
    shapes = ((hidden, width), (hidden,), (width, hidden), (width,))
    return [[torch.randn(s, dtype=torch.float64) for s in shapes] for _ in range(count)]


def test_errors_relatedness_and_gate_are_the_papers():
    torch.manual_seed(0)
    autoencoders, x = some_autoencoders(3), torch.rand(5, 7, dtype=torch.float64)
    found = errors(x, autoencoders)
    expected = [[naive_error(row, one) for one in autoencoders] for row in x]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert relatedness(torch.tensor([3.0, 2.0, 5.0]), torch.tensor(2.0)).tolist() == [
        *(0.5, 1.0, -0.5)
    ]
    for row, probabilities in zip(expected, gate(found, 2.0).tolist(), strict=True):
        raised = [math.exp(-e / 2) for e in row]
        assert probabilities == pytest.approx([r / sum(raised) for r in raised])


def test_an_autoencoder_is_fitted_to_its_samples_by_cross_entropy():
    torch.manual_seed(0)
    basis = torch.randn(2, 9)
    own, other = ((torch.randn(50, 2) @ basis + c).sigmoid() for c in (0.0, 2.0))
    torch.manual_seed(1)
    autoencoder = fitted(own, 4, 600)
    assert [tuple(w.shape) for w in autoencoder] == [(4, 9), (4,), (9, 4), (9,)]
    torch.manual_seed(1)
    drawn = fitted(own, 4, 0)
    before, after = (errors(own, [one]).mean() for one in (drawn, autoencoder))
    assert after < 0.3 * before
    assert errors(other, [autoencoder]).mean() > 2 * after


def test_an_autoencoder_is_trained_as_in_a_naive_loop():
    torch.manual_seed(0)
    x = torch.rand(45, 6)
    torch.manual_seed(1)
    found = fitted(x, 3, 4)
    torch.manual_seed(1)
    weights = [w.double().requires_grad_() for w in fitted(x, 3, 0)]
    adam = torch.optim.Adam(weights, lr=1e-3)
    for _ in range(4):
        for rows in torch.randperm(45).split(32):
            target = x[rows].double()
            hidden = (target @ weights[0].T + weights[1]).clamp_min(0)
            p = 1 / (1 + (-(hidden @ weights[2].T + weights[3])).exp())
            adam.zero_grad()
            (-(target * p.log() + (1 - target) * (1 - p).log())).mean().backward()
            adam.step()
    for one, other in zip(found, weights, strict=True):
        torch.testing.assert_close(one, other.detach().float(), rtol=1e-5, atol=1e-6)


class Look(SupervisedPlugin):
    """The model as each experience begins and ends; each batch's loss beside a naive sum."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.begins, self.ends = strategy, [], []
        self.losses, self.expected = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.begins.append(copy.deepcopy(strategy.model))
        assert not any(strategy.optimizer.state.values())
        self.new = sorted(strategy.experience.classes_in_this_experience)

    def before_backward(self, strategy, **kwargs):
        with torch.no_grad():
            logits = strategy.model(strategy.mb_x).double()
            cross = nn.functional.cross_entropy(logits[:, self.new], strategy.mb_y - self.new[0])
            expected = cross.item()
            if self.strategy.related is not None:
                assert not self.strategy._teacher.training
                kept = self.strategy.classes[self.strategy.related].tolist()
                old = self.ends[self.strategy.related].eval()(strategy.mb_x).double()
                expected += 0.7 * naive_distillation(logits[:, kept], old[:, kept], 2.0)
        self.losses.append(strategy.loss.item())
        self.expected.append(expected)

    def after_training_exp(self, strategy, **kwargs):
        self.ends.append(copy.deepcopy(strategy.model))


def make(**settings):
    return ExpertGate(**{"strength": 0.7, "hidden": 4, "epochs": 20, **settings})


def trained(make_learner, model, stream, strategy, *others, **options):
    options = {"evaluator": Evaluator(), **options}
    learner = make_learner(model, strategy, *others, **options)
    torch.manual_seed(1)
    learner.train(stream)
    return learner


def inputs(experience, moments):
    x = torch.stack([sample[0] for sample in experience.dataset]).flatten(1)
    return ((x - moments[0]) / moments[1]).sigmoid()


@pytest.mark.parametrize("threshold", [-math.inf, math.inf])
@pytest.mark.parametrize("head", ["single", "growing"])
def test_each_expert_begins_with_the_most_related_and_keeps_its_answers_above_the_threshold(
    clusters, mlp, make_learner, head, threshold
):
    expert = make(threshold=threshold, epochs=150)
    stream = clusters(samples=20).train_stream
    look, chosen = Look(expert), []
    momentum = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    learner = make_learner(mlp(head), expert, look, optimizer=momentum)
    torch.manual_seed(1)
    for k in (0, 1, 2, 0):  # a task that comes again is related to itself, and not the latest
        learner.train(stream[k])
        if not look.ends[1:]:
            assert expert.related is None
            continue
        x = inputs(stream[k], expert.moments)
        mean = [sum(naive_error(r, a) for r in x) / len(x) for a in expert.autoencoders]
        related = [1 - (e - mean[-1]) / mean[-1] for e in mean[:-1]]
        most = related.index(max(related))
        chosen.append(most)
        assert expert.related == (most if threshold < 0 else None)
        for name, begin in look.begins[-1].state_dict().items():
            end = look.ends[most].state_dict()[name]
            assert torch.equal(begin[tuple(slice(n) for n in end.shape)], end)
    assert chosen[-1] == 0
    assert look.losses == pytest.approx(look.expected, rel=1e-4)
    assert all(not p.requires_grad for w in expert.experts for p in w.values())


def test_the_moments_are_of_the_first_experience_and_serve_all(clusters, mlp, make_learner):
    stream, expert = clusters().train_stream, make()
    trained(make_learner, mlp(), stream, expert)
    x = torch.stack([sample[0] for sample in stream[0].dataset])
    assert expert.moments == pytest.approx((x.mean().item(), x.std().item()))


def naive_answers(experience, moments, autoencoders, experts, classes):
    """Outputs of each sample by itself."""
    found = []
    for x, *_ in experience.dataset:
        scaled = ((x.flatten() - moments[0]) / moments[1]).sigmoid()
        error = [naive_error(scaled, one) for one in autoencoders]
        task = error.index(min(error))
        with torch.no_grad():
            answer = experts[task].eval()(x[None])[0]
        found.append([v if c in classes[task] else MASKED for c, v in enumerate(answer.tolist())])
    return torch.tensor(found)


@pytest.mark.parametrize("head", ["single", "growing"])
def test_the_autoencoder_of_least_error_picks_the_expert_that_answers(
    clusters, mlp, make_learner, head
):
    scenario, expert, outputs = clusters(), make(), []

    class Answers(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            outputs.append(strategy.mb_output)

    look = Look(expert)
    learner = make_learner(mlp(head, dropout=0.2), expert, Answers(), look, evaluator=Evaluator())
    look.before_backward = lambda *_, **__: None
    learner._hooks["before_backward"] = [expert.before_backward]
    for count, experience in enumerate(scenario.train_stream, start=1):
        learner.train(experience)
        outputs.clear()
        learner.eval(scenario.test_stream)
        for output, test in zip(outputs, scenario.test_stream, strict=True):
            classes = [own.tolist() for own in expert.classes]
            state = (expert.moments, expert.autoencoders, look.ends, classes)
            torch.testing.assert_close(output, naive_answers(test, *state))
        assert len(look.ends) == len(expert.autoencoders) == len(expert.experts) + 1 == count
    picked = {tuple((row > MASKED / 2).tolist()) for output in outputs for row in output}
    assert len(picked) == 3


def test_an_untrained_model_answers_by_itself(clusters, mlp, make_learner):
    scores = []
    for plugins in ([], [make()]):
        learner = make_learner(mlp(), *plugins, evaluator=Evaluator())
        scores.append(learner.eval(clusters().test_stream))
    assert scores[0] == scores[1]


def test_the_first_experience_with_a_growing_head_is_fine_tuning_to_the_bit(
    clusters, mlp, make_learner, weights
):
    models = []
    for plugins in ([], [make()]):
        torch.manual_seed(1)
        learner = make_learner(mlp("growing"), *plugins)
        learner.train(clusters().train_stream[0])
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_strength_0_is_fine_tuning_of_the_most_related_to_the_bit(
    clusters, mlp, make_learner, weights
):
    models = []
    for settings in ({"threshold": math.inf}, {"threshold": -math.inf, "strength": 0.0}):
        learner = trained(make_learner, mlp(), clusters().train_stream, make(**settings))
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_it_forgets_less_than_fine_tuning(clusters, mlp, make_learner):
    scenario, expert = clusters(samples=30), make(epochs=200)
    learner = trained(make_learner, mlp(), scenario.train_stream, expert, epochs=10)
    scores = learner.eval(scenario.test_stream)
    assert min(scores) > 0.5  # fine-tuning ends at 0 on the first two


def test_it_can_be_evaluated_in_the_midst_of_training(clusters, mlp, make_learner, weights):
    scenario, models, scores = clusters(), [], []

    class Evaluates(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            scores.append(strategy.eval(scenario.test_stream))

    for plugins in ([], [Evaluates()]):
        learner = trained(make_learner, mlp(), scenario.train_stream, make(), *plugins)
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert len(scores) == 18
    assert all(score[1:] == [0, 0] for score in scores[:6])  # classes to come are masked


def test_bytes_are_of_all_autoencoders_labels_and_of_the_experts_beside_the_model(
    clusters, mlp, make_learner
):
    expert = make()
    learner = trained(make_learner, mlp(), clusters().train_stream, expert)
    of_model = sum(p.numel() for p in learner.model.parameters()) * 4
    of_autoencoder = (2 * 16 * 4 + 16 + 4) * 4
    assert memory_bytes(expert, learner.model) == 2 * of_model + 3 * (of_autoencoder + 16)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_trains_in_mixed_precision_and_by_several_batches(
    clusters, mlp, make_learner, weights, precision
):
    models = []
    for chosen in ("fp32", precision):
        settings = {"precision": chosen, "accumulate": 2}
        stream, expert = clusters().train_stream, make(threshold=-math.inf)
        learner = trained(make_learner, mlp("growing"), stream, expert, **settings)
        learner.eval(clusters().test_stream)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("threshold", [-math.inf, math.inf])
@pytest.mark.parametrize("head", ["single", "growing"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head, threshold):
    strategy, restored = resume_and_compare(lambda: make(threshold=threshold), head)
    for found in (strategy, restored):
        assert [own.tolist() for own in found.classes] == [[0, 1], [2, 3], [4, 5]]
    for one, other in zip(strategy.experts, restored.experts, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    for one, other in zip(strategy.autoencoders, restored.autoencoders, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def begins_again(old, new, loop):
    """As in a run that is taken up again."""
    new.before_training_exp(loop)


def test_it_goes_on_from_its_state_in_mid_experience(clusters, mlp, make_learner, weights):
    models = []
    for plugin in (
        make(threshold=-math.inf),
        HandedOver(lambda: make(threshold=-math.inf), 9, begins_again),
    ):
        learner = trained(make_learner, mlp("growing"), clusters().train_stream, plugin)
        models.append(weights(learner.model))
    assert plugin.seen == 18
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": 0}, "strategy.hidden=0: expected at least 1; raise it"),
        ({"epochs": 0}, "strategy.epochs=0: expected at least 1; raise it"),
        ({"strength": -1.0}, "strategy.strength=-1.0: expected 0 or more; raise it"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        ExpertGate(**arguments)
    assert str(caught.value) == message


def test_models_and_inputs_that_it_cannot_serve_are_refused(clusters, mlp):
    expert, scenario, generated = make(), clusters(), nn.Module()
    expert.check(scenario)
    expert.check_model(mlp())
    scenario.vocabulary, generated.generator = 10, nn.Linear(1, 1)
    for refuse, message in (
        (
            lambda: expert.check(scenario),
            "strategy=expert_gate: its autoencoders read images and series, and this scenario's "
            "samples are tokens; choose another strategy",
        ),
        (
            lambda: expert.check_model(mlp("multi")),
            "head: Expert Gate has a network for each task and finds the task by itself; set "
            "head=single, or head=growing",
        ),
        (
            lambda: expert.check_model(generated),
            "hypernet: Expert Gate has a network for each task, and a hypernetwork is one for all; "
            "set hypernet=none",
        ),
    ):
        with pytest.raises(InputError) as caught:
            refuse()
        assert str(caught.value) == message
