"""iCaRL: its loss by hand, the set it trains on, and Avalanche's own on the same batches."""

import copy
import math
from collections import Counter

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.losses import ICaRLLossPlugin
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import MASKED, NearestMean, NearestMeanFit
from clplat.backbones.mlp import MLP
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.prepare import Prepare
from clplat.several import Several
from strategies.der import DER
from strategies.icarl import ICaRL, outputs_loss, wanted_outputs
from strategies.replay import Replay
from tests.handed_over import HandedOver
from tests.strategies.test_replay import rows, samples


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def naive_loss(logits, labels, old_logits, old, new):
    """The paper's sums in plain Python, over classes `old` and `new`; mean over samples."""
    total = 0.0
    for row, label, old_row in zip(logits, labels, old_logits, strict=True):
        for c in (*old, *new):
            q = sigmoid(old_row[c]) if c in old else float(c == label)
            total -= q * math.log(sigmoid(row[c])) + (1 - q) * math.log(1 - sigmoid(row[c]))
    return total / len(logits)


def test_the_loss_has_the_value_and_gradient_of_the_papers():
    torch.manual_seed(0)
    logits = (2 * torch.randn(5, 7, dtype=torch.float64)).requires_grad_()
    old_logits, labels = 2 * torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 4, 6, 4, 2])
    new = torch.tensor([False, False, False, False, True, False, True])
    seen = torch.tensor([True, False, True, False, True, False, True])
    wanted = wanted_outputs(labels, old_logits.sigmoid(), new)
    loss = outputs_loss(logits, wanted, seen)
    expected = naive_loss(logits.tolist(), labels.tolist(), old_logits.tolist(), (0, 2), (4, 6))
    assert loss.item() == pytest.approx(expected, rel=1e-12)

    (gradient,) = torch.autograd.grad(loss, logits)
    for i in range(5):
        for c in range(7):
            q = float(c == labels[i]) if c in (4, 6) else old_logits[i, c].sigmoid().item()
            slope = (logits[i, c].sigmoid().item() - q) / 5 if c in (0, 2, 4, 6) else 0.0
            assert gradient[i, c].item() == pytest.approx(slope, rel=1e-10, abs=1e-15)


