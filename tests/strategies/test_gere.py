"""GeRe: the loss of every batch by hand, what is kept and when, and the effect."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch import nn
from torch.nn.functional import cross_entropy

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import single
from clplat.backbones.sequence import SequenceModel
from clplat.data import tensors_of
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.layers.gated import MinGRU
from scenarios.streams import make_scenario
from scenarios.text import Tokens
from strategies.finetune import FineTune
from strategies.gere import GeRe, dynamic_weight
from strategies.threshold_margin import thresholds
from tests.handed_over import through_a_file

KINDS, WINDOW, WIDTH = 9, 7, 6


def next_token(output, target):
    """The score of a sample: the share of positions where the likeliest token is the target's."""
    return (output.argmax(-1) == target).float().mean(1)


def criterion(output, target):
    """Cross-entropy over all positions but padding."""
    return cross_entropy(output.flatten(0, 1), target.flatten())


def language(task, count, seed, padding=False):
    """Windows in which tokens go up by a step of their language's, with some noise."""
    generator = torch.Generator().manual_seed(100 * task + seed)
    start = torch.randint(KINDS, (count, 1), generator=generator)
    tokens = (start + (2 * task + 1) * torch.arange(WINDOW + 1)) % KINDS
    noisy = torch.rand(tokens.shape, generator=generator) < 0.1
    tokens = torch.where(noisy, torch.randint(KINDS, tokens.shape, generator=generator), tokens)
    x, y = tokens[:, :-1].to(torch.uint8), tokens[:, 1:].clone()
    if padding:
        lengths = torch.randint(1, WINDOW + 1, (count, 1), generator=generator)
        y[torch.arange(WINDOW) >= lengths] = -100
    return x, y


def texts(experiences=3, samples=20, general=13, padding=False):
    """Three languages in turn, and a fourth as the general stream."""
    train = [language(k, samples, 0) for k in range(experiences)]
    test = [language(k, 12, 1) for k in range(experiences)]
    return make_scenario(
        train,
        test,
        KINDS,
        False,
        Tokens(),
        general=language(3, general, 0, padding),
        criterion=criterion,
        score=next_token,
        head="single",
        vocabulary=KINDS,
    )


def model(dropout=0.0):
    torch.manual_seed(0)
    settings: Any = {"width": WIDTH, "depth": 1, "dropout": dropout, "pooling": "none"}
    encoder = SequenceModel((WINDOW,), MinGRU, vocabulary=KINDS, **settings)
    return classifier(encoder, single(WIDTH, KINDS))


@pytest.fixture
def learn(make_learner):
    """Makes a learner of texts, and shows the scenario to its strategies as a run does."""

    def make(scenario, net, *plugins, **options):
        for plugin in plugins:
            if hasattr(plugin, "check"):
                plugin.check(scenario)
        return make_learner(
            net, *plugins, prepare=scenario.prepare, criterion=scenario.criterion, **options
        )

    return make


# --- the loss of a batch -----------------------------------------------------------------------


class Steps(SupervisedPlugin):
    """Keeps of each iteration what an independent computation needs, and the gradients."""

    def __init__(self, gere):
        super().__init__()
        self.gere, self.kept = gere, []

    def before_forward(self, strategy, **kwargs):
        self.kept.append({"model": copy.deepcopy(strategy.model)})
        self.kept[-1]["batch"] = [column.clone() for column in strategy.mbatch]
        loader = strategy.dataloader
        self.kept[-1]["chosen"] = getattr(loader, "chosen", torch.empty(0)).tolist()

    def before_backward(self, strategy, **kwargs):
        self.kept[-1]["loss"] = float(strategy.loss.detach())

    def after_backward(self, strategy, **kwargs):
        gradients = {n: p.grad.clone() for n, p in strategy.model.named_parameters()}
        self.kept[-1]["gradients"] = gradients


