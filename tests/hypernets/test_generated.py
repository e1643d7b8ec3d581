"""Networks whose weights are generated: tasks, masks, statistics, inference and their state."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from clplat.backbones.classifier import classifier
from clplat.backbones.convnet import ConvNet
from clplat.backbones.heads import MASKED, Cosine
from clplat.backbones.mlp import MLP as Perceptron
from clplat.backbones.sequence import SequenceModel
from clplat.errors import InputError
from clplat.layers.delta import DeltaNet
from clplat.layers.gated import MinGRU
from clplat.layers.recurrent import GRU
from hypernets.chunked import Chunked
from hypernets.generated import Generated
from hypernets.low_rank import low_rank
from hypernets.rnn import RNN
from hypernets.separate import Separate, own_values
from tests.handed_over import through_a_file


def rnn(layout):
    return RNN(layout, 3, 2, 6, 31)


def chunked(layout):
    return Chunked(layout, 5, 4, [8], 64)


class LastOf(nn.Module):
    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 3)

    def forward(self, x):
        return self.out(self.layer(x.flatten(2).mT)[0][:, -1])


class Cell(nn.LSTMCell):
    def forward(self, x):
        return super().forward(x.flatten(1))[0]


def sequence(layer):
    return SequenceModel((1, 4, 4), layer, width=4, depth=1)


def linear_head(encoder, width):
    return classifier(encoder, nn.Linear(width, 3))


TARGETS = {
    "mlp": lambda: linear_head(Perceptron((1, 4, 4), [7]), 7),
    "cosine head": lambda: classifier(Perceptron((1, 4, 4), [7]), Cosine(7, 3)),
    "convnet": lambda: linear_head(ConvNet((1, 4, 4), [3]), 3),
    "norm of the batch alone": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.ReLU()
    ),
    "group norm": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten()),
    "MinGRU": lambda: linear_head(sequence(MinGRU), 4),
    "GRU": lambda: linear_head(sequence(GRU), 4),
    "DeltaNet": lambda: linear_head(sequence(lambda width: DeltaNet(width, 2)), 4),
    "nn.LSTM": lambda: LastOf(nn.LSTM(1, 5, batch_first=True), 5),
    "nn.LSTMCell": lambda: Cell(16, 3),
}


def generated(target="mlp", tasks=(0, 1, 2), generator=rnn, **settings):
    torch.manual_seed(0)
    made = TARGETS[target]() if isinstance(target, str) else target
    model = Generated(made, generator, **settings)
    for task in tasks:
        model.add_task(task)
    with torch.no_grad():  # what a task's own changes scale with
        model.generator.layout.gain.fill_(0.1)
    return model


def plain(target, model, task):
    """The network with a task's weights and statistics, made anew."""
    torch.manual_seed(0)
    network = TARGETS[target]()
    own = {n: v.detach() for n, v in (model.weights(task) | model.statistics(task)).items()}
    network.load_state_dict({**network.state_dict(), **own})
    return network.train(model.training)


def images(count=11, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 4, 4, generator=generator)


TASK = torch.tensor([2, 0, 0, 5, 0, 2, 0, 0, 5, 0, 0])  # uneven; task 1 is known and absent


@pytest.mark.parametrize("name", TARGETS)
def test_a_batch_of_one_task_is_answered_by_the_network_with_its_weights(name):
    model, x = generated(name), images()
    for task in (0, 2):
        expected = plain(name, model, task)(x)
        for given in (task, torch.full((11,), task)):
            torch.testing.assert_close(model(x, given), expected)
    answers = model.eval()(x)
    assert list(answers) == [0, 1, 2]
    for task, answer in answers.items():
        torch.testing.assert_close(answer, plain(name, model, task)(x))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", TARGETS)
def test_several_tasks_in_a_batch_are_answered_as_each_by_itself(name, training, grad):
    model, x = generated(name, (5, 0, 1, 2)).train(training), images().requires_grad_(grad)
    if training and name == "convnet":
        with pytest.raises(InputError) as caught:
            model(x, TASK)
        assert str(caught.value) == (
            "a batch of the tasks [0, 2, 5] on a target with running batch statistics: they are of "
            "one task each; take batches of one task, or a backbone without batch norm"
        )
        return
    with torch.set_grad_enabled(grad):
        mixed = model(x, TASK)
        alone = torch.empty_like(mixed)
        for task in (0, 2, 5):
            alone[task == TASK] = model(x[task == TASK], task)
    torch.testing.assert_close(mixed, alone)
    if not grad:
        return
    free = [x, *model.generator.parameters()]
    gradients = (
        torch.autograd.grad(answer.sin().sum(), free, materialize_grads=True)
        for answer in (mixed, alone)
    )
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_dropout_draws_for_each_sample_of_a_mixed_batch():
    model = generated(linear_head(Perceptron((1, 4, 4), [40], dropout=0.5), 40))
    model.embeddings["1"] = model.embeddings["0"]  # the same weights
    x, tasks = images(1).expand(8, -1, -1, -1), torch.tensor([0, 1] * 4)
    assert len(model(x, tasks).unique(dim=0)) == 8
    assert len(model.eval()(x, tasks).round(decimals=5).unique(dim=0)) == 1


