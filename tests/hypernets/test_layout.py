"""Layouts of every kind of target: names, shapes, gradients and the scale that they begin at."""

import copy
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.func import functional_call

import clplat.conf
from clplat.backbones.classifier import classifier
from clplat.backbones.convnet import ConvNet
from clplat.backbones.heads import Cosine
from clplat.backbones.mlp import MLP as Perceptron
from clplat.backbones.resnet import ResNet
from clplat.backbones.sequence import SequenceModel
from clplat.errors import InputError
from clplat.layers.recurrent import GRU, LSTM
from hypernets.chunked import Chunked
from hypernets.generated import Generator
from hypernets.kernels import Kernels, kernels_alone
from hypernets.layout import NO_CLASS, Layout
from hypernets.low_rank import low_rank
from hypernets.mlp import MLP
from hypernets.rnn import RNN
from hypernets.separate import Separate, own_values
from hypernets.structured import Structured

FOLDER = Path(clplat.conf.__file__).parent / "backbone"
IMAGES = {"mlp", "convnet", "resnet18", "resnet32", "causal_lm"}
SEQUENCES = sorted({path.stem for path in FOLDER.glob("*.yaml")} - IMAGES)


class Tied(nn.Module):
    """A language model whose output map is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.mix(self.embed(x)).tanh()).mean(1)


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).tanh())


class LastOf(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0][:, -1]


class Odd(nn.Module):
    """A frozen layer, and a parameter between layers."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(3, 5).requires_grad_(False)
        self.shift = nn.Parameter(torch.randn(5))
        self.encoder = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7))
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        return self.head(self.encoder(self.frozen(x) + self.shift))


def series(*shape):
    return torch.randn(2, *shape)


TARGETS = {
    "mlp": lambda: (classifier(Perceptron((1, 4, 4), [7]), nn.Linear(7, 3)), series(1, 4, 4)),
    "convnet": lambda: (classifier(ConvNet((3, 8, 8), [5, 7]), nn.Linear(7, 3)), series(3, 8, 8)),
    "resnet": lambda: (ResNet((3, 8, 8), [3, 6], 2), series(3, 8, 8)),
    "nn.LSTM": lambda: (LastOf(nn.LSTM(3, 5, 2, batch_first=True)), series(4, 3)),
    "nn.GRU": lambda: (LastOf(nn.GRU(3, 5, bidirectional=True, batch_first=True)), series(4, 3)),
    "attention": lambda: (nn.TransformerEncoderLayer(6, 2, 7, 0.0, batch_first=True), series(4, 6)),
    "tied": lambda: (Tied(), torch.tensor([[0, 1, 4], [2, 2, 3]])),
    "one layer twice": lambda: (Twice(), series(3)),
    "odd": lambda: (Odd(), series(3)),
    "no axes": lambda: (classifier(Perceptron((1, 4, 4), [7]), Cosine(7, 3)), series(1, 4, 4)),
}


def backbone(name):
    with initialize_config_module("clplat.conf", version_base="1.3"):
        node = compose("config", overrides=[f"backbone={name}"])
    settings = OmegaConf.to_container(node.backbone, resolve=True)
    settings["width"] = 8
    return instantiate(settings, input_shape=(6, 3), _convert_="all"), series(6, 3)


def changed(layout, value=0.3):
    """Numbers near those that the network has, each changed by itself."""
    with torch.no_grad():
        layout.gain.fill_(0.05)
        return layout(value * torch.randn(layout.size)).requires_grad_()


def check_against_a_copy(target, x):
    plain = copy.deepcopy(target)
    wanted = {
        name: value.shape
        for name, value in plain.named_parameters(remove_duplicate=False)
        if value.requires_grad
    }
    layout = Layout(target)
    assert not any(p.requires_grad for p in target.parameters())
    numbers = changed(layout)
    weights = layout.weights(numbers)
    assert {name: value.shape for name, value in weights.items()} == wanted

    plain.load_state_dict({**plain.state_dict(), **weights})
    free = [p for p in plain.parameters() if p.requires_grad]
    assert layout.size == sum(p.numel() for p in free)
    ours, theirs = functional_call(target, weights, (x,)), plain(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours.sin().sum(), numbers)
    expected = torch.autograd.grad(theirs.sin().sum(), free, materialize_grads=True)
    expected = torch.cat([g.flatten() for g in expected])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", TARGETS)