def naive_distance(form, states, stored, logits, old_logits, every, counts):
    """Of float64 states (k, T, D), in plain loops; `every` are the cache's states of all tokens."""
    places = [(b, t) for b in range(len(counts)) for t in range(WINDOW) if counts[b][t]]
    if form in ("l1", "l2"):
        power = int(form[1])
        terms = [(states[p] - stored[p]).abs().pow(power).mean() for p in places]
        return sum(terms) / len(terms)
    if form == "kl":
        terms = []
        for p in places:
            new, old = ((z[p] / 2).log_softmax(-1) for z in (logits, old_logits))
            terms.append(sum(old[v].exp() * (old[v] - new[v]) for v in range(KINDS)))
        return sum(terms) / len(terms)
    mean = every.mean(0)
    std = (every - mean).square().mean(0).sqrt()
    terms = []
    for p in places:
        for d in range(WIDTH):
            low, high = float(mean[d] - std[d]), float(mean[d] + std[d])
            h, now = float(stored[(*p, d)]), states[(*p, d)]
            if h <= low:
                term = (now - low).relu()
            elif h >= high:
                term = (high - now).relu()
            else:
                term = (now - high).relu() + (low - now).relu()
            if float(term.detach()):
                terms.append(term)
    return sum(terms) / len(terms) if terms else 0 * states.sum()


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("mix", [0, 3])
@pytest.mark.parametrize(
    ("form", "weight"),
    [
        ("margin", 1.0),
        ("margin", "dynamic"),
        ("label", 5.0),
        ("kl", 2.0),
        ("l1", 0.5),
        ("l2", "dynamic"),
    ],
)
def test_the_loss_and_gradients_are_those_of_the_definition(learn, form, weight, mix, padding):
    scenario = texts(general=11, padding=padding)
    gere = GeRe(form, weight, general="stream", samples=10, mix=mix)
    steps, net = Steps(gere), model()
    learner = learn(scenario, net, gere, steps, lr=0.5, epochs=1)
    before = copy.deepcopy(net).double()
    for experience in list(scenario.train_stream)[:2]:
        learner.train(experience)

    x, y, _ = (column[:10] for column in tensors_of(scenario.streams["general"][0].dataset))
    stored = before.encoder(x).detach()
    old_logits = before.head(stored).detach()
    every = stored[y != -100]
    assert len(steps.kept) == (2 * 3 if mix else 2 * 4)
    for step in steps.kept:
        net, chosen = step["model"].double(), step["chosen"]
        fresh = len(step["batch"][1]) - len(chosen)
        assert torch.equal(step["batch"][0][fresh:], x[chosen].float())
        assert torch.equal(step["batch"][1][fresh:], y[chosen])
        losses = []
        if fresh:
            logits = net(step["batch"][0][:fresh])
            losses.append(criterion(logits, step["batch"][1][:fresh]))
        if chosen:
            states = net.encoder(x[chosen])
            logits = net.head(states)
            losses.append(criterion(logits, y[chosen]))
        loss = sum(losses) / len(losses)
        if chosen and form != "label":
            distance = naive_distance(
                form,
                states,
                stored[chosen],
                logits,
                old_logits[chosen],
                every,
                (y[chosen] != -100).tolist(),
            )
            of = weight
            if of == "dynamic":
                of = min(100.0, loss.item() / (distance.item() + 1e-8))
            loss = loss + of * distance
        loss.backward()
        assert step["loss"] == pytest.approx(loss.item(), rel=1e-4)
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(
                step["gradients"][name].double(), parameter.grad, rtol=1e-3, atol=1e-4
            )


class Distances(SupervisedPlugin):
    """What GeRe adds to the loss at each iteration."""

    def __init__(self, gere):
        super().__init__()
        self.gere, self.added = gere, []

    def before_training_exp(self, strategy, **kwargs):
        self.gere.before_training_exp(strategy)

    def after_forward(self, strategy, **kwargs):
        self.gere.after_forward(strategy)

    def before_backward(self, strategy, **kwargs):
        before = strategy.loss.detach().clone()
        self.gere.before_backward(strategy)
        self.added.append(float(strategy.loss.detach() - before))

    def after_training_exp(self, strategy, **kwargs):
        self.gere.after_training_exp(strategy)