@pytest.mark.parametrize("labelled", [True, False])
def test_an_unknown_task_is_refused(labelled):
    model = generated()
    with pytest.raises(InputError) as caught:
        model(images(), torch.tensor([0] * 10 + [7]) if labelled else 7)
    assert str(caught.value) == "task 7: the hypernetwork knows the tasks [0, 1, 2]"


def test_weights_take_any_whole_number_and_at_least_one_task():
    model = generated()
    one, other = model.weights(np.int64(1)), model.weights(1)
    assert all(torch.equal(one[name], value) for name, value in other.items())
    with pytest.raises(InputError) as caught:
        model.weights([])
    assert str(caught.value) == "no task given: the hypernetwork knows the tasks [0, 1, 2]"


def test_norm_of_the_batch_is_of_a_tasks_samples_and_statistics_are_its_own():
    model = generated("convnet", (0, 1))
    networks = [plain("convnet", model, task) for task in (0, 1)]
    for seed, task in enumerate((0, 0, 1, 0, 1)):
        before = {n: v.clone() for n, v in model.statistics(1 - task).items()}
        torch.testing.assert_close(model(images(5, seed), task), networks[task](images(5, seed)))
        assert all(torch.equal(v, before[n]) for n, v in model.statistics(1 - task).items())
    for task, count in ((0, 3), (1, 2)):
        found = model.statistics(task)
        assert len(found) == 3
        for name, value in found.items():
            torch.testing.assert_close(value, networks[task].get_buffer(name))
        assert found["encoder.stages.0.1.num_batches_tracked"] == count


# --- tasks and classes, met in experiences -------------------------------------------------------


def six(labels=True, **settings):
    """For the clusters: 6 classes, nothing met yet."""
    torch.manual_seed(0)
    target = classifier(Perceptron((1, 4, 4), [7]), nn.Linear(7, 6))
    settings = {"task_labels": labels, "classes": 6, **settings}
    return Generated(target, settings.pop("generator", rnn), **settings)


@pytest.mark.parametrize("labels", [True, False])
def test_a_task_predicts_its_own_classes_and_numbers_serve_them(clusters, labels):
    model = six(labels)
    for k, experience in enumerate(clusters(task_labels=labels).train_stream):
        model.adaptation(experience)
        own = torch.tensor([c in (2 * k, 2 * k + 1) for c in range(6)])
        assert torch.equal(model.own_classes(k), own)
        logits = model(images(), k)
        assert (logits[:, ~own] == MASKED).all()
        assert (logits[:, own] > MASKED / 10).all()
        assert model.current == [k]
        assert model.trained == model.tasks == list(range(k + 1))
        assert [p.requires_grad for p in model.embeddings.values()] == [False] * k + [True]
    serves = model.serves([2, 0])
    label = model.generator.layout.label.tolist()
    expected = [[c == -1 or c in own for c in label] for own in ((4, 5), (0, 1))]
    assert serves.tolist() == expected
    assert sorted(set(label)) == [-1, 0, 1, 2, 3, 4, 5]
    assert six(classes=None).serves([]) is None


def test_an_experience_of_several_tasks_and_a_task_of_several_experiences(avalanche_clusters):
    stream = avalanche_clusters(task_labels=True).train_stream
    model = six()

    class Both:
        dataset = stream[0].dataset.concat(stream[1].dataset)
        task_labels, current_experience = [0, 1], 0
        classes_in_this_experience = [0, 1, 2, 3]  # noqa: RUF012

    model.adaptation(Both())
    assert model.own_classes(0).tolist() == [True, True, False, False, False, False]
    assert model.own_classes(1).tolist() == [False, False, True, True, False, False]
    assert model.current == [0, 1]
    mixed = model(images(4), torch.tensor([0, 1, 1, 0]))
    alone = torch.cat([model(images(4)[k : k + 1], t) for k, t in enumerate((0, 1, 1, 0))])
    torch.testing.assert_close(mixed, alone)

    class Again(Both):
        dataset, task_labels, classes_in_this_experience = stream[2].dataset, [0], [4, 5]

    model.adaptation(Again())
    assert model.own_classes(0).tolist() == [True, True, False, False, True, True]
    assert model.trained == [0, 1]
    assert [p.requires_grad for p in model.embeddings.values()] == [True, False]