def test_a_target_with_generated_weights_is_the_network_with_them_loaded(name, training):
    torch.manual_seed(0)
    target, x = TARGETS[name]()
    check_against_a_copy(target.train(training), x)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_model_with_generated_weights_is_the_one_with_them_loaded(name):
    torch.manual_seed(0)
    check_against_a_copy(*backbone(name))


def test_what_is_frozen_stays_in_the_target_with_its_values():
    target = Odd()
    before = copy.deepcopy(target.frozen.state_dict())
    Layout(target)
    assert {name for name, _ in target.named_parameters()} == {"frozen.weight", "frozen.bias"}
    assert all(torch.equal(v, before[n]) for n, v in target.frozen.state_dict().items())


# --- the beginning -------------------------------------------------------------------------------


def sequence(layer):
    return classifier(SequenceModel((6, 3), layer, width=12, depth=2), nn.Linear(12, 5))


SCALED = {
    "mlp": lambda: classifier(Perceptron((1, 8, 8), [23, 17]), nn.Linear(17, 13)),
    "resnet": lambda: classifier(ResNet((3, 8, 8), [5, 9], 1), nn.Linear(9, 3)),
    "lstm": lambda: sequence(LSTM),
    "gru": lambda: sequence(GRU),
}
GENERATORS = {
    "mlp": MLP,
    "chunked": lambda layout: Chunked(layout, chunk=101),
    "structured": Structured,
    "rnn": lambda layout: RNN(layout, chunk=101),
    "rnn of GRU": lambda layout: RNN(layout, chunk=101, layer=GRU),
    "kernels": lambda layout: Kernels(layout, 16, 4),
}


@pytest.mark.parametrize("target", SCALED)
@pytest.mark.parametrize("generator", GENERATORS)
def test_drawn_weights_begin_at_their_own_scale_and_all_others_at_their_values(generator, target):
    if generator == "kernels" and target != "resnet":
        pytest.skip("kernels are of convolutions")
    squares, runs = {}, 6
    for seed in range(runs):
        torch.manual_seed(seed)
        network = SCALED[target]()
        kinds = (nn.Conv2d,) if generator == "kernels" else (nn.Linear, nn.Conv2d)
        drawn = {f"{n}.weight" for n, m in network.named_modules() if isinstance(m, kinds)}
        own = {name: p.detach().clone() for name, p in network.named_parameters()}
        layout = (kernels_alone if generator == "kernels" else Layout)(network)
        made = Generator(GENERATORS[generator](layout), layout)
        embeddings = torch.stack([made.body.embedding() for _ in range(3)])
        weights = layout.weights(made(embeddings).detach())
        for name, value in own.items():
            if name not in drawn:
                assert torch.equal(weights[name], value.expand_as(weights[name])), name
            elif value.numel() >= 200:
                ratio = weights[name].square().mean() / value.square().mean()
                squares.setdefault(name, []).append(float(ratio))
    assert squares
    for name, ratios in squares.items():
        assert 0.8 < (sum(ratios) / runs) ** 0.5 < 1.2, name


def test_a_network_for_each_task_begins_as_the_one_that_was_drawn():
    torch.manual_seed(0)
    target, _ = TARGETS["odd"]()
    own = {n: p.detach().clone() for n, p in target.named_parameters() if p.requires_grad}
    layout = own_values(target)
    made = Generator(Separate(layout), layout)
    weights = layout.weights(made(made.body.embedding()[None])[0])
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[name], own[name]) for name in own)
    assert not any(p.requires_grad for p in made.parameters())


# --- rows of the head ----------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 1])
def test_numbers_of_the_heads_rows_are_labelled_with_their_class(rank):
    target = classifier(Perceptron((1, 3, 3), [5]), nn.Linear(5, 4))
    layout = Layout(target, 4) if rank is None else low_rank(target, 4, rank)
    numbers = torch.zeros(layout.size, requires_grad=True)
    with torch.no_grad():  # B A moves with both factors
        numbers += torch.randn(layout.size)
    head = layout.weights(numbers)
    rows = [torch.cat([head["head.weight"][c], head["head.bias"][c : c + 1]]) for c in range(4)]
    reach = [torch.autograd.grad(row.sum(), numbers, retain_graph=True)[0] != 0 for row in rows]
    for k, label in enumerate(layout.label.tolist()):
        reached = [c for c in range(4) if reach[c][k]]
        assert label == (reached[0] if len(reached) == 1 else NO_CLASS)


