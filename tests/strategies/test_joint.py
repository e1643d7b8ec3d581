"""Joint training against a bare loop over the union of all experiences."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from strategies.joint import Joint


class Labels(SupervisedPlugin):
    """The labels of every epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append([])

    def before_forward(self, strategy, **kwargs):
        self.epochs[-1] += strategy.mb_y.tolist()


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_it_sees_every_sample_of_all_experiences_once_an_epoch_and_then_nothing(
    clusters, mlp, make_learner, head
):
    labels = Labels()
    learner = make_learner(mlp(head), labels, Joint(), epochs=3)
    learner.train(clusters(samples=5, task_labels=head == "multi").train_stream)
    union = [label for label in range(6) for _ in range(5)]
    assert [sorted(epoch) for epoch in labels.epochs] == [union] * 3 + [[], []]


def test_it_ends_at_the_weights_of_a_bare_loop_over_the_union(
    clusters, mlp, make_learner, bare_loop, weights
):
    stream = clusters().train_stream
    learner = make_learner(mlp(), Joint())
    learner.train(stream[0])
    after_first = weights(learner.model)
    learner.train(stream[1])
    learner.train(stream[2])
    bare = weights(bare_loop(mlp(), [list(stream)]))
    for name, value in weights(learner.model).items():
        assert torch.equal(value, after_first[name])
        assert torch.equal(value, bare[name])


def test_each_tasks_head_is_trained_on_its_own_samples(clusters, mlp, make_learner, weights):
    stream, at_start = clusters(experiences=2, task_labels=True).train_stream, {}

    class Keep(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            at_start.update(at_start or weights(strategy.model))

    learner = make_learner(mlp("multi"), Joint(), Keep(), batch_size=48, epochs=1)
    learner.train(stream)

    # One step of gradient descent on the union, head by head.
    reference = mlp("multi")
    for experience in stream:
        reference.head.adaptation(experience)
    reference.load_state_dict(at_start)
    loss = 0.0
    for task, experience in enumerate(stream):
        for x, y, _ in experience.dataset:
            logits = reference.head.linears[str(task)](reference.encoder(x[None]))
            target = reference.head._columns(task).tolist().index(int(y))
            loss = loss + nn.functional.cross_entropy(logits, torch.tensor([target]))
    (loss / 48).backward()
    for name, parameter in reference.named_parameters():
        expected = parameter - 0.1 * parameter.grad
        torch.testing.assert_close(learner.model.get_parameter(name), expected)
