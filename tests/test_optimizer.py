"""An optimizer that follows a growing model, against one that held the grown model all along."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from clplat.optimizer import follow, make_optimizer, trainable

FACTORIES = {
    "adam": lambda groups: Adam(groups, lr=0.01),
    "amsgrad": lambda groups: Adam(groups, lr=0.01, amsgrad=True),
    "momentum": lambda groups: SGD(groups, lr=0.1, momentum=0.9),
    "sgd": lambda groups: SGD(groups, lr=0.1),
}


def adam(groups):
    return FACTORIES["adam"](groups)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def train(model: nn.Module, optimizer, steps: int = 3, outputs: int | None = None) -> None:
    """Steps on the same inputs; only the first `outputs` outputs enter the loss."""
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x)[:, :outputs].square().sum().backward()
        optimizer.step()


def replace_output(model: nn.Sequential, layer: nn.Linear) -> nn.Linear:
    """A last layer whose first rows are those of the present one; the rest are `layer`'s."""
    with torch.no_grad():
        layer.weight[: model[2].out_features] = model[2].weight
        layer.bias[: model[2].out_features] = model[2].bias
    model[2] = layer
    return layer


def held_by(optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


# --- what is held ----------------------------------------------------------------------------


def test_frozen_parameters_are_not_held(model):
    model[0].requires_grad_(False)
    optimizer, held = make_optimizer(adam, model)
    assert list(held) == ["2.weight", "2.bias"]
    assert held_by(optimizer) == list(model[2].parameters())


def test_a_models_own_parameter_groups_are_honoured(model):
    model.parameter_groups = lambda: [
        {"params": {"last": model[2].weight}, "lr": 0.5},
        {"params": {"first": model[0].weight}, "weight_decay": 0.25},
    ]
    optimizer, held = make_optimizer(adam, model)
    assert {name: id(p) for name, p in held.items()} == {
        "last": id(model[2].weight),
        "first": id(model[0].weight),
    }
    options = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert options == [(0.5, 0), (0.01, 0.25)]
    assert [[id(p) for p in g["params"]] for g in optimizer.param_groups] == [
        [id(model[2].weight)],
        [id(model[0].weight)],
    ]


def test_asking_what_is_trainable_changes_nothing(model):
    (group,) = trainable(model)
    assert list(group) == ["params"]
    assert group["params"].keys() == dict(model.named_parameters()).keys()


# --- following -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTORIES)
def test_a_model_that_grew_trains_as_if_its_new_rows_had_been_there_unused(model, name):
    torch.manual_seed(1)
    wide = nn.Linear(5, 4)
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    new_rows = nn.Linear(5, 4)
    new_rows.load_state_dict(wide.state_dict())
    replace_output(reference, new_rows)

    optimizer, held = make_optimizer(FACTORIES[name], model)
    always, _ = make_optimizer(FACTORIES[name], reference)
    train(model, optimizer)
    train(reference, always, outputs=2)
    replace_output(model, wide)
    follow(optimizer, model, held)
    train(model, optimizer)
    train(reference, always)
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_the_state_of_a_grown_parameter_is_the_old_one_with_zeros_for_the_new_rows(model):
    optimizer, held = make_optimizer(adam, model)
    train(model, optimizer)
    old = {k: v.clone() for k, v in optimizer.state[model[2].weight].items()}
    wide = replace_output(model, nn.Linear(5, 4))
    follow(optimizer, model, held)
    new = optimizer.state[wide.weight]
    assert new["step"] == old["step"] == 3
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(new[name], torch.cat([old[name], torch.zeros(2, 5)]))


def test_a_parameter_may_grow_in_every_dimension(model):
    optimizer, held = make_optimizer(adam, model)
    train(model, optimizer)
    old = optimizer.state[model[2].weight]["exp_avg"].clone()
    model[2] = nn.Linear(7, 3)
    follow(optimizer, model, held)
    new = optimizer.state[model[2].weight]["exp_avg"]
    assert new.shape == (3, 7)
    assert torch.equal(new[:2, :5], old)
    assert new[2:].count_nonzero() == new[:, 5:].count_nonzero() == 0


def test_a_parameter_replaced_by_one_of_the_same_shape_starts_afresh(model):
    optimizer, held = make_optimizer(adam, model)
    train(model, optimizer)
    old, model[2] = model[2].weight, nn.Linear(5, 2)
    follow(optimizer, model, held)
    assert old not in optimizer.state
    assert model[2].weight not in optimizer.state
    train(model, optimizer, steps=1)
    assert optimizer.state[model[2].weight]["step"] == 1


@pytest.mark.parametrize("smaller", [nn.Linear(5, 1), nn.Linear(4, 3), nn.Conv1d(5, 2, 1)])
def test_a_parameter_replaced_by_one_that_did_not_grow_starts_afresh(model, smaller):
    optimizer, held = make_optimizer(adam, model)
    train(model, optimizer)
    model[2] = smaller
    follow(optimizer, model, held)
    assert smaller.weight not in optimizer.state
    assert any(p is smaller.weight for p in held_by(optimizer))


def test_parameters_that_stay_keep_their_state_when_others_join_and_go(model):
    optimizer, held = make_optimizer(adam, model)
    train(model, optimizer)
    kept, gone = optimizer.state[model[0].weight], model[2].weight
    model[2] = nn.Identity()
    model.append(nn.Linear(5, 3))
    held = follow(optimizer, model, held)
    assert [id(p) for p in held_by(optimizer)] == [id(p) for p in model.parameters()]
    assert list(held) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert optimizer.state[model[0].weight] is kept
    assert gone not in optimizer.state
    train(model, optimizer, steps=1)
    assert optimizer.state[model[0].weight]["step"] == 4
    assert optimizer.state[model[3].weight]["step"] == 1


def test_a_parameter_that_is_frozen_later_is_let_go(model):
    optimizer, held = make_optimizer(adam, model)
    train(model, optimizer)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    held = follow(optimizer, model, held)
    train(model, optimizer)
    assert list(held) == ["2.weight", "2.bias"]
    assert model[0].weight not in optimizer.state
    assert torch.equal(model[0].weight, before)


def test_following_an_unchanged_model_changes_nothing(model):
    optimizer, held = make_optimizer(adam, model)
    train(model, optimizer)
    state = dict(optimizer.state)
    assert follow(optimizer, model, held) is held
    assert all(optimizer.state[p] is s for p, s in state.items())


def test_growing_twice_keeps_the_state_of_the_first_rows(model):
    optimizer, held = make_optimizer(adam, model)
    train(model, optimizer)
    old = optimizer.state[model[2].weight]["exp_avg"].clone()
    for width in (3, 6):
        replace_output(model, nn.Linear(5, width))
        held = follow(optimizer, model, held)
    new = optimizer.state[model[2].weight]["exp_avg"]
    assert torch.equal(new, torch.cat([old, torch.zeros(4, 5)]))


def test_a_group_that_joins_later_brings_its_options_and_the_first_keeps_its_rate(model):
    groups = [{"params": {"first": model[0].weight}, "lr": 0.5}]
    model.parameter_groups = lambda: groups
    optimizer, held = make_optimizer(adam, model)
    optimizer.param_groups[0]["lr"] = 0.125  # as a schedule would
    groups.append({"params": {"last": model[2].weight}, "weight_decay": 0.25})
    held = follow(optimizer, model, held)
    options = [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert options == [(0.125, 0), (0.01, 0.25)]
    assert list(held) == ["first", "last"]


def test_a_group_that_is_gone_is_no_longer_stepped(model):
    groups = [{"params": {"first": model[0].weight}}, {"params": {"last": model[2].weight}}]
    model.parameter_groups = lambda: groups
    optimizer, held = make_optimizer(adam, model)
    del groups[1]
    follow(optimizer, model, held)
    assert [id(p) for p in held_by(optimizer)] == [id(model[0].weight)]


@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_momentum_may_begin_later_for_some_parameters(nesterov):
    """As that of a task's head, which gets no gradient before its task comes."""
    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)])

        def sgd(groups, fused=fused):
            options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
            return torch.optim.SGD(groups, lr=0.1, fused=fused, **options)

        optimizer, held = make_optimizer(sgd, model)
        for step in range(6):
            if step == 4:
                model.append(nn.Linear(3, 2))
                held = follow(optimizer, model, held)
            optimizer.zero_grad()
            used = model[: step // 2 + 2]
            sum(layer(torch.ones(1, 3)).square().sum() for layer in used).backward()
            optimizer.step()
        results.append(list(model.parameters()))
    torch.testing.assert_close(*results)
