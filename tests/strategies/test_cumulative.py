"""Cumulative training against a bare loop over growing unions."""

import io

import torch
from avalanche.core import SupervisedPlugin

from strategies.cumulative import Cumulative


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_each_experience_trains_on_all_data_so_far(
    clusters, mlp, make_learner, bare_loop, weights
):
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

    stream = clusters().train_stream
    learner = make_learner(mlp(), Cumulative(), Labels())
    learner.train([stream[2], stream[0]])
    assert seen == [[4, 5], [0, 1, 4, 5]]
    assert learner.plugins[0].memory_bytes == 48 * 16  # uint8 images of 4x4


def test_a_restored_run_goes_on_with_the_data_seen_before(
    clusters, mlp, make_learner, weights
):
    stream = clusters().train_stream
    strategy = Cumulative()
    learner = make_learner(mlp(), strategy)
    learner.train([stream[0], stream[1]])

    restored = Cumulative()
    restored.load_state_dict(through_a_file(strategy.state_dict()))
    resumed = make_learner(mlp(), restored)
    resumed.model.load_state_dict(learner.model.state_dict())
    resumed.order.set_state(learner.order.get_state())

    learner.train(stream[2])
    resumed.train(stream[2])
    assert len(resumed.adapted_dataset) == 72
    one, other = weights(learner.model), weights(resumed.model)
    assert all(torch.equal(one[name], other[name]) for name in one)
