"""Each generator against a loop over tasks, chunks, layers or tiles, with its own parameters."""

import logging
import math

import pytest
import torch
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.convnet import ConvNet
from clplat.backbones.mlp import MLP as Perceptron
from clplat.backbones.resnet import ResNet
from clplat.backbones.sequence import SequenceModel
from clplat.errors import InputError
from clplat.layers.delta import DeltaNet
from clplat.layers.gated import MinGRU
from clplat.layers.mamba import Mamba
from clplat.layers.recurrent import GRU, LSTM, SLSTM, LeakyRNN
from hypernets.chunked import Chunked
from hypernets.generated import Generator
from hypernets.kernels import Kernels, kernels_alone
from hypernets.layout import Layout
from hypernets.low_rank import low_rank
from hypernets.mlp import MLP
from hypernets.rnn import RNN
from hypernets.separate import Separate, own_values
from hypernets.structured import Structured

RECURRENT = {
    "LSTM": LSTM,
    "GRU": GRU,
    "LeakyRNN": LeakyRNN,
    "LeakyRNN, sum": lambda width: LeakyRNN(width, "leaky_relu", "sum"),
    "SLSTM": lambda width: SLSTM(width, 2),
    "MinGRU": MinGRU,
    "Mamba": Mamba,
    "DeltaNet": lambda width: DeltaNet(width, 2),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small():
    """Layers of 45, 5, 15 and 3 numbers, in two modules."""
    return classifier(Perceptron((1, 3, 3), [5]), nn.Linear(5, 3))


def convolutions():
    return classifier(ConvNet((3, 8, 8), [5, 7]), nn.Linear(7, 3))


def of_perceptron(layers, x):
    """Linear layers with ReLU between them, written out, one input at a time."""
    linear = [m for m in layers if isinstance(m, nn.Linear)]
    for k, layer in enumerate(linear):
        x = torch.stack([(row * x).sum() + b for row, b in zip(layer.weight, layer.bias)])  # noqa: B905
        if k < len(linear) - 1:
            x = x.clamp(min=0)
    return x


def naive_mlp(body, embedding, layout):
    return of_perceptron(body.map, embedding)


def naive_chunked(body, embedding, layout):
    chunks = [of_perceptron(body.map, torch.cat([embedding, c])) for c in body.chunks]
    return torch.cat(chunks)[: layout.size]


def naive_structured(body, embedding, layout):
    kinds, pieces = [], []
    for k, (_, size, kind) in enumerate(layout.layers):
        if kind not in kinds:
            kinds.append(kind)
        of_kind = body.maps[kinds.index(kind)]
        pieces.append(of_perceptron(of_kind, torch.cat([embedding, body.layers[k]])))
        assert len(pieces[-1]) == size
    assert len(body.maps) == len(kinds)
    return torch.cat(pieces)


def naive_rnn(body, embedding, layout):
    """Step by step: the state is handed from chunk to chunk and from layer to layer."""
    chunk, state, pieces = body.output.out_features, None, []
    for k, (_, size, _) in enumerate(layout.layers):
        made = []
        for place in range(math.ceil(size / chunk)):
            angles = [place / 8**octave for octave in range(4)]
            position = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            x = torch.cat([embedding, body.layers[k], torch.tensor(position).to(embedding)])
            y, state = body.recurrent.step(body.input(x[None]), state)
            made.append(body.output(y)[0])
        pieces.append(torch.cat(made)[:size])
    return torch.cat(pieces)


def naive_kernels(body, embedding, layout):
    """Tile by tile and input by input: a_i = W2_i z + b2_i, K_i = W1 a_i + b1 (Ha et al.)."""
    n, t, pieces, start = body.z, body.tile, [], 0
    for part in layout.parts:
        shape = tuple(part.shape)
        if len(shape) < 3:
            pieces.append(embedding[start : start + part.size])
            start += part.size
            continue
        key = "x".join(map(str, shape[2:]))
        second, first = body.of_inputs[key], body.of_kernel[key]
        whole = torch.zeros(shape)
        down, across = math.ceil(shape[0] / t), math.ceil(shape[1] / t)
        for o in range(down):
            for i in range(across):
                z = embedding[start : start + n]
                start += n
                for k in range(t):
                    a = second.weight[k * n : (k + 1) * n] @ z + second.bias[k * n : (k + 1) * n]
                    kernel = (first.weight @ a + first.bias).reshape(t, *shape[2:])
                    if i * t + k < shape[1]:
                        left = shape[0] - o * t
                        whole[o * t : o * t + t, i * t + k] = kernel[:left]
        pieces.append(whole.flatten())
    assert start == len(embedding)
    return torch.cat(pieces)


CASES = {
    "mlp": (small, lambda layout: MLP(layout, 3, [4, 5]), naive_mlp),
    "mlp, linear": (small, lambda layout: MLP(layout, 3, []), naive_mlp),
    "chunked": (small, lambda layout: Chunked(layout, 3, 2, [4], 11), naive_chunked),
    "chunked, even": (small, lambda layout: Chunked(layout, 3, 2, [4], 17), naive_chunked),
    "structured": (small, lambda layout: Structured(layout, 3, 2, [4]), naive_structured),
    "structured, resnet": (
        lambda: ResNet((3, 8, 8), [2, 3], 2),
        lambda layout: Structured(layout, 3, 2, [4]),
        naive_structured,
    ),
    "kernels": (convolutions, lambda layout: Kernels(layout, 3, 4), naive_kernels),
    "kernels, of 1": (
        lambda: ResNet((3, 8, 8), [2, 3], 1),
        lambda layout: Kernels(layout, 3, 2),
        naive_kernels,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_generator_is_its_naive_loop_and_takes_several_tasks_at_once(name):
    target, generator, naive = CASES[name]
    layout = (kernels_alone if name.startswith("kernels") else Layout)(target())
    body = generator(layout)
    embeddings = torch.stack([torch.randn_like(body.embedding()) for _ in range(3)])
    numbers = body(embeddings)
    assert numbers.shape == (3, layout.size)
    for embedding, row in zip(embeddings, numbers, strict=True):
        torch.testing.assert_close(row, naive(body, embedding, layout), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(body(embedding[None])[0], row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [7, 10, 1000])
@pytest.mark.parametrize("name", RECURRENT)
def test_the_recurrent_generator_goes_step_by_step_through_any_layer(name, chunk):
    layout = Layout(small())
    body = RNN(layout, 3, 2, 8, chunk, RECURRENT[name]).double()
    embeddings = torch.randn(3, 3, dtype=torch.float64)
    numbers = body(embeddings)
    for embedding, row in zip(embeddings, numbers, strict=True):
        expected = naive_rnn(body, embedding, layout)
        # Places are held in single precision.
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_layer_depends_on_those_before_it_and_on_no_other(name):
    layout = Layout(ResNet((1, 4, 4), [2, 3], 1))
    body = RNN(layout, 3, 2, 8, 7, RECURRENT[name]).double()
    numbers = body(torch.randn(1, 3, dtype=torch.float64))[0]
    ends = [start + size for start, size, _ in layout.layers]
    assert len(ends) > 4
    for k, end in enumerate(ends):
        piece = numbers[end - layout.layers[k][1] : end]
        (gradient,) = torch.autograd.grad(piece.sin().sum(), body.layers, retain_graph=True)
        reached = gradient.abs().amax(1) > 0
        assert reached[: k + 1].all()
        assert not reached[k + 1 :].any()


def test_a_layers_weights_are_what_lies_between_its_start_and_its_end():
    layout = Layout(classifier(ConvNet((3, 8, 8), [5]), nn.Linear(5, 3)))
    sizes = [5 * 3 * 9, 5 + 5, 15 + 3]
    assert [size for _, size, _ in layout.layers] == sizes
    assert [start for start, _, _ in layout.layers] == [0, 135, 145]
    body = RNN(layout, 3, 2, 4, 50)
    assert body.counts == [3, 1, 1]


@pytest.mark.parametrize(
    ("generator", "size"), [(Chunked, 68), (RNN, 50)], ids=["chunked", "recurrent"]
)
def test_a_chunk_larger_than_what_there_is_to_generate_is_clipped_with_a_note(
    generator, size, caplog
):
    layout = Layout(small())
    with caplog.at_level(logging.INFO, "clplat"):
        body = generator(layout, chunk=size)
    assert caplog.messages == []
    assert body(torch.randn(2, 32)).shape == (2, 68)
    with caplog.at_level(logging.INFO, "clplat"):
        body = generator(layout, chunk=size + 1)
    assert caplog.messages == [
        f"hypernet.generator.chunk={size + 1}: made {size}, which is all there is to fill"
    ]
    assert body(torch.randn(2, 32)).shape == (2, 68)
    assert [p.shape[0] for n, p in body.named_parameters() if "weight" in n][-1] == size


def test_networks_of_their_own_are_their_embeddings():
    layout = own_values(small())
    body = Separate(layout)
    assert torch.equal(body.embedding(), torch.zeros(68))
    embeddings = torch.randn(2, 68)
    assert torch.equal(body(embeddings), embeddings)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generator", "key"),
    [
        (MLP, "embedding"),
        *((Chunked, key) for key in ("embedding", "chunk_embedding", "chunk")),
        *((Structured, key) for key in ("embedding", "layer_embedding")),
        *((RNN, key) for key in ("embedding", "layer_embedding", "hidden", "chunk")),
        *((Kernels, key) for key in ("embedding", "tile")),
    ],
)
def test_a_size_of_0_is_refused(generator, key):
    with pytest.raises(InputError) as caught:
        generator(Layout(convolutions()), **{key: 0})
    assert str(caught.value) == f"hypernet.generator.{key}=0: expected at least 1; raise it"


@pytest.mark.parametrize("generator", [MLP, Chunked, Structured])
def test_a_hidden_layer_of_no_units_is_refused(generator):
    with pytest.raises(InputError) as caught:
        generator(Layout(small()), hidden=[4, 0])
    assert "hypernet.generator.hidden" in str(caught.value)


@pytest.mark.parametrize("layer", [None, MinGRU, LSTM, GRU])
def test_kernels_want_a_convolution(layer):
    target = small() if layer is None else SequenceModel((6, 3), layer, width=4, depth=1)
    with pytest.raises(InputError) as caught:
        Kernels(Layout(target))
    assert str(caught.value).startswith("hypernet=kernels: the target has no convolution; choose")


def test_what_is_no_kernel_depends_on_nothing_that_tasks_share():
    layout = kernels_alone(convolutions())
    made = Generator(Kernels(layout, 3, 4), layout)
    numbers = made(made.body.embedding()[None])[0].split(layout.lengths)
    own = [piece.sum() for part, piece in zip(layout.parts, numbers, strict=True) if part.size < 30]
    assert len(own) == 6  # two of each norm, two of the head
    shared = [p for p in made.parameters() if p.requires_grad]
    assert shared
    for value in own:
        assert not value.requires_grad or not any(
            g.any()
            for g in torch.autograd.grad(value, shared, retain_graph=True, materialize_grads=True)
        )


@pytest.mark.parametrize("layout", [Layout, lambda target: low_rank(target, rank=1)])
def test_kernels_have_a_layout_of_their_own(layout):
    with pytest.raises(InputError) as caught:
        Kernels(layout(convolutions()))
    assert str(caught.value) == (
        "hypernet=kernels: it generates whole kernels and nothing else; its layout is "
        "hypernets.kernels.kernels_alone"
    )
