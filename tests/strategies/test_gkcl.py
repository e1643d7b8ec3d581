"""Generative kernel continual learning: what it solves for, its generator, and its state."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import strategies.gkcl as gkcl
from clplat.backbones.classifier import classifier
from clplat.backbones.heads import Multi
from clplat.backbones.mlp import MLP
from clplat.evaluation import Evaluator
from clplat.several import Several
from strategies.conditional_vae import ConditionalVAE
from strategies.contrastive import supervised_contrastive
from strategies.gkcl import GKCL
from strategies.kcl import KCL
from tests.handed_over import HandedOver
from tests.strategies.test_kcl import (
    LARGE,
    SHAPE,
    After,
    Before,
    begins_again,
    goes_on,
    make_model,
    refusal,
    trained,
)

QUICK = {"samples": 3, "hidden": 9, "latent": 2, "generator_steps": 5}


def make(**settings):
    return GKCL(**{**QUICK, **settings})


@pytest.fixture
def mlp():
    """In place of the one that `resume_and_compare` would take: with a kernel."""
    return lambda head: make_model()


class Drawing(Before):
    """Keeps the global generator too, as the strategy finds it."""

    def before_forward(self, strategy, **kwargs):
        super().before_forward(strategy)
        self.state = torch.get_rng_state()


def test_the_loss_of_every_batch_is_that_of_the_dense_kernel_on_new_samples(clusters, make_learner):
    strategy, before, coresets = make(), Drawing(), []

    def coreset_of(task):
        generator = copy.deepcopy(strategy.generator).double()
        labels = torch.tensor([2 * task] * 3 + [2 * task + 1] * 3)
        with torch.random.fork_rng():
            torch.set_rng_state(before.state)
            latents = generator.prior[labels] + torch.randn(6, 2)
        code = torch.cat([latents, torch.eye(6)[labels]], 1)
        coresets.append(generator.decoder(code).detach().reshape(6, *SHAPE))
        return coresets[-1], labels

    after = After(before, coreset_of)
    stream = clusters(task_labels=True).train_stream
    trained(make_learner, stream, before, strategy, after, lr=0.5)
    assert after.seen == 18
    assert not torch.equal(coresets[-1], coresets[-2])


def test_evaluation_has_the_same_samples_each_time_and_draws_no_others(clusters, make_learner):
    scenario, strategy = clusters(task_labels=True), make()
    learner = trained(make_learner, scenario.train_stream, strategy)
    solved = []
    for _ in range(2):
        state = torch.get_rng_state()
        learner.eval(scenario.test_stream)
        assert torch.equal(torch.get_rng_state(), state)
        solved.append([kernel.weight.clone() for kernel in learner.model.head.linears.values()])
        torch.randn(3)
    assert all(torch.equal(a, b) for a, b in zip(*solved, strict=True))
    assert all(weight.any() for weight in solved[0])
    other = make()
    other.load_state_dict(strategy.state_dict())
    labels = torch.tensor([0, 3])
    made_up = [s._generate(labels, 4) for s in (strategy, other)]
    assert torch.equal(*made_up)
    assert made_up[0].shape == (2, *SHAPE)


# --- the generator -------------------------------------------------------------------------------


def centres_of(stream):
    found = []
    for experience in stream:
        x = torch.stack([item[0] for item in experience.dataset]).flatten(1)
        y = torch.tensor([int(item[1]) for item in experience.dataset])
        found += [x[y == label].mean(0) for label in y.unique()]
    return torch.stack(found)


def test_it_makes_samples_of_every_class_after_the_last_experience(clusters, make_learner):
    stream = clusters(samples=30, task_labels=True).train_stream
    strategy = make(hidden=32, latent=4, generator_steps=100, generator_lr=0.01)
    trained(make_learner, stream, strategy, epochs=1)
    labels = torch.arange(6).repeat_interleave(30)
    made_up = strategy._generate(labels).flatten(1)
    right = (torch.cdist(made_up, centres_of(stream)).argmin(1) == labels).float()
    assert right.unflatten(0, (6, 30)).mean(1).min() > 0.6
    assert right.mean() > 0.85


def test_a_batch_has_of_each_class_seen_about_as_many(clusters, make_learner, monkeypatch):
    counts, bound = [], ConditionalVAE.negative_elbo

    def counting(vae, x, labels, noise):
        assert len(x) == len(labels) == len(noise) == 120
        counts.append(torch.bincount(labels, minlength=6))
        return bound(vae, x, labels, noise)

    monkeypatch.setattr(gkcl, "BATCH", 120)
    monkeypatch.setattr(ConditionalVAE, "negative_elbo", counting)
    trained(make_learner, clusters(task_labels=True).train_stream, make(), epochs=1)
    for k, expected in enumerate([[60, 60, 0, 0, 0, 0], [30] * 4 + [0, 0], [20] * 6]):
        mean = torch.stack(counts[5 * k : 5 * k + 5]).double().mean(0)
        torch.testing.assert_close(mean, torch.tensor(expected).double(), rtol=0.3, atol=0)
        assert [c[:4].sum().item() for c in counts[10:]] == [80] * 5


def test_earlier_classes_are_taught_by_the_generator_of_before_the_experience(
    clusters, make_learner, monkeypatch
):
    strategy, stream = make(contrast=0.0), clusters(task_labels=True).train_stream
    learner = trained(make_learner, stream[:1], strategy, epochs=1)
    before, seen, bound = copy.deepcopy(strategy.generator), [], ConditionalVAE.negative_elbo

    def watching(vae, x, labels, noise):
        seen.append((x, labels))
        return bound(vae, x, labels, noise)

    monkeypatch.setattr(ConditionalVAE, "negative_elbo", watching)
    learner.train(stream[1])
    assert not torch.equal(before.prior, strategy.generator.prior)
    images = torch.stack([item[0] for item in stream[1].dataset]).flatten(1)
    for x, labels in seen:
        is_real = (x[:, None] == images).all(2).any(1)
        assert torch.equal(is_real, labels >= 2)
        left = (x - before.decoder[2].bias).T
        solution = torch.linalg.lstsq(before.decoder[2].weight, left).solution
        off = (before.decoder[2].weight @ solution - left).norm(dim=0)
        assert off[labels < 2].max() < 1e-4  # in the range of the old decoder's last layer
        assert off[labels >= 2].min() > 1e-2


def fit_of(contrast, steps=80):
    strategy = make(contrast=contrast, generator_steps=steps, generator_lr=0.01, latent=3)
    torch.manual_seed(0)
    generator = strategy._new(16, 4)
    x, y = torch.rand(40, 16), torch.arange(4).repeat(10)
    torch.manual_seed(1)
    strategy._fit(generator, x, y, 4, [])
    return generator, x, y


def test_the_contrastive_term_gathers_the_latents_of_a_class():
    found = []
    for contrast in (0.0, 10.0):
        generator, x, y = fit_of(contrast)
        found.append(supervised_contrastive(generator.encode(x)[0], y, 0.1).item())
    assert found[1] < 0.9 * found[0]


def test_without_the_contrastive_term_it_is_the_bound_alone():
    generator, x, y = fit_of(0.0, steps=4)
    torch.manual_seed(0)
    plain = ConditionalVAE(16, 4, 9, 3)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    torch.manual_seed(1)
    for _ in range(4):
        rows = torch.randint(40, (gkcl.BATCH,))
        loss, _ = plain.negative_elbo(x[rows], y[rows], torch.randn(gkcl.BATCH, 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for a, b in zip(generator.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_contrastive_term_is_weighed_and_of_the_means_at_the_temperature():
    generator, x, y = fit_of(2.5, steps=1)
    torch.manual_seed(0)
    plain = ConditionalVAE(16, 4, 9, 3)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    torch.manual_seed(1)
    rows = torch.randint(40, (gkcl.BATCH,))
    loss, _ = plain.negative_elbo(x[rows], y[rows], torch.randn(gkcl.BATCH, 3))
    means = plain.encoder(x[rows])[:, :3]
    (loss + 2.5 * supervised_contrastive(means, y[rows], 0.1)).backward()
    optimizer.step()
    for a, b in zip(generator.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# --- in training ---------------------------------------------------------------------------------


def test_it_forgets_little(clusters, make_learner):
    scenario = clusters(samples=30, task_labels=True)
    strategy = make(samples=5, hidden=32, latent=4, generator_steps=100, generator_lr=0.01)
    options = {"model": make_model(**LARGE), "evaluator": Evaluator(), "epochs": 10, "lr": 0.05}
    learner = trained(make_learner, scenario.train_stream, strategy, **options)
    assert min(learner.eval(scenario.test_stream)) > 0.8


def test_a_task_that_comes_again_keeps_its_classes_and_replays_those_of_others(
    clusters, make_learner, monkeypatch
):
    fits, fit = [], GKCL._fit
    monkeypatch.setattr(GKCL, "_fit", lambda *given: (fits.append(given[4:]), fit(*given)))
    strategy, stream = make(), clusters(task_labels=True).train_stream
    learner = trained(make_learner, [stream[0], stream[1], stream[0]], strategy, epochs=1)
    assert strategy.classes == {0: [0, 1], 1: [2, 3]}
    assert fits == [(2, []), (2, [0, 1]), (2, [2, 3])]
    strategy.classes[2] = [1]  # as if the task had come with another class before
    learner.train(stream[2])
    assert strategy.classes[2] == [1, 4, 5]


def test_mixed_precision_trains_nearly_as_full_precision(clusters, assert_near_in_half):
    stream = clusters(task_labels=True).train_stream
    make_strategy = partial(make, generator_steps=20)
    assert_near_in_half(partial(make_model, **LARGE), make_strategy, stream, lr=0.01)


# --- its state -----------------------------------------------------------------------------------


def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare):
    strategy, restored = resume_and_compare(make, "multi")
    pairs = zip(strategy.generator.parameters(), restored.generator.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_loaded_state_is_not_written_to(clusters, make_learner):
    stream, strategy, other = clusters(task_labels=True).train_stream, make(), make()
    model = trained(make_learner, stream[:1], strategy, epochs=1).model
    state = strategy.state_dict()
    before = copy.deepcopy(state["generator"])
    other.load_state_dict(state)
    trained(make_learner, stream[1:], other, model=model, epochs=1)
    assert all(torch.equal(state["generator"][name], before[name]) for name in before)


@pytest.mark.parametrize("again", [goes_on, begins_again])
def test_it_goes_on_from_its_state_in_mid_experience(clusters, make_learner, again):
    models = []
    for plugin in (make(), HandedOver(make, 9, again)):
        stream = clusters(task_labels=True).train_stream
        models.append(trained(make_learner, stream, plugin).model)
    assert plugin.seen == 18
    pairs = zip(*(m.state_dict().values() for m in models), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_avalanches_own_loop_trains_to_the_same_weights(assert_same_in_avalanche):
    assert_same_in_avalanche(make_model, make, task_labels=True)


def test_memory_is_the_generators_weights_however_many_samples_it_makes(clusters, make_learner):
    stream = clusters(task_labels=True).train_stream
    assert make().memory_bytes == 0
    for samples in (3, 30):
        strategy = make(samples=samples)
        trained(make_learner, stream, strategy, epochs=1)
        encoder, decoder = (16 * 9 + 9) + (9 * 4 + 4), (8 * 9 + 9) + (9 * 16 + 16)
        assert strategy.memory_bytes == 4 * (encoder + decoder + 6 * 2)


# --- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"samples": 0}, "strategy.samples=0: expected at least 1; raise it"),
        ({"hidden": 0}, "strategy.hidden=0: expected at least 1; raise it"),
        ({"latent": 0}, "strategy.latent=0: expected at least 1; raise it"),
        ({"generator_steps": 0}, "strategy.generator_steps=0: expected at least 1; raise it"),
        ({"generator_lr": 0.0}, "strategy.generator_lr=0.0: expected more than 0; raise it"),
        ({"temperature": -1.0}, "strategy.temperature=-1.0: expected more than 0; raise it"),
        ({"contrast": -1.0}, "strategy.contrast=-1.0: expected 0 or more; raise it"),
    ],
)
def test_settings_out_of_range_are_refused(settings, text):
    assert refusal(lambda: make(**settings)) == text


def test_tasks_that_share_a_class_are_refused():
    """Its samples would be generated as the latest task had them."""
    streams = [
        SimpleNamespace(task_labels=[task], classes_in_this_experience=classes)
        for task, classes in enumerate([[0, 1], [2, 1]])
    ]
    text = refusal(lambda: make().check(SimpleNamespace(train_stream=streams, vocabulary=None)))
    assert text == (
        "scenario: class 1 is in tasks 0 and 1, and the generator of GKCL knows samples by their "
        "class alone; choose a scenario whose tasks have classes of their own, such as split_digits"
    )


def test_scenarios_and_models_that_do_not_fit_are_refused(clusters):
    scenario = clusters(task_labels=True)
    make().check(scenario)
    scenario.vocabulary = 10
    assert refusal(lambda: make().check(scenario)) == (
        "strategy: GKCL generates images and series, and this scenario's inputs are tokens; "
        "choose another strategy, or another scenario"
    )
    assert refusal(lambda: make().check_model(classifier(MLP(SHAPE, [9]), Multi(9, 6)))) == (
        "head: GKCL predicts by kernel ridge regression, and Multi does not; set head=kernel"
    )
    assert refusal(lambda: make().check_model(nn.Linear(2, 2))).startswith("hypernet: GKCL trains")
    text = refusal(lambda: Several(kcl=KCL(), gkcl=make()))
    assert "both kcl and gkcl decide on the batches" in text
