"""DER and DER++: the loss by hand, the logits of the moment, and the effect."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.backbones.heads import MASKED
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.prepare import Prepare
from strategies.der import DER, logit_distance


def test_the_distance_is_the_mean_squared_error_of_logits():
    torch.manual_seed(0)
    logits, stored = torch.randn(2, 5, 7, dtype=torch.float64)
    expected = sum(
        (float(a) - float(b)) ** 2 for a, b in zip(logits.flatten(), stored.flatten(), strict=True)
    )
    assert logit_distance(logits, stored).item() == pytest.approx(expected / 35, rel=1e-12)


def test_outputs_that_did_not_exist_when_logits_were_stored_do_not_count():
    logits = torch.tensor([[1.0, 2.0, 5.0], [1.0, 0.0, 7.0]], requires_grad=True)
    stored = torch.tensor([[0.0, 0.0, MASKED], [1.0, MASKED, MASKED]])
    loss = logit_distance(logits, stored)
    assert loss.item() == pytest.approx((1 + 4 + 0) / 3)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.tensor([[2 / 3, 4 / 3, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("stored", [[1.0, 0.0], [1.0, 0.0, -1000.0], [1.0, 0.0, MASKED]])
def test_heads_of_avalanche_are_understood_whose_outputs_are_fewer_or_masked(stored):
    logits, stored = torch.tensor([[3.0, 0.0, 8.0]]), torch.tensor([stored])
    assert logit_distance(logits, stored).item() == 2.0


def test_logits_all_of_which_are_new_have_no_distance():
    assert logit_distance(torch.ones(2, 3), torch.full((2, 3), MASKED)).item() == 0.0


class Steps(SupervisedPlugin):
    """Runs DER's hooks and keeps what an independent computation needs of each iteration."""

    def __init__(self, der):
        super().__init__()
        self.der, self.kept = der, []

    def before_forward(self, strategy, **kwargs):
        own = [c.clone() for c in strategy.mbatch]
        self.kept.append({"model": copy.deepcopy(strategy.model), "own": own})
        self.kept[-1]["held"] = [c.clone() for c in self.der.memory.all()]
        torch.manual_seed(len(self.kept))
        self.der.before_forward(strategy, **kwargs)

    def after_forward(self, strategy, **kwargs):
        self.der.after_forward(strategy, **kwargs)
        mbatch = strategy.mbatch
        assert all(torch.equal(a, b) for a, b in zip(mbatch, self.kept[-1]["own"], strict=True))
        self.kept[-1]["output"] = strategy.mb_output.detach().clone()

    def before_backward(self, strategy, **kwargs):
        self.der.before_backward(strategy, **kwargs)
        self.kept[-1]["loss"] = strategy.loss.item()

    def after_backward(self, strategy, **kwargs):
        gradients = {n: p.grad.clone() for n, p in strategy.model.named_parameters()}
        self.kept[-1]["gradients"] = gradients

    def after_training_iteration(self, strategy, **kwargs):
        self.der.after_training_iteration(strategy, **kwargs)


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_the_loss_is_the_papers_on_every_batch(clusters, mlp, make_learner, head, beta):
    der = DER(capacity=10, alpha=0.3, beta=beta, batch_size=5)
    steps = Steps(der)
    learner = make_learner(mlp(head), steps)
    learner.train(clusters(experiences=2, task_labels=head == "multi").train_stream)
    assert len(steps.kept) == 12

    def logits_of(model, x, task):
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        return model(x, task) if head == "multi" else model(x)

    for k, step in enumerate(steps.kept):
        model, (x, y, task) = step["model"], step["own"]
        loss = nn.functional.cross_entropy(logits_of(model, x, task), y)
        if k:
            x, y, task, z = step["held"]
            torch.manual_seed(k + 1)
            first = torch.randperm(len(y))[:5]
            output = logits_of(model, x[first], task[first])
            pairs = [(a, b) for a, b in zip(output.flatten(), z[first].flatten(), strict=True)]
            known = [(a - b) ** 2 for a, b in pairs if b != MASKED]
            loss = loss + 0.3 * torch.stack(known).mean()
            if beta:
                second = torch.randperm(len(y))[:5]
                output = logits_of(model, x[second], task[second])
                loss = loss + beta * nn.functional.cross_entropy(output, y[second])
        loss.backward()
        assert step["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for name, parameter in model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(step["gradients"][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_memory_holds_the_logits_that_each_sample_was_given_when_it_was_stored(
    clusters, mlp, make_learner
):
    der = DER(capacity=15)
    steps = Steps(der)
    stream = clusters(experiences=2).train_stream
    learner = make_learner(mlp("growing"), steps, epochs=1)
    learner.train(stream)
    given = {}
    for step in steps.kept:  # one epoch: every sample passes once
        x, y, task = step["own"]
        with torch.no_grad():
            output = step["model"](x)
        for i in range(len(y)):
            stored = (x[i] * 255).round().byte()
            given[tuple(stored.flatten().tolist())] = (int(y[i]), int(task[i]), output[i])
    x, y, task, z = der.memory.all()
    assert x.dtype == torch.uint8
    assert len(y) == 15
    assert len(set(y.tolist()) & {0, 1}) + len(set(y.tolist()) & {2, 3}) > 2
    for i in range(15):
        label, of_task, logits = given[tuple(x[i].flatten().tolist())]
        assert (label, of_task) == (int(y[i]), int(task[i]))
        torch.testing.assert_close(z[i], logits)
        assert (z[i] == MASKED).sum() == (4 if label < 2 else 2)


