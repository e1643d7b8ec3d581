"""The look-ahead, against the step that a copy of the optimizer then makes."""

import copy
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from clplat.errors import InputError
from clplat.lookahead import look_ahead
from clplat.optimizer import make_optimizer

SHAPES = [(3, 5), (7,), (), (2, 3, 1), (1,)]
RULES = {
    "sgd": (SGD, {}),
    "sgd_decay": (SGD, {"weight_decay": 0.3}),
    "momentum": (SGD, {"momentum": 0.9}),
    "dampening": (SGD, {"momentum": 0.8, "dampening": 0.3}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "nesterov_decay": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3}),
    "sgd_maximize": (
        SGD,
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.3, "maximize": True},
    ),
    "adam": (Adam, {}),
    "adam_betas": (Adam, {"betas": (0.3, 0.6), "eps": 0.1}),
    "adam_decay": (Adam, {"weight_decay": 0.3}),
    "adam_decoupled": (Adam, {"weight_decay": 0.3, "decoupled_weight_decay": True}),
    "amsgrad": (Adam, {"amsgrad": True, "betas": (0.5, 0.5)}),
    "adam_maximize": (Adam, {"weight_decay": 0.3, "amsgrad": True, "maximize": True}),
    "adamw": (AdamW, {"weight_decay": 0.3}),
    "adamw_amsgrad": (AdamW, {"amsgrad": True, "betas": (0.5, 0.5)}),
    "adamw_maximize": (AdamW, {"weight_decay": 0.3, "maximize": True}),
}
FORMS = {"plain": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
# Of a change of about 0.1 to parameters of about 1, so that float32's rounding of the reference,
# a difference of parameters, is covered.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6}

every_rule = pytest.mark.parametrize("rule", RULES)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in SHAPES]


def optimizer_of(held: list, rule: str, **options) -> Optimizer:
    kind, own = RULES[rule]
    return kind(held, **{"lr": 0.1, **own, **options})


def gradients() -> Iterator[Callable[[Tensor], Tensor]]:
    """What gives a parameter a gradient, other in each step; the sizes differ much."""
    generator = torch.Generator().manual_seed(1)
    for step in itertools.count():
        size = [1.0, 10.0, 0.1, 0.01][step % 4]
        yield lambda p, size=size: size * torch.randn(p.shape, generator=generator).to(p)


def stepped(optimizer: Optimizer, held: list[nn.Parameter]) -> list[Tensor]:
    """The changes of the real step, made by a copy."""
    other, copies = copy.deepcopy((optimizer, held))
    for theirs, mine in zip(copies, held, strict=True):
        theirs.grad = None if mine.grad is None else mine.grad.clone()
    other.step()
    return [(a - b).detach() for a, b in zip(copies, held, strict=True)]


def follows(optimizer: Optimizer, held: list[nn.Parameter], without: tuple = (), steps: int = 6):
    """Look-ahead and real step agree, step after step; in step i, `without[i]` have no gradient."""
    for step, gradient in zip(range(steps), gradients(), strict=False):
        absent = without[step] if step < len(without) else ()
        for i, p in enumerate(held):
            p.grad = None if i in absent else gradient(p)
        expected = stepped(optimizer, held)
        changes = look_ahead(optimizer, held)
        for change, reference in zip(changes, expected, strict=True):
            tolerance = TOLERANCES[reference.dtype]
            torch.testing.assert_close(change, reference, rtol=tolerance, atol=tolerance)
        optimizer.step()


@every_rule
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_it_is_what_the_next_step_adds(rule, form, dtype):
    held = parameters(dtype)
    follows(optimizer_of(held, rule, **FORMS[form]), held)


@every_rule
@pytest.mark.parametrize("form", ["plain", "foreach"])
def test_state_may_begin_later_for_some_parameters(rule, form):
    held = parameters()
    follows(optimizer_of(held, rule, **FORMS[form]), held, without=((1, 3), (1,), (0, 1)))


@pytest.mark.parametrize("rule", ["momentum", "nesterov_decay", "adam", "adamw_amsgrad"])
def test_momentum_that_was_laid_as_zeros_follows_the_usual_formula(rule):
    model = nn.ParameterList(parameters())
    optimizer, _ = make_optimizer(lambda groups: optimizer_of(groups, rule, fused=True), model)
    follows(optimizer, list(model), without=((1, 3), (1,), (0, 1)))


def test_dampening_is_applied_to_a_first_gradient_only_where_a_buffer_was_laid():
    held = parameters()
    p = held[0]
    optimizer = optimizer_of(held, "dampening")
    p.grad = torch.ones_like(p)
    (change,) = look_ahead(optimizer, [p])
    torch.testing.assert_close(change, torch.full_like(p, -0.1))
    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    (change,) = look_ahead(optimizer, [p])
    torch.testing.assert_close(change, torch.full_like(p, -0.07))


@every_rule
@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_rate_may_be_a_tensor(rule, shape):
    held = parameters()
    rate = torch.full(shape, 0.1, dtype=torch.float64)
    follows(optimizer_of(held, rule, lr=rate, foreach=False), held)


@pytest.mark.parametrize("rule", ["adam_decay", "amsgrad", "adamw"])
def test_the_decays_of_the_means_may_be_tensors(rule):
    held = parameters()
    betas = torch.tensor([0.5, 0.9], dtype=torch.float64)
    follows(optimizer_of(held, rule, betas=tuple(betas), foreach=False), held)


