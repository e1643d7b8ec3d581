"""Encoders against torchvision's blocks, loops in float64 and counts in closed form."""

import numpy as np
import pytest
import torch
from avalanche.models.utils import is_multi_task_module
from torch import nn
from torchvision.models.resnet import BasicBlock as TorchvisionBlock

from clplat.backbones.classifier import Classifier, MultiTaskClassifier, classifier
from clplat.backbones.convnet import ConvNet
from clplat.backbones.heads import Cosine, Growing, Multi, NearestMean, single
from clplat.backbones.mlp import MLP
from clplat.backbones.resnet import BasicBlock, ResNet

ENCODERS = {
    "mlp": (lambda shape: MLP(shape, [7, 5]), (2, 3, 5)),
    "mlp with dropout": (lambda shape: MLP(shape, [7, 5], dropout=0.5), (1, 3, 3)),
    "mlp of a vector": (lambda shape: MLP(shape, [5]), (11,)),
    "mlp without layers": (lambda shape: MLP(shape, []), (2, 3, 5)),
    "convnet": (ConvNet, (3, 8, 8)),
    "convnet of odd images": (lambda shape: ConvNet(shape, [3, 5]), (2, 7, 13)),
    "convnet of a single row": (lambda shape: ConvNet(shape, [3, 5]), (1, 1, 9)),
    "resnet": (lambda shape: ResNet(shape, [4, 6, 8], 2), (3, 9, 11)),
    "resnet of a pixel": (lambda shape: ResNet(shape, [4, 6], 1), (1, 1, 1)),
}


@pytest.fixture(params=ENCODERS)
def case(request) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    make, shape = ENCODERS[request.param]
    return make(shape), shape


# --- all of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [2, 5])
def test_features_have_the_width_that_the_encoder_says(case, batch):
    encoder, shape = case
    assert encoder(torch.rand(batch, *shape)).shape == (batch, encoder.width)


