"""ER-ACE against softmaxes written out sample by sample in float64, and Avalanche's criterion."""

from collections import Counter

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.regularization import ACECriterion
from torch.nn.functional import cross_entropy

from clplat.backbones.heads import MASKED
from clplat.errors import InputError
from clplat.evaluation import Evaluator, TrainingScore
from strategies.er_ace import ERACE, among, asymmetric
from strategies.replay import Replay, WithMemory
from tests.strategies.test_mas import train_in_float64
from tests.strategies.test_mir import as_stream, hand_over_and_compare
from tests.strategies.test_replay import rows, samples


def naive_loss(output, target, fresh, seen):
    """The mean over samples of -log softmax, over the classes that the sample's part allows."""
    own = sorted(set(target[:fresh].tolist()))
    total = 0.0
    for i, label in enumerate(target.tolist()):
        among_these = own if i < fresh else sorted(seen)
        total = total + sum(output[i, c].exp() for c in among_these).log() - output[i, label]
    return total / len(target)


def test_the_loss_of_masked_logits_is_that_of_softmaxes_over_the_classes_allowed():
    torch.manual_seed(0)
    output = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    target, seen = torch.tensor([3, 5, 3, 0, 3, 5, 8]), {0, 3, 5, 8}
    mask = among(torch.tensor(sorted(seen)), 9)
    loss = cross_entropy(asymmetric(output, target, 3, mask), target)
    expected = naive_loss(output, target, 3, seen)
    torch.testing.assert_close(loss, expected)
    found, naive = (torch.autograd.grad(value, output)[0] for value in (loss, expected))
    torch.testing.assert_close(found, naive)
    assert not found[:3, [0, 8]].any()  # old classes are not pushed by new samples
    assert (found[3:, 5] != 0).all()
    assert not found[:, [1, 2, 4, 6, 7]].any()  # nor are those of which nothing is known


def test_where_every_class_is_in_the_batch_nothing_is_masked():
    output, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 1])
    masked = asymmetric(output, target, 3, torch.ones(3, dtype=torch.bool))
    assert torch.equal(masked, output)


def test_of_as_many_samples_of_both_it_is_avalanches_criterion():
    torch.manual_seed(0)
    output, target = torch.randn(10, 4, dtype=torch.float64), torch.tensor([2, 3, 3, 2, 2] * 2)
    target[5:8] = torch.tensor([0, 1, 1])
    loss = cross_entropy(asymmetric(output, target, 5, torch.ones(4, dtype=torch.bool)), target)
    theirs = ACECriterion()(output[:5], target[:5], output[5:], target[5:])
    torch.testing.assert_close(loss, theirs.to(loss.dtype))