def test_the_memory_holds_inputs_before_augmentation(clusters, mlp, make_learner):
    stream, der = clusters(experiences=1).train_stream, DER(capacity=24)
    learner = make_learner(mlp(), der, prepare=Prepare(flip=True, crop=1), epochs=1)
    learner.train(stream)
    stored = sorted((d[0] * 255).round().byte().flatten().tolist() for d in stream[0].dataset)
    assert sorted(x.flatten().tolist() for x in der.memory.all()[0]) == stored


def test_replayed_inputs_are_augmented_anew(clusters, mlp, make_learner):
    der, seen = DER(capacity=24), []

    class Look(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            seen.append(strategy.mb_x[8:])  # both draws, after the batch of 8

    experience = clusters().train_stream[0]
    make_learner(mlp(), der, Look(), prepare=Prepare(flip=True)).train(experience)
    samples = torch.stack([d[0] for d in experience.dataset])
    as_is = [any(torch.equal(x, s) for s in samples) for x in torch.cat(seen)]
    mirrored = [any(torch.equal(x.flip(-1), s) for s in samples) for x in torch.cat(seen)]
    assert len(as_is) == 5 * 16
    assert all(one or other for one, other in zip(as_is, mirrored, strict=True))
    assert 20 < sum(as_is) < 60


def test_without_alpha_and_beta_it_is_fine_tuning(clusters, mlp, make_learner, bare_loop, weights):
    stream = clusters().train_stream
    learner = make_learner(mlp(), DER(10, alpha=0.0, beta=0.0))
    learner.train(stream)
    bare = weights(bare_loop(mlp(), stream))
    for name, value in weights(learner.model).items():
        torch.testing.assert_close(value, bare[name])


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_it_forgets_less_than_fine_tuning(clusters, mlp, make_learner, beta):
    scenario, final = clusters(samples=30), []
    for plugins in ([], [DER(60, alpha=1.0, beta=beta)]):
        learner = make_learner(mlp(), *plugins, evaluator=Evaluator(), epochs=10)
        torch.manual_seed(0)
        learner.train(scenario.train_stream)
        final.append(learner.eval(scenario.test_stream))
    assert sum(final[0][:2]) == 0.0
    assert sum(final[1][:2]) > 0.5


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head, beta):
    strategy, restored = resume_and_compare(lambda: DER(10, beta=beta), head)
    one, other = strategy.memory.all(), restored.memory.all()
    assert len(one) == 4
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_mixed_precision_trains_nearly_as_full_precision(clusters, mlp, assert_near_in_half):
    stream = clusters().train_stream
    der = assert_near_in_half(lambda: mlp("growing"), lambda: DER(10), stream)
    assert der.memory.columns[3].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch_size": 0}, "strategy.batch_size=0: expected at least 1; raise it"),
        ({"batch_size": 2.5}, "strategy.batch_size=2.5: expected a whole number, 1 or more"),
        ({"alpha": -1.0}, "strategy.alpha=-1.0: expected 0 or more; raise it"),
        ({"beta": float("nan")}, "strategy.beta=nan: expected 0 or more; raise it"),
    ],
)
def test_settings_out_of_range_are_refused(settings, text):
    with pytest.raises(InputError) as error:
        DER(10, **settings)
    assert str(error.value) == text