@pytest.mark.parametrize("labels", [True, False])
def test_embeddings_of_other_tasks_are_frozen_and_not_in_the_optimizer(
    clusters, make_learner, labels
):
    scenario = clusters(task_labels=labels)
    learner = make_learner(six(labels), lr=0.05)
    learner.eval(scenario.test_stream)
    for k, experience in enumerate(scenario.train_stream):
        before = {n: p.detach().clone() for n, p in learner.model.embeddings.items()}
        learner.train(experience)
        held = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
        for name, p in learner.model.embeddings.items():
            assert (id(p) in held) == (name == str(k))
            if name in before:
                assert torch.equal(p, before[name]) == (name != str(k))


def test_evaluation_alone_trains_no_task(clusters, make_learner):
    model, stream = six(False), clusters().test_stream
    learner = make_learner(model)
    learner.eval(stream)
    assert (model.tasks, model.trained, model.current) == ([0], [], [])
    learner.train(clusters().train_stream[1])
    learner.eval(stream)
    assert (model.tasks, model.trained, model.current) == ([0, 1], [1], [1])


# --- state ---------------------------------------------------------------------------------------


STATEFUL = {
    "mlp": lambda labels: six(labels),
    "convnet": lambda labels: Generated(
        classifier(ConvNet((1, 4, 4), [3]), nn.Linear(3, 6)), chunked, task_labels=labels, classes=6
    ),
    "low rank": lambda labels: six(labels, generator=chunked, layout=low_rank),
    "separate": lambda labels: six(labels, generator=Separate, layout=own_values),
}


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_fresh_model_takes_over_the_state(name, labels, clusters, make_learner):
    model = STATEFUL[name](labels)
    stream = clusters(task_labels=labels).train_stream
    learner = make_learner(model, lr=0.05)
    learner.train([stream[0], stream[2]])
    if name == "mlp":
        model.generator.body.grow(9)
    torch.manual_seed(7)
    fresh = STATEFUL[name](labels)
    state = through_a_file(model.state_dict())
    fresh.load_state_dict(state)
    copied = copy.deepcopy(model)
    for other in (fresh, copied):
        assert (other.tasks, other.current, other.trained) == ([0, 2], [2], [0, 2])
        assert [p.requires_grad for p in other.embeddings.values()] == [False, True]
        for training in (True, False):
            pair = [copy.deepcopy(m).train(training) for m in (model, other)]
            assert torch.equal(*(m(images(), 2) for m in pair))
        one, two = (copy.deepcopy(m).eval()(images()) for m in (model, other))
        pairs = [(one[t], two[t]) for t in (0, 2)] if labels else [(one, two)]
        assert all(torch.equal(*pair) for pair in pairs)
    before = {n: v.clone() for n, v in model.named_parameters()}
    make_learner(copied, lr=0.05).train(stream[1])
    assert all(torch.equal(v, before[n]) for n, v in model.named_parameters())


def test_what_is_measured_is_the_targets_size_and_how_much_smaller_the_generator_is():
    model = generated("mlp", (0, 1), chunked)
    size = 16 * 7 + 7 + 7 * 3 + 3
    own = 3 * 4 + (9 * 8 + 8) + (8 * 64 + 64) + 4 + 2 * 5  # chunks, two maps, gains, embeddings
    assert model.measured == {"target_parameters": size, "compression": pytest.approx(size / own)}
    low = Generated(TARGETS["mlp"](), chunked, low_rank)
    assert low.measured["target_parameters"] == size


def test_weights_that_are_frozen_or_detached_give_the_same_answers():
    model = generated("mlp").eval()
    expected = model(images(), 1)
    detached = {n: p.detach() for n, p in model.named_parameters()}
    torch.testing.assert_close(functional_call(model, detached, (images(), 1)), expected)
    frozen = copy.deepcopy(model).requires_grad_(False)
    torch.testing.assert_close(frozen(images(), 1), expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_trains_in_mixed_precision(clusters, make_learner, precision):
    states = []
    for chosen in ("fp32", precision):
        model = six(generator=chunked)
        learner = make_learner(model, precision=chosen, lr=0.05)
        learner.train(clusters(task_labels=True).train_stream)
        states.append(learner.model.state_dict())
    for name, value in states[0].items():
        if "extra" not in name:
            torch.testing.assert_close(states[1][name], value, rtol=0.05, atol=0.05)


def test_a_tasks_network_of_numbers_and_its_features():
    model = generated("mlp").eval()
    network = model.of_numbers(1)
    assert [n for n, _ in network.named_parameters()] == ["numbers"]
    torch.testing.assert_close(network(images()), model(images(), 1))
    model.current = [1]
    torch.testing.assert_close(model.features(images()), plain("mlp", model, 1).encoder(images()))
    (gradient,) = torch.autograd.grad(network(images()).sum(), network.numbers)
    assert gradient.shape == (model.generator.layout.size,)
    nothing = torch.zeros_like(network.numbers)
    other = functional_call(network, {"numbers": nothing}, (images(),))
    bias = model.generator.layout.weights(nothing)["head.bias"]  # its own value; weights are 0
    assert torch.equal(other, bias.expand(11, 3))