@pytest.mark.parametrize("classes", [None, 5])
def test_no_number_serves_a_class_where_rows_are_none(classes):
    layout = Layout(classifier(Perceptron((1, 3, 3), [5]), nn.Linear(5, 4)), classes)
    assert (layout.label == NO_CLASS).all()


# --- low rank ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "convnet", "tied", "odd", "no axes"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_low_rank_change_begins_at_nothing_and_has_its_rank(name, rank):
    torch.manual_seed(0)
    target, x = TARGETS[name]()
    plain = copy.deepcopy(target.eval())
    own = {n: p.detach() for n, p in plain.named_parameters() if p.requires_grad}
    layout = low_rank(target, rank=rank)
    made = Generator(MLP(layout, 3), layout)
    size = 0
    for value in own.values():
        out, into = value.flatten(1).shape if value.ndim > 1 else (1, 0)
        fewer = value.ndim > 1 and rank * (out + into) < value.numel()
        size += rank * (out + into) if fewer else value.numel()
    assert layout.size == size
    start = layout.weights(made(torch.randn(2, 3)))
    assert all(torch.equal(start[n], v.expand_as(start[n])) for n, v in own.items())
    first = {n: v[0] for n, v in start.items()}
    assert torch.equal(functional_call(target, first, (x,)), plain(x))

    weights = layout.weights(changed(layout, 1.0))
    for n, v in own.items():
        change = (weights[n] - v).detach()
        assert change.abs().max() > 0
        if v.ndim > 1 and rank * sum(v.flatten(1).shape) < v.numel():
            singular = torch.linalg.svdvals(change.flatten(1).double())
            assert (singular[rank:] < 1e-6 * singular[0]).all()
            assert singular[rank - 1] > 1e-3 * singular[0]
    assert {n for n, _ in layout.named_parameters()} == {"gain"}


def test_a_low_rank_change_can_be_learned_from_its_beginning():
    torch.manual_seed(0)
    target, x = TARGETS["mlp"]()
    layout = low_rank(target, rank=2)
    made = Generator(MLP(layout, 3), layout)
    loss = functional_call(target, layout.weights(made(torch.randn(1, 3))[0]), (x,)).sin().sum()
    loss.backward()
    assert torch.equal(layout.gain.grad != 0, layout.scale == 0)  # those of B and of biases


# --- refusals ------------------------------------------------------------------------------------


def with_parameter(value):
    module = nn.Linear(2, 2)
    module.inner = nn.Linear(1, 1)
    module.inner.odd = value
    return module


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (nn.Parameter(torch.zeros(2, dtype=torch.complex64)), "torch.complex64"),
        (nn.UninitializedParameter(), "torch.float32"),
    ],
)
def test_a_parameter_that_cannot_be_generated_is_refused_by_name(value, kind):
    with pytest.raises(InputError) as caught:
        Layout(with_parameter(value))
    assert str(caught.value) == (
        f"hypernet: the parameter inner.odd of the target is {kind}, of unknown shape or not real; "
        "give it a shape and a type of floating point, or requires_grad=False"
    )


def test_a_complex_parameter_that_is_frozen_stays():
    value = nn.Parameter(torch.zeros(2, dtype=torch.complex64), requires_grad=False)
    target = with_parameter(value)
    assert "inner.odd" not in Layout(target).weights(torch.zeros(8))
    assert target.inner.odd is value


@pytest.mark.parametrize(
    "target", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)], ids=["none", "frozen"]
)
def test_a_target_with_nothing_to_generate_is_refused(target):
    with pytest.raises(InputError) as caught:
        Layout(target)
    assert str(caught.value) == (
        "hypernet: the target has no parameter that asks for a gradient, and none is generated; "
        "choose another backbone, or hypernet=none"
    )


def test_a_rank_of_0_is_refused():
    with pytest.raises(InputError) as caught:
        low_rank(nn.Linear(9, 9), rank=0)
    assert str(caught.value) == "hypernet.layout.rank=0: expected at least 1; raise it"