class Naive(SupervisedPlugin):
    """The naive loss in place of the loop's; the memory as in the docstring."""

    def __init__(self, capacity, policy, batch_size):
        super().__init__()
        self.memory, self.size = Replay(capacity, policy).memory, batch_size
        self.seen, self.epoch = set(), 0

    def before_training_exp(self, strategy, **kwargs):
        strategy.dataloader = WithMemory(strategy.dataloader, self.memory, self.size)
        self.epoch = 0

    def before_backward(self, strategy, **kwargs):
        fresh, target = strategy.dataloader.fresh, strategy.mb_y
        self.seen |= set(target[:fresh].tolist())
        if len(target) > fresh:
            strategy.loss = naive_loss(strategy.mb_output, target, fresh, self.seen)

    def after_training_iteration(self, strategy, **kwargs):
        if self.epoch == 0:
            columns = (strategy.stored_x, strategy.mb_y, strategy.mb_task_id)
            self.memory.add(*(c[: strategy.dataloader.fresh] for c in columns))

    def after_training_epoch(self, strategy, **kwargs):
        self.epoch += 1


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_by_the_naive_loss(clusters, mlp, make_learner, head, accumulate):
    stream = clusters(task_labels=head == "multi").train_stream
    learners = [
        train_in_float64(make_learner(mlp(head), plugin, accumulate=accumulate), stream)
        for plugin in (ERACE(20, "class_balanced", 5), Naive(20, "class_balanced", 5))
    ]
    for one, other in zip(*(item.model.parameters() for item in learners), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(*(torch.stack(item.losses) for item in learners))


def test_a_stream_without_boundaries_trains_as_by_the_naive_loss(clusters, mlp, make_learner):
    models = []
    for plugin in (ERACE(20, batch_size=5), Naive(20, "reservoir", 5)):
        experience = as_stream(clusters(experiences=1, classes=6, samples=15))
        learner = make_learner(mlp(), plugin, epochs=1)
        models.append(train_in_float64(learner, [experience]).model)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_with_nothing_to_replay_has_the_plain_loss(clusters, mlp, make_learner, bare_loop):
    stream = clusters(experiences=1, samples=4).train_stream  # one batch an epoch
    learner = make_learner(mlp(), ERACE(20), epochs=1)
    learner.train(stream)
    bare = bare_loop(mlp(), stream, epochs=1)
    for one, other in zip(learner.model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced", "ring"])
def test_the_memory_takes_in_each_sample_once_and_at_once(clusters, mlp, make_learner, policy):
    scenario, ace, held = clusters(), ERACE(100, policy), []

    class Look(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            held.append(len(ace.memory))

    learner = make_learner(mlp(), Look(), ace)
    learner.train(scenario.train_stream)
    assert held == [0, 8, 16, 24, 24, 24, 24, 32, 40, 48, 48, 48, 48, 56, 64, 72, 72, 72]
    expected = sum((Counter(samples(e)) for e in scenario.train_stream), Counter())
    assert Counter(rows(ace.memory.all())) == expected
    assert ace.memory.columns[0].dtype == torch.uint8


def test_what_others_read_of_the_output_is_not_masked(clusters, mlp, make_learner):
    outputs, training = [], TrainingScore()

    class Look(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            outputs.append(strategy.mb_output.detach())

    ace = ERACE(20)
    make_learner(mlp(), ace, training, Look()).train(clusters().train_stream)
    assert torch.cat(outputs).min() > MASKED / 2
    assert ace.seen.tolist() == [True] * 6


def test_it_remembers(clusters, mlp, make_learner):
    scenario = clusters(samples=30)
    learner = make_learner(mlp(), ERACE(30), evaluator=Evaluator(), epochs=10)
    torch.manual_seed(0)
    learner.train(scenario.train_stream)
    assert min(learner.eval(scenario.test_stream)) > 0.5  # fine-tuning ends at 0 on the first two


def test_outputs_that_an_avalanche_head_gains_are_not_seen_yet():
    ace, seen = ERACE(10), []

    class Strategy:
        dataloader = WithMemory([], ace.memory, 3)

    strategy = Strategy()
    strategy.dataloader.fresh = 1
    for outputs, target in ((2, [1, 1]), (4, [3, 1])):
        strategy.mb_output, strategy.mb_y = torch.zeros(2, outputs), torch.tensor(target)
        ace.after_forward(strategy)
        seen.append(ace.seen.tolist())
    assert seen == [[False, True], [False, True, False, True]]


def test_mixed_precision_trains_nearly_as_full_precision(clusters, mlp, assert_near_in_half):
    stream = clusters().train_stream
    assert_near_in_half(lambda: mlp("growing"), lambda: ERACE(20, batch_size=5), stream)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, restored = resume_and_compare(lambda: ERACE(10), head)
    assert len(strategy.memory) == 10
    assert torch.equal(strategy.seen, restored.seen)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_strategy_restored_in_mid_experience_goes_on_to_the_same_bit(
    clusters, mlp, make_learner, ordered
):
    assert hand_over_and_compare(clusters, mlp, make_learner, lambda: ERACE(10), ordered)


def test_bad_input_is_refused(clusters):
    with pytest.raises(InputError) as caught:
        ERACE(10, "herding")
    assert str(caught.value) == (
        "strategy.memory=herding: the memory takes in batch after batch, and herding needs the "
        "whole experience; choose reservoir, class_balanced or ring"
    )
    with pytest.raises(InputError, match=r"^strategy.batch_size=0: expected a whole number of"):
        ERACE(10, batch_size=0)
    with pytest.raises(InputError, match=r"^strategy.capacity=5: .*set strategy.capacity=6"):
        ERACE(5, "ring").check(clusters())