@pytest.mark.parametrize("form", ["margin", "kl", "l1", "l2"])
def test_at_the_first_step_nothing_is_held_yet(learn, form):
    scenario, added = texts(), []
    for weight in (0.0, 1e4):
        gere = GeRe(form, weight, general="stream", mix=13)
        gere.check(scenario)
        distances = Distances(gere)
        learn(scenario, model(), distances).train(scenario.train_stream[0])
        added.append(distances.added)
    difference = [b - a for a, b in zip(*added, strict=True)]
    assert difference[0] == pytest.approx(0, abs=1e-2)  # 1e4 times what float32 makes of 0
    assert min(difference[1:]) > 1e-2
    if form == "margin":
        assert difference[0] == 0


def test_a_batch_of_general_texts_alone_and_one_without_any(learn):
    """Batches of 1: of the two cross-entropies there is one, and that is the loss."""
    scenario = texts(experiences=1, samples=6, general=4)
    gere = GeRe("label", general="stream")
    steps = Steps(gere)
    learn(scenario, model(), gere, steps, batch_size=1, epochs=1).train(scenario.train_stream)
    assert sorted(len(step["chosen"]) for step in steps.kept) == [0] * 6 + [1] * 4
    for step in steps.kept:
        x, y, _ = step["batch"]
        expected = criterion(step["model"](x), y)
        assert step["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_what_other_strategies_add_to_the_loss_stays_whole(learn):
    class Adds(SupervisedPlugin):
        def __init__(self, amount):
            super().__init__()
            self.amount = amount

        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy.loss + self.amount

    scenario, losses = texts(), []
    for amount in (0.0, 8.0):
        gere = GeRe("label", general="stream", mix=2)
        learner = learn(scenario, model(), Adds(amount), gere)
        learner.train(scenario.train_stream[0])
        losses.append(torch.stack(learner.losses))
    torch.testing.assert_close(losses[1] - losses[0], torch.full((3,), 8.0))


def test_the_dynamic_weight_makes_both_losses_equal_up_to_100_and_has_no_gradient():
    entropy, distance = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    weight = dynamic_weight(entropy, distance)
    assert weight.item() == pytest.approx(6.0)
    assert not weight.requires_grad
    assert dynamic_weight(entropy, torch.tensor(0.0)).item() == 100
    assert dynamic_weight(entropy, torch.tensor(0.03)).item() == pytest.approx(100)
    assert dynamic_weight(entropy, torch.tensor(0.0301)).item() == pytest.approx(3 / 0.0301)


# --- the batches -------------------------------------------------------------------------------


class Batches(SupervisedPlugin):
    """Each batch's windows, as the loop had them."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append([])

    def before_forward(self, strategy, **kwargs):
        self.epochs[-1].append(strategy.stored_x.tolist())


def test_shuffled_each_epoch_has_every_sample_and_every_text_once(learn):
    scenario, seen = texts(samples=20, general=13), Batches()
    gere = GeRe("label", general="stream", mix=0)
    learn(scenario, model(), gere, seen).train(scenario.train_stream[0])
    own = scenario.train_stream[0].dataset, scenario.streams["general"][0].dataset
    expected = sorted(row for data in own for row in tensors_of(data)[0].tolist())
    shares = []
    for epoch in seen.epochs:
        assert [len(batch) for batch in epoch] == [8, 8, 8, 8, 1]
        assert sorted(row for batch in epoch for row in batch) == expected
        general = tensors_of(own[1])[0].tolist()
        shares.append([sum(row in general for row in batch) for batch in epoch])
    assert seen.epochs[0] != seen.epochs[1]
    assert len(set(shares[0][:4])) > 1  # by chance, not by quota


@pytest.mark.parametrize(("mix", "drawn"), [(3, 3), (50, 13)])
def test_mixed_in_each_batch_is_the_fine_tuners_and_some_texts_none_twice(learn, mix, drawn):
    scenario, plain, seen = texts(), Batches(), Batches()
    learn(scenario, model(), FineTune(), plain).train(scenario.train_stream[0])
    gere = GeRe("label", general="stream", mix=mix)
    learn(scenario, model(), gere, seen).train(scenario.train_stream[0])
    general = tensors_of(scenario.streams["general"][0].dataset)[0].tolist()
    draws = []
    batches = (itertools.chain(*watch.epochs) for watch in (plain, seen))
    for own, joined in zip(*batches, strict=True):
        assert joined[: len(own)] == own
        draws.append(joined[len(own) :])
        left = list(general)
        for row in draws[-1]:
            left.remove(row)
        assert len(draws[-1]) == drawn
    assert any(draw != draws[0] for draw in draws)


def test_the_loop_sees_the_experiences_own_samples_beside_the_loss(learn):
    scenario, shapes = texts(), []

    class Look(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            sizes = [len(strategy.mb_x), len(strategy.mb_y), len(strategy.mb_task_id)]
            shapes.append({*sizes, len(strategy.mb_output)})

    gere = GeRe(general="stream", mix=5)
    learn(scenario, model(), gere, Look(), epochs=1).train(scenario.train_stream[0])
    assert shapes == [{8}, {8}, {4}]


def test_the_encoder_runs_once_an_iteration(learn):
    scenario, net, calls = texts(), model(), []
    gere = GeRe(general="stream", mix=4)
    learner = learn(scenario, net, gere)
    learner.train(scenario.train_stream[0])
    handle = net.encoder.register_forward_hook(lambda *_: calls.append(1))
    learner.train(scenario.train_stream[1])
    handle.remove()
    assert len(calls) == 6
    assert not net.encoder._forward_hooks  # the tap is closed


# --- what is kept, and when --------------------------------------------------------------------


def test_the_first_experience_is_fine_tuned_and_then_what_is_general(learn, weights):
    scenario, models = texts(), []
    gere = GeRe("margin", samples=15)
    for strategy in (FineTune(), gere):
        learner = learn(scenario, model(), strategy)
        learner.train(scenario.train_stream[0])
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not gere.texts

    then = copy.deepcopy(learner.model).eval()
    learner.train(scenario.train_stream[1])
    x = tensors_of(scenario.train_stream[0].dataset)[0][:15]
    assert torch.equal(gere.texts[0], x)
    expected = then.encoder(x.float()).detach()
    torch.testing.assert_close(gere.cache.states, expected)
    states = gere.cache.states.clone()
    learner.train(scenario.train_stream[2])
    assert torch.equal(gere.cache.states, states)  # once and for all


def test_a_general_stream_is_read_before_anything_is_learned(learn):
    scenario, net = texts(), model()
    before = copy.deepcopy(net)
    gere = GeRe("l2", general="stream", samples=5)
    learn(scenario, net, gere).train(scenario.train_stream)
    x = tensors_of(scenario.streams["general"][0].dataset)[0][:5]
    assert torch.equal(gere.texts[0], x)
    torch.testing.assert_close(gere.cache.states, before.encoder(x.float()).detach())


def test_the_bytes_held_are_counted(learn):
    scenario = texts()
    common = 10 * WINDOW * (1 + 8) + 10 * 8  # tokens, labels, tasks
    states = 4 * 10 * WINDOW * WIDTH
    for form, expected in (
        ("label", common),
        ("l1", common + states),
        ("margin", common + states + 2 * 4 * WIDTH),
        ("kl", common + states + 4 * KINDS * (WIDTH + 1)),
    ):
        gere = GeRe(form, general="stream", samples=10)
        assert gere.memory_bytes == 0
        learn(scenario, model(), gere).train(scenario.train_stream[0])
        assert gere.memory_bytes == expected


# --- equal to the simpler, and in other settings -----------------------------------------------


@pytest.mark.parametrize("form", ["margin", "kl", "l1", "l2"])
def test_weight_0_is_replay_of_labels_to_the_bit(learn, weights, form):
    scenario, models = texts(), []
    for gere in (GeRe("label", mix=3), GeRe(form, 0.0, mix=3)):
        learner = learn(scenario, model(), gere)
        torch.manual_seed(7)
        learner.train(scenario.train_stream)
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("form", ["margin", "kl"])
def test_it_trains_in_mixed_precision(learn, weights, form, precision):
    scenario, models = texts(), []
    for chosen in ("fp32", precision):
        learner = learn(scenario, model(), GeRe(form, 1.0), precision=chosen)
        learner.train(scenario.train_stream)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=0.1, atol=0.05)


def test_gradients_of_several_batches_are_gathered(learn, weights):
    """4 batches of 5 to an update make the update of all 20, where each loss is a mean of 5."""
    scenario, models = texts(samples=20), []
    for size, group in ((20, 1), (5, 4)):
        gere = GeRe("l2", 3.0, general="stream", mix=13)  # every text in each batch
        learner = learn(scenario, model(), gere, batch_size=size, accumulate=group)
        learner.train(scenario.train_stream[0])
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-6)


def test_an_evaluation_inside_an_experience_changes_nothing(learn, weights):
    class Evaluates(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            strategy.eval(scenario.test_stream)

    scenario, models = texts(), []
    for watch in (FineTune(), Evaluates()):
        learner = learn(scenario, model(), GeRe(), watch, evaluator=Evaluator(next_token))
        learner.train(scenario.train_stream)
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("form", ["margin", "label", "kl"])
def test_it_trains_the_same_in_avalanches_own_loop(learn, weights, form):
    """All samples in one batch, so that the order does not matter, and all texts beside them."""
    scenario, models = texts(), []
    gere = GeRe(form, 2.0, mix=20)
    learner = learn(scenario, model(), gere, batch_size=20)
    other, net = GeRe(form, 2.0, mix=20), model()
    other.check(scenario)
    template = SupervisedTemplate(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        criterion=criterion,
        train_mb_size=20,
        train_epochs=2,
        eval_mb_size=512,
        plugins=[other],
        evaluator=None,
    )
    for loop in (learner, template):
        for experience in scenario.train_stream:
            loop.train(experience)
        models.append(weights(loop.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-5)


# --- restored ----------------------------------------------------------------------------------


class StopsAfter(SupervisedPlugin):
    """Breaks off the experience after so many iterations in all."""

    def __init__(self, iterations):
        super().__init__()
        self.left = iterations

    def after_training_iteration(self, strategy, **kwargs):
        if self.left is not None:
            self.left -= 1
        if self.left == 0:
            strategy.stop_training()


@pytest.mark.parametrize("stops", [None, 10])  # at the end of the second experience, or inside it
@pytest.mark.parametrize("mix", [0, 3])
@pytest.mark.parametrize("form", ["margin", "label", "kl", "l2"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(learn, form, mix, stops):
    scenario = texts()
    strategy, restored = GeRe(form, mix=mix), GeRe(form, mix=mix)
    learner = learn(scenario, model(), strategy, StopsAfter(stops))
    learner.train(scenario.train_stream[0])
    learner.train(scenario.train_stream[1])
    restored.load_state_dict(through_a_file(strategy.state_dict()))
    # Saved again before anything was trained, the state is still all there.
    restored.load_state_dict(through_a_file(restored.state_dict()))
    resumed = learn(scenario, copy.deepcopy(learner.model), restored)
    resumed.order.set_state(learner.order.get_state())
    generator = torch.get_rng_state()
    learner.train(scenario.train_stream[2])
    torch.set_rng_state(generator)
    resumed.train(scenario.train_stream[2])
    assert torch.equal(torch.stack(learner.losses), torch.stack(resumed.losses))
    for one, other in zip(learner.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    again = restored.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(again["texts"], strategy.texts, strict=True))


def saved_after_two(learn, scenario, **options):
    gere = GeRe("margin", **options)
    learner = learn(scenario, model(), gere)
    learner.train([scenario.train_stream[0], scenario.train_stream[1]])
    return learner.model, through_a_file(gere.state_dict())


def test_states_of_another_model_are_refused(learn):
    scenario = texts()
    net, state = saved_after_two(learn, scenario)
    with torch.no_grad():
        net.encoder.norm.weight[0] += 1e-3
    gere = GeRe()
    gere.load_state_dict(state)
    with pytest.raises(
        InputError, match=r"are another model's .* restore its weights too, or begin"
    ):
        learn(scenario, net, gere).train(scenario.train_stream[2])


def test_states_of_other_texts_are_refused(learn):
    scenario = texts()
    net, state = saved_after_two(learn, scenario, general="stream")
    for other in (texts(general=12), texts(padding=True)):
        gere = GeRe(general="stream")
        gere.load_state_dict(copy.deepcopy(state))
        with pytest.raises(InputError, match="are of other general texts"):
            learn(other, copy.deepcopy(net), gere).train(scenario.train_stream[2])


def test_states_serve_a_new_start_from_the_weights_that_they_are_of(learn, weights):
    scenario, models = texts(), []
    _, state = saved_after_two(learn, scenario, general="stream")
    for given in (None, state):
        gere = GeRe(general="stream")
        if given is not None:
            gere.load_state_dict(given)
        learner = learn(scenario, model(), gere)
        learner.train(scenario.train_stream)
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


# --- pre-trained models ------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_pre_trained_model_is_held_where_it_was(learn, llama, trainable):
    from clplat.backbones.causal_lm import CausalLM

    if trainable == "lora":
        pytest.importorskip("peft")
    original, folder = llama
    scenario, left = texts(), []
    x = tensors_of(scenario.streams["general"][0].dataset)[0]
    before = original(x.long(), output_hidden_states=True).hidden_states[-1].detach()
    low, high = thresholds(before)
    ranges = (lambda states: states <= low, lambda states: states >= high)
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        net = classifier(CausalLM((WINDOW,), folder, trainable), single(12, KINDS))
        gere = GeRe("margin", weight, general="stream", mix=13)
        learner = learn(scenario, net, gere, lr=0.02, epochs=8)
        learner.train(scenario.train_stream[0])
        torch.testing.assert_close(gere.cache.states, before, rtol=0, atol=1e-5)
        now = net.encoder(x).detach()
        left.append(int(sum((bucket(now) != bucket(before)).sum() for bucket in ranges)))
    assert 0 < left[1] < 0.5 * left[0]


# --- the effect --------------------------------------------------------------------------------


def test_it_forgets_less_than_fine_tuning_and_learns_as_well(learn):
    scenario, scores = texts(samples=40), {}
    for name, strategy in (
        ("finetune", FineTune()),
        ("label", GeRe("label")),
        ("margin", GeRe("margin", 1.0)),
    ):
        adam = lambda groups: torch.optim.Adam(groups, lr=0.03)  # noqa: E731
        options = {"optimizer": adam, "evaluator": Evaluator(next_token), "epochs": 15}
        learner = learn(scenario, model(), strategy, **options)
        learner.train([scenario.train_stream[0], scenario.train_stream[1]])
        scores[name] = learner.eval(list(scenario.test_stream)[:2])
    general, new = ({name: score[k] for name, score in scores.items()} for k in (0, 1))
    for form in ("label", "margin"):
        assert general[form] > general["finetune"] + 0.4
        assert new[form] > new["finetune"] - 0.25


SIZES = "scenario.window=16 scenario.samples=32 scenario.test_samples=8 train.epochs=1"
MODEL = "backbone=mingru backbone.pooling=none backbone.vocabulary=256 backbone.width=8"


@pytest.mark.parametrize(
    "options",
    ["", "scenario.general=python strategy.general=stream strategy.form=l1 strategy.mix=4"],
)
def test_a_run_counts_what_it_holds(command, options):
    arguments = (
        f"{SIZES} {MODEL} scenario.experiences=2 strategy=gere strategy.samples=10 {options}"
    )
    outcome = command(f"scenario=text {arguments} out=runs/a")
    assert outcome.status == 0, outcome.err
    result = json.loads(Path("runs/a/result.json").read_text())
    extra = 0 if options else 2 * 4 * 8
    assert result["memory_bytes"] == 10 * (16 * 9 + 8) + 4 * 10 * 16 * 8 + extra
    assert math.isfinite(result["accuracy"])


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"form": "cosine"},
            "strategy.form=cosine: expected one of margin, label, kl, l1, l2; choose one of these",
        ),
        (
            {"general": "last"},
            "strategy.general=last: expected one of first, stream; choose one of these",
        ),
        (
            {"weight": "large"},
            "strategy.weight=large: expected a number of at least 0, or dynamic; change it",
        ),
        (
            {"weight": -1},
            "strategy.weight=-1: expected a number of at least 0, or dynamic; change it",
        ),
        (
            {"weight": float("nan")},
            "strategy.weight=nan: expected a number of at least 0, or dynamic; change it",
        ),
        ({"samples": 0}, "strategy.samples=0: expected at least 1; raise it"),
        ({"mix": -1}, "strategy.mix=-1: expected at least 0; raise it"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError) as caught:
        GeRe(**settings)
    assert str(caught.value) == message


def test_what_is_no_language_model_is_refused(clusters):
    with pytest.raises(InputError) as caught:
        GeRe().check(clusters())
    assert str(caught.value) == (
        "strategy: GeRe replays texts to a language model, and this scenario does not ask for the "
        "next token at every position; set scenario=text, or choose another strategy"
    )


@pytest.mark.parametrize("scenario", ["split_digits", "languages"])
def test_a_run_on_what_is_no_language_modelling_is_refused(command, scenario):
    backbone = "backbone=mingru backbone.vocabulary=200" if scenario == "languages" else ""
    outcome = command(f"scenario={scenario} {backbone} strategy=gere out=runs/a")
    assert outcome.status == 2
    assert "this scenario does not ask for the next token at every position" in outcome.err


def test_a_scenario_without_general_texts_is_refused(command):
    outcome = command(f"scenario=text {SIZES} {MODEL} strategy=gere strategy.general=stream")
    assert outcome.status == 2
    assert (
        "strategy.general=stream: this scenario has no general texts apart from its experiences; "
        "name some by scenario.general, or set strategy.general=first"
    ) in outcome.err


def test_a_model_of_generated_weights_is_refused(command):
    outcome = command(f"scenario=text {SIZES} {MODEL} hypernet=mlp strategy=gere")
    assert outcome.status == 2
    assert "this model has no such parts; set hypernet=none" in outcome.err


def test_a_model_without_encoder_or_head_is_refused():
    GeRe().check_model(model())
    with pytest.raises(InputError, match="reads what an encoder gives to a head, and this model"):
        GeRe().check_model(nn.Sequential(nn.Linear(2, 2)))


def test_a_script_that_does_not_show_the_scenario_is_told(make_learner):
    scenario = texts()
    learner = make_learner(
        model(), GeRe(general="stream"), prepare=scenario.prepare, criterion=scenario.criterion
    )
    with pytest.raises(InputError, match=r"call its check\(scenario\) before training"):
        learner.train(scenario.train_stream[0])
