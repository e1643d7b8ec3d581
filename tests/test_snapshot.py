"""What training changes, copied and put back: bit for bit, and into a network that grew since."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from clplat.optimizer import follow, make_optimizer
from clplat.snapshot import held, put_back, snapshot

FACTORIES = {
    "adam": lambda groups: Adam(groups, lr=0.01),
    "momentum": lambda groups: SGD(groups, lr=0.1, momentum=0.9),
    "sgd": lambda groups: SGD(groups, lr=0.1),
}


class Net(nn.Module):
    """A norm, a frozen layer, and an output; `means` is a buffer of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 5).requires_grad_(False)
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 2)
        self.register_buffer("means", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.frozen(x)).tanh())


def train(model: nn.Module, optimizer: Optimizer, steps: int = 3) -> list[float]:
    losses = []
    for k in range(steps):
        optimizer.zero_grad()
        x = torch.linspace(-1, 1, 21).reshape(7, 3).roll(k, 0) ** 3
        loss = (model(x) - 1).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture
def model() -> Net:
    return Net().train()


@pytest.mark.parametrize("name", FACTORIES)
def test_training_goes_on_from_what_was_put_back_as_it_did_from_the_original(model, name):
    optimizer, _ = make_optimizer(FACTORIES[name], model)
    train(model, optimizer)
    kept, weights = snapshot(model, optimizer), copied(model)
    losses = train(model, optimizer)
    assert train(model, optimizer) != losses
    put_back(model, optimizer, kept)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert train(model, optimizer) == losses


@pytest.mark.parametrize("name", FACTORIES)
def test_what_was_kept_does_not_change_when_it_has_been_put_back(model, name):
    optimizer, _ = make_optimizer(FACTORIES[name], model)
    train(model, optimizer)
    kept = snapshot(model, optimizer)
    losses = train(model, optimizer)
    for _ in range(2):
        put_back(model, optimizer, kept)
        assert train(model, optimizer) == losses


def test_groups_and_their_options_stay(model):
    groups = [
        {"params": list(model.norm.parameters()), "lr": 0.5, "initial_lr": 2.0},
        {"params": list(model.head.parameters())},
    ]
    optimizer = Adam(groups, lr=0.25)
    kept = snapshot(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.125
    put_back(model, optimizer, kept)
    assert [g["lr"] for g in optimizer.param_groups] == [0.125, 0.25]
    assert optimizer.param_groups[0]["initial_lr"] == 2.0
    assert [p for g in optimizer.param_groups for p in g["params"]] == [
        *model.norm.parameters(),
        *model.head.parameters(),
    ]


def test_a_parameter_that_had_no_state_has_none_again(model):
    optimizer, _ = make_optimizer(FACTORIES["adam"], model)
    kept = snapshot(model, optimizer)
    train(model, optimizer)
    assert model.head.weight in optimizer.state
    put_back(model, optimizer, kept)
    assert not optimizer.state


def test_running_statistics_are_put_back_and_other_buffers_are_not(model):
    optimizer, _ = make_optimizer(FACTORIES["sgd"], model)
    train(model, optimizer)
    kept, mean = snapshot(model, optimizer), model.norm.running_mean.clone()
    train(model, optimizer)
    model.means.fill_(3)
    assert not torch.equal(model.norm.running_mean, mean)
    put_back(model, optimizer, kept)
    assert torch.equal(model.norm.running_mean, mean)
    assert int(model.norm.num_batches_tracked) == 3
    assert model.means.tolist() == [3, 3]


def test_only_what_is_trained_is_copied(model):
    optimizer, _ = make_optimizer(FACTORIES["adam"], model)
    assert held(model, optimizer).keys() == {
        *("norm.weight", "norm.bias", "head.weight", "head.bias")
    }
    kept = snapshot(model, optimizer)
    assert not any("frozen" in name or "means" in name for name in kept["weights"])


@pytest.mark.parametrize("name", FACTORIES)
def test_an_output_that_was_widened_gets_its_rows_back_and_keeps_the_new_ones(model, name):
    optimizer, names = make_optimizer(FACTORIES[name], model)
    train(model, optimizer)
    kept, old = snapshot(model, optimizer), copied(model)
    moments = {k: v.clone() for k, v in optimizer.state[model.head.weight].items()}
    train(model, optimizer)
    wide = nn.Linear(5, 4)
    new_rows = wide.weight[2:].detach().clone()
    model.head = wide
    follow(optimizer, model, names)
    put_back(model, optimizer, kept)
    assert torch.equal(wide.weight, torch.cat([old["head.weight"], new_rows]))
    assert torch.equal(wide.bias[:2], old["head.bias"])
    state = optimizer.state[wide.weight]
    assert state.keys() == moments.keys()
    for key, value in moments.items():
        if value.shape == (2, 5):
            value = torch.cat([value, torch.zeros(2, 5)])
        assert torch.equal(state[key], value), key
    train(model, optimizer)


def test_a_new_parameter_keeps_its_value_and_its_state(model):
    optimizer, names = make_optimizer(FACTORIES["momentum"], model)
    train(model, optimizer)
    kept = snapshot(model, optimizer)
    model.scale = nn.Parameter(torch.ones(5))
    follow(optimizer, model, names)
    optimizer.state[model.scale] = {"momentum_buffer": torch.full((5,), 2.0)}
    put_back(model, optimizer, kept)
    assert model.scale.tolist() == [1] * 5
    assert optimizer.state[model.scale]["momentum_buffer"].tolist() == [2] * 5


def test_what_was_replaced_by_something_no_larger_or_is_gone_stays_so(model):
    optimizer, names = make_optimizer(FACTORIES["momentum"], model)
    train(model, optimizer)
    kept = snapshot(model, optimizer)
    model.head = nn.Linear(5, 1)
    model.norm.register_parameter("bias", None)
    weight = model.head.weight.detach().clone()
    follow(optimizer, model, names)
    put_back(model, optimizer, kept)
    assert torch.equal(model.head.weight, weight)
    assert model.head.weight not in optimizer.state
    assert torch.equal(model.norm.weight, kept["weights"]["norm.weight"])