def test_outputs_that_a_head_masks_cost_nothing():
    logits = torch.tensor([[0.5, MASKED], [0.5, MASKED]], requires_grad=True)
    old = torch.tensor([[0.3, MASKED], [0.2, MASKED]]).sigmoid()
    new = torch.tensor([True, False])
    wanted = wanted_outputs(torch.tensor([0, 0]), old, new)
    loss = outputs_loss(logits, wanted, torch.tensor([True, True]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[:, 1].tolist() == [0.0, 0.0]


class Watch(SupervisedPlugin):
    """Each batch with its loss, beside the paper's loss of the old model and the present one."""

    def __init__(self, head):
        super().__init__()
        self.multi, self.old, self.seen, self.batches = head == "multi", None, [], []
        self.losses, self.expected = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.new = sorted(strategy.experience.classes_in_this_experience)
        self.old = copy.deepcopy(strategy.model)
        for model in self.old.modules():
            model.train(isinstance(model, NearestMean))
        self.batches.append([])

    def before_backward(self, strategy, **kwargs):
        inputs = (strategy.mb_x, strategy.mb_task_id) if self.multi else (strategy.mb_x,)
        with torch.no_grad():
            logits = strategy.mb_output.double().tolist()
            old = self.old(*inputs).double().clamp(-30, 30).tolist()
        if self.multi:  # outputs of other tasks are masked in both
            logits = [[max(z, -30) for z in row] for row in logits]
        labels = strategy.mb_y.tolist()
        self.losses.append(strategy.loss.item())
        self.expected.append(naive_loss(logits, labels, old, self.seen, self.new))
        self.batches[-1].append([strategy.stored_x, strategy.mb_y, strategy.mb_task_id])

    def after_training_exp(self, strategy, **kwargs):
        self.seen = self.seen + self.new


def nearest_mean(dropout=0.0):
    torch.manual_seed(0)
    return classifier(MLP((1, 4, 4), [12], dropout), NearestMean(12, 6))


@pytest.mark.parametrize("head", ["single", "growing", "multi", "nearest_mean"])
def test_each_batchs_loss_is_the_papers_of_data_and_exemplars_as_one_set(
    clusters, mlp, make_learner, head
):
    stream, watch = clusters(task_labels=head == "multi").train_stream, Watch(head)
    model, icarl = nearest_mean() if head == "nearest_mean" else mlp(head), ICaRL(10)
    plugins = [NearestMeanFit(icarl.memory)] if head == "nearest_mean" else []
    learner, exemplars = make_learner(model, icarl, watch, *plugins), Counter()
    for k, experience in enumerate(stream):
        learner.train(experience)
        expected = Counter(samples(experience)) + exemplars
        size = -(-expected.total() // 8)
        assert len(watch.batches[k]) == 2 * size
        for epoch in (watch.batches[k][:size], watch.batches[k][size:]):
            assert Counter(r for batch in epoch for r in rows(batch)) == expected
            assert all(len(batch[1]) == 8 for batch in epoch[:-1])
        exemplars = Counter(rows(icarl.memory.all()))
        assert exemplars.total() == 10
    assert watch.losses == pytest.approx(watch.expected, rel=1e-5)


def test_the_first_experience_is_a_bare_loop_of_binary_cross_entropy(
    clusters, mlp, make_learner, bare_loop, weights
):
    stream, model = clusters().train_stream, mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def update(x, y):
        optimizer.zero_grad()
        wanted = nn.functional.one_hot(y, 6)[:, :2].float()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x)[:, :2], wanted)
        (2 * loss).backward()
        optimizer.step()

    bare = weights(bare_loop(model, [stream[0]], update=update))
    learner = make_learner(mlp(), ICaRL(10))
    learner.train(stream[0])
    for name, value in weights(learner.model).items():
        torch.testing.assert_close(value, bare[name])


class Joined(SupervisedPlugin):
    """For Avalanche's loss: the batches that ours has, without a column that it does not know."""

    def __init__(self):
        super().__init__()
        self.icarl = ICaRL(100)

    def before_training_exp(self, strategy, **kwargs):
        criterion = strategy._criterion
        self.icarl.before_training_exp(strategy)
        strategy._criterion = criterion
        del strategy.dataloader.columns[2]

    def after_training_exp(self, strategy, **kwargs):
        self.icarl.after_training_exp(strategy)


class Known(nn.Module):
    """Masks outputs of classes to come; Avalanche's loss cannot copy a head that grows."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.features = inner, inner.features
        self.register_buffer("count", torch.tensor(2))

    def forward(self, x):
        return torch.where(torch.arange(6) < self.count, self.inner(x), MASKED)


def test_it_trains_as_by_avalanches_loss_with_outputs_of_known_classes_alone(
    clusters, mlp, make_learner, weights
):
    """Theirs is a mean over the 6 outputs, ours a sum; masked ones cost nothing in either."""
    stream, models = clusters().train_stream, []
    for theirs in (False, True):
        loss = ICaRLLossPlugin()
        plugins, options = ([Joined(), loss], {"criterion": loss}) if theirs else ([ICaRL(100)], {})
        learner = make_learner(Known(mlp()), *plugins, lr=0.6 if theirs else 0.1, **options)
        for k, experience in enumerate(stream):
            learner.model.count.fill_(2 * (k + 1))
            learner.train(experience)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-5)


def test_a_class_that_comes_again_is_trained_on_its_labels(clusters, mlp, make_learner):
    stream, icarl = clusters(samples=20).train_stream, ICaRL(12)
    learner = make_learner(mlp(), icarl)
    learner.train([stream[0], stream[1]])

    class Look(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            labels = nn.functional.one_hot(strategy.mb_y, 6)
            assert torch.equal(strategy.mbatch[2][:, :2], labels[:, :2].float())
            assert ((strategy.mbatch[2][:, 2:4] > 0) & (strategy.mbatch[2][:, 2:4] < 1)).all()

    make_learner(learner.model, icarl, Look()).train(stream[0])
    assert icarl.memory.classes == [0, 1, 2, 3]


def test_old_outputs_are_of_plain_samples_without_dropout(clusters, make_learner):
    stream, icarl, wanted = clusters().train_stream, ICaRL(10), []
    model = nearest_mean(dropout=0.5)

    class Look(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            x, _, outputs, _ = strategy.dataloader.columns
            old = copy.deepcopy(strategy.model)
            features = old.eval().features(x.float() / 255)
            wanted.append((outputs[:, :2], old.head.linear(features).sigmoid()[:, :2]))
            assert all(m.training for m in strategy.model.modules())

    plugins = [icarl, Look(), NearestMeanFit(icarl.memory)]
    learner = make_learner(model, *plugins, prepare=Prepare(flip=True, crop=1))
    learner.train([stream[0], stream[1]])
    torch.testing.assert_close(*wanted[1])


def test_it_can_be_evaluated_in_the_midst_of_training(clusters, mlp, make_learner, weights):
    scenario, models = clusters(), []

    class Look(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            strategy.eval(scenario.test_stream)
            assert strategy.loss.isfinite()

    for plugins in ([], [Look()]):
        learner = make_learner(mlp(), ICaRL(10), *plugins, evaluator=Evaluator())
        learner.train(scenario.train_stream)
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_it_forgets_less_than_fine_tuning(clusters, make_learner):
    scenario, icarl = clusters(samples=30), ICaRL(30)
    plugins = [icarl, NearestMeanFit(icarl.memory)]
    learner = make_learner(nearest_mean(), *plugins, evaluator=Evaluator(), epochs=10)
    learner.train(scenario.train_stream)
    scores = learner.eval(scenario.test_stream)
    assert min(scores) > 0.6  # fine-tuning ends at 0 on the first two


def test_it_trains_in_mixed_precision_and_by_several_batches(clusters, mlp, assert_near_in_half):
    stream = clusters().train_stream
    assert_near_in_half(lambda: mlp("growing"), lambda: ICaRL(20), stream, accumulate=2)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, restored = resume_and_compare(lambda: ICaRL(10), head)
    assert strategy.memory_bytes == restored.memory_bytes == 10 * (16 + 8 + 8)
    one, other = strategy.memory.all(), restored.memory.all()
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert strategy.wanted is restored.wanted is None


def begins_again(old, new, loop):
    """As in a run that is taken up again."""
    loader = loop.dataloader
    new.before_training_exp(loop)
    ours, theirs = loop.dataloader.columns, loader.columns
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    loop.dataloader = loader


def test_it_goes_on_from_its_state_in_mid_experience(clusters, mlp, make_learner, weights):
    models = []
    for plugin in (ICaRL(10), HandedOver(lambda: ICaRL(10), 9, begins_again)):
        learner = make_learner(mlp("growing"), plugin)
        learner.train(clusters().train_stream)
        models.append(weights(learner.model))
    assert plugin.seen == 6 + 10 + 10
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_memory_too_small_for_each_class_is_refused(clusters):
    ICaRL(6).check(clusters())
    with pytest.raises(InputError) as caught:
        ICaRL(5).check(clusters())
    assert str(caught.value) == (
        "strategy.capacity=5: iCaRL keeps at least one exemplar of each of the scenario's 6 "
        "classes; set strategy.capacity=6 or more"
    )


@pytest.mark.parametrize("other", [Replay(10), DER(10)])
def test_strategies_that_change_its_batches_do_not_go_with_it(other):
    with pytest.raises(InputError, match=r"both icarl and other decide on the (batches|forward)"):
        Several(icarl=ICaRL(10), other=other)
