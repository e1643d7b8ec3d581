"""Cumulative training against a bare loop over growing unions."""

import torch
from avalanche.core import SupervisedPlugin

from strategies.cumulative import Cumulative


def test_each_experience_trains_on_all_data_so_far(clusters, mlp, make_learner, bare_loop, weights):
    stream = list(clusters().train_stream)
    learner = make_learner(mlp(), Cumulative())
    for experience in stream:
        learner.train(experience)
    bare = weights(bare_loop(mlp(), [stream[:1], stream[:2], stream[:3]]))
    for name, value in weights(learner.model).items():
        assert torch.equal(value, bare[name])


def test_experiences_taken_out_of_order_are_joined_as_they_came(clusters, mlp, make_learner):
    seen = []

    class Labels(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            seen.append(sorted(set(map(int, strategy.adapted_dataset.targets))))

    stream, strategy = clusters().train_stream, Cumulative()
    learner = make_learner(mlp(), strategy, Labels())
    learner.train([stream[2], stream[0]])
    assert seen == [[4, 5], [0, 1, 4, 5]]
    assert strategy.memory_bytes == 48 * (16 + 8)  # uint8 images of 4x4 and labels


def test_a_restored_run_goes_on_with_the_data_seen_before(resume_and_compare):
    strategy, restored = resume_and_compare(Cumulative)
    assert restored.memory_bytes == strategy.memory_bytes == 72 * (16 + 8)