@pytest.mark.parametrize("rule", ["adam", "adamw_amsgrad"])
def test_a_capturable_step_is_the_same(rule):
    """Which torch makes on an accelerator alone."""
    held = parameters()
    optimizer = optimizer_of(held, rule)
    for p in held:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        (group,) = optimizer.param_groups
        expected = look_ahead(optimizer, held)
        group["capturable"] = True
        assert all(map(torch.equal, look_ahead(optimizer, held), expected))
        group["capturable"] = False
        optimizer.step()


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_each_parameter_moves_by_the_options_of_its_group(kind):
    held = parameters()
    groups = [
        {"params": held[3:], "lr": 0.5, "weight_decay": 0.2},
        {"params": held[:1]},
        {"params": held[1:3], "lr": 0.01, "maximize": True},
    ]
    optimizer = kind(groups, lr=0.1)
    follows(optimizer, held, without=((), (0,)))
    optimizer.param_groups[0]["lr"] = 0.25  # as a schedule would
    follows(optimizer, held)


def test_changes_come_in_the_order_of_the_parameters_asked_for():
    held = parameters()
    optimizer = Adam([{"params": held[:2], "lr": 0.5}, {"params": held[2:]}], lr=0.1)
    for p, gradient in zip(held, gradients(), strict=False):
        p.grad = gradient(p)
    expected = stepped(optimizer, held)
    order = [4, 1, 3]
    changes = look_ahead(optimizer, [held[i] for i in order])
    for i, change in zip(order, changes, strict=True):
        torch.testing.assert_close(change, expected[i], rtol=1e-12, atol=1e-12)
    assert look_ahead(optimizer, []) == []


@pytest.mark.parametrize("rule", ["nesterov_decay", "adamw_amsgrad"])
def test_a_group_may_mix_types(rule):
    held = [*parameters(torch.float32), *parameters(torch.float64)]
    follows(optimizer_of(held, rule), held)


def bytes_of(optimizer: Optimizer, held: list[nn.Parameter]) -> list:
    tensors = [t for p in held for t in (p, p.grad, *optimizer.state.get(p, {}).values())]
    data = [t.detach().numpy().tobytes() if isinstance(t, Tensor) else t for t in tensors]
    return [*data, [id(t) for t in tensors], len(optimizer.state)]


@every_rule
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_nothing_is_changed(rule, form, scale):
    held = parameters()
    optimizer = optimizer_of(held, rule, **FORMS[form])
    options = copy.deepcopy([{**g, "params": None} for g in optimizer.param_groups])
    for _, gradient in zip(range(3), gradients(), strict=False):
        for p in held:
            p.grad = gradient(p)
        before = bytes_of(optimizer, held)
        for change in look_ahead(optimizer, held, scale):
            assert not change.requires_grad
            change.fill_(torch.nan)  # nor does what is returned share their memory
        assert bytes_of(optimizer, held) == before
        assert [{**g, "params": None} for g in optimizer.param_groups] == options
        optimizer.step()


@every_rule
def test_a_parameter_without_a_gradient_stays_where_it_is(rule):
    held = parameters()
    optimizer = optimizer_of(held, rule)
    for _ in range(2):  # before its state has begun, and after
        for p in held:
            p.grad = None
        for p, change in zip(held, look_ahead(optimizer, held), strict=True):
            assert torch.equal(change, torch.zeros_like(p))
            assert not change.requires_grad
            p.grad = torch.ones_like(p)
        optimizer.step()


@pytest.mark.parametrize("rule", ["sgd_maximize", "nesterov", "adam_decay", "adamw"])
def test_gradients_are_divided_by_the_scale(rule):
    """Against a gradient scaler, which divides them in its own step."""
    held = parameters(torch.float32)
    optimizer = optimizer_of(held, rule)
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0)
    for _, gradient in zip(range(3), gradients(), strict=False):
        optimizer.zero_grad()
        scaler.scale(torch.stack([(gradient(p) * p).sum() for p in held]).sum()).backward()
        changes = look_ahead(optimizer, held, scaler.get_scale())
        before = [p.detach().clone() for p in held]
        scaler.step(optimizer)
        scaler.update()
        for change, p, old in zip(changes, held, before, strict=True):
            torch.testing.assert_close(change, (p - old).detach(), rtol=2e-6, atol=2e-6)


class OwnSGD(SGD):
    """What a subclass does is its own."""


@pytest.mark.parametrize("kind", [RMSprop, OwnSGD])
def test_other_optimizers_are_refused(kind):
    held = parameters()
    with pytest.raises(InputError) as error:
        look_ahead(kind(held, lr=0.1), held)
    assert str(error.value) == (
        f"optimizer: {kind.__name__} has no look-ahead; choose sgd, adam or adamw, "
        "or set strategy.look_ahead=false"
    )


def test_a_parameter_that_the_optimizer_does_not_hold_is_refused():
    held = parameters()
    optimizer = SGD(held[:2], lr=0.1)
    with pytest.raises(ValueError, match="look ahead") as error:
        look_ahead(optimizer, [held[1], held[3]])
    assert not isinstance(error.value, InputError)
    assert str(error.value) == (
        "parameters[1], of shape (2, 3, 1), is in no group of the optimizer; "
        "look ahead only for parameters that it holds"
    )