def test_in_evaluation_a_samples_features_do_not_depend_on_the_others(case):
    encoder, shape = case
    x = torch.rand(4, *shape)
    encoder(x)  # gives batch norm statistics of its own
    encoder.eval()
    alone = torch.cat([encoder(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(encoder(x), alone, rtol=1e-5, atol=1e-6)


def test_a_gradient_reaches_every_parameter(case):
    encoder, shape = case
    x = torch.rand(6, *shape, requires_grad=True)
    encoder(x).square().sum().backward()
    assert x.grad.any()
    unreached = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


@pytest.mark.parametrize("kind", [ConvNet, lambda shape: ResNet(shape, [4], 1)])
def test_what_is_no_image_is_refused(kind):
    with pytest.raises(ValueError, match=r"Net takes images \(C, H, W\); got shape \(28, 28\)"):
        kind((28, 28))


# --- MLP -------------------------------------------------------------------------------------


def test_mlp_equals_matrix_products_in_float64():
    torch.manual_seed(0)
    encoder, x = MLP((2, 3, 5), [7, 4]), torch.randn(6, 2, 3, 5)
    hidden = x.double().numpy().reshape(6, 30)
    weights = [p.detach().double().numpy() for p in encoder.parameters()]
    for weight, bias in zip(weights[::2], weights[1::2], strict=True):
        hidden = np.maximum(hidden @ weight.T + bias, 0)
    np.testing.assert_allclose(encoder(x).detach().numpy(), hidden, rtol=1e-5, atol=1e-6)


def test_mlp_drops_features_in_training_only():
    torch.manual_seed(0)
    encoder, x = MLP((4,), [200], dropout=0.5), torch.rand(1, 4)
    kept = encoder.eval()(x) != 0
    dropped = (encoder.train()(x) == 0) & kept
    assert 0.3 < float(dropped.sum() / kept.sum()) < 0.7


def test_mlp_without_hidden_layers_flattens():
    x = torch.rand(3, 2, 4)
    assert torch.equal(MLP((2, 4), [])(x), x.reshape(3, 8))


# --- convolutions ----------------------------------------------------------------------------


def naive_stage(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """One (C, H, W) image: 3x3 convolution, batch norm as it is at first, ReLU, 2x2 maximum."""
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), height, width))
    for c, row, column in np.ndindex(out.shape):
        out[c, row, column] = (padded[:, row : row + 3, column : column + 3] * weight[c]).sum()
    out = np.maximum(out / np.sqrt(1 + 1e-5), 0)
    height, width = height // 2, width // 2
    return out[:, : 2 * height, : 2 * width].reshape(-1, height, 2, width, 2).max((2, 4))


def test_convnet_equals_a_loop_over_pixels_in_float64():
    torch.manual_seed(0)
    encoder, x = ConvNet((2, 5, 7), [3, 4]).eval(), torch.randn(2, 2, 5, 7)
    weights = [stage[0].weight.detach().double().numpy() for stage in encoder.stages]
    expected = []
    for image in x.double().numpy():
        for weight in weights:
            image = naive_stage(image, weight)
        expected.append(image.mean((1, 2)))
    np.testing.assert_allclose(encoder(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_convnet_does_not_pool_an_image_of_one_pixel():
    encoder = ConvNet((3, 8, 8), [4] * 5)
    pooled = [any(isinstance(m, nn.MaxPool2d) for m in stage) for stage in encoder.stages]
    assert pooled == [True, True, True, False, False]  # 8, 4, 2, 1, 1


@pytest.mark.parametrize(("channels_in", "channels", "stride"), [(4, 4, 1), (4, 6, 1), (4, 4, 2)])
def test_a_block_is_torchvisions(channels_in, channels, stride):
    torch.manual_seed(0)
    block = BasicBlock(channels_in, channels, stride)
    shortcut = None if isinstance(block.shortcut, nn.Identity) else block.shortcut
    theirs = TorchvisionBlock(channels_in, channels, stride, downsample=shortcut)
    theirs.conv1, theirs.bn1 = block.first, block.first_norm
    theirs.conv2, theirs.bn2 = block.second, block.second_norm
    x = torch.randn(3, channels_in, 5, 7)
    torch.testing.assert_close(block(x), theirs(x), rtol=1e-6, atol=1e-6)
    assert (shortcut is None) == (channels_in == channels and stride == 1)


def test_each_stage_of_a_resnet_but_the_first_halves_the_resolution():
    encoder = ResNet((3, 32, 32), [4, 5, 6, 7], 2)
    x, shapes = encoder.stem(torch.rand(1, 3, 32, 32)), []
    for stage in encoder.stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 32, 32), (5, 16, 16), (6, 8, 8), (7, 4, 4)]


@pytest.mark.parametrize(
    ("channels", "blocks", "parameters"),
    [
        ((64, 128, 256, 512), 2, 11_173_962 - (512 * 10 + 10)),  # ResNet-18 for CIFAR-10, no head
        # ResNet-32: 464,154 with parameter-free shortcuts, and two 1x1 shortcuts with batch norm
        ((16, 32, 64), 5, 464_154 - (64 * 10 + 10) + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)),
    ],
)
def test_resnets_have_as_many_parameters_as_the_published_ones(channels, blocks, parameters):
    encoder = ResNet((3, 32, 32), channels, blocks)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


# --- encoder and head ------------------------------------------------------------------------


@pytest.mark.parametrize("head", [single, Growing, Cosine, NearestMean, Multi])
def test_only_a_multi_task_head_makes_a_classifier_that_avalanche_gives_task_labels(head):
    model = classifier(MLP((4,), [5]), head(5, 3))
    assert type(model) is (MultiTaskClassifier if head is Multi else Classifier)
    assert is_multi_task_module(model) == (head is Multi)


def test_a_classifiers_output_is_the_heads_of_its_features():
    model, x = classifier(MLP((4,), [5]), single(5, 3)), torch.rand(6, 4)
    assert torch.equal(model.features(x), model.encoder(x))
    assert torch.equal(model(x), model.head(model.features(x)))
    assert torch.equal(model(x, task=1), model(x))  # of no matter to a head without tasks


class AddTask(Multi):
    """A head that shows which task it was given."""

    def forward(self, features, task=None):
        return features.sum(1) + task


def test_a_multi_task_classifier_hands_the_task_to_its_head():
    model, x = classifier(MLP((4,), [5]), AddTask(5, 3)), torch.rand(6, 4)
    task = torch.arange(6)
    assert torch.equal(model(x, task), model.encoder(x).sum(1) + task)
    assert torch.equal(model(x, 3), model.encoder(x).sum(1) + 3)
    assert torch.equal(model.features(x), model.encoder(x))
