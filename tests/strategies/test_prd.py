"""PRD: its parts by loops, the loss of every batch in float64, and what it leaves alone."""

import copy
import math

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import MASKED, single
from clplat.backbones.learned_prototypes import learned_prototypes
from clplat.backbones.mlp import MLP
from clplat.errors import InputError
from clplat.prepare import Prepare
from clplat.several import Several
from strategies.der import DER
from strategies.er_ace import ERACE
from strategies.ewc import EWC
from strategies.lwf import LwF
from strategies.prd import PRD, prototype_distance, relation_distillation, relations
from strategies.replay import Replay
from tests.strategies.test_contrastive import naive_contrastive
from tests.strategies.test_mir import hand_over_and_compare

HEADS = ["single", "multi"]


def make_model(head="single", dropout=0.0):
    torch.manual_seed(0)
    prototypes = learned_prototypes(12, 6, head == "multi", projection=5)
    return classifier(MLP((1, 4, 4), [12], dropout), prototypes)


@pytest.fixture
def mlp():
    """In place of the one that `resume_and_compare` would take: with prototypes."""
    return make_model


def trained(make_learner, stream, *plugins, head="single", **options):
    learner = make_learner(make_model(head), *plugins, **options)
    torch.manual_seed(1)
    for experience in stream:
        learner.train(experience)
    return learner


# --- the parts of the loss ---------------------------------------------------------------------


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


SIZES = [3, 1, 4]


def naive_scores(feature, group):
    """Of one feature, to each prototype of a group."""
    return [float(feature @ p) / math.sqrt(float(p @ p)) for p in group]


def naive_distillation(features, groups, old_features, old_groups):
    total = 0.0
    for f, g in zip(features, old_features, strict=True):
        for group, old_group in zip(groups, old_groups, strict=True):
            new, old = naive_scores(f, group), naive_scores(g, old_group)
            p, q = ([math.exp(s) / sum(map(math.exp, row)) for s in row] for row in (new, old))
            total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return total / len(features)


def test_relations_are_features_times_unit_prototypes():
    features, groups = 4 * drawn(5, 7), [drawn(n, 7, seed=n) for n in SIZES]
    found = relations(features, groups)
    assert found.shape == (5, 4, 3)
    for k, group in enumerate(groups):
        expected = torch.tensor([naive_scores(f, group) for f in features]).double()
        torch.testing.assert_close(found[:, : len(group), k], expected, rtol=1e-5, atol=1e-6)
        assert (found[:, len(group) :, k] == MASKED).all()


def test_relations_are_distilled_as_by_loops_over_groups():
    features, old_features = 4 * drawn(5, 7), 4 * drawn(5, 7, seed=1)
    groups, old_groups = ([drawn(n, 7, seed=n + k) for n in SIZES] for k in (2, 9))
    found = relation_distillation(relations(features, groups), relations(old_features, old_groups))
    expected = naive_distillation(features, groups, old_features, old_groups)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    same = relations(old_features, old_groups)
    assert relation_distillation(same, same) == 0


def test_distillation_has_the_gradients_of_finite_differences():
    inputs = [drawn(3, 4).requires_grad_()]
    inputs += [drawn(n, 4, seed=n).requires_grad_() for n in SIZES]
    old = relations(drawn(3, 4, seed=9), [drawn(n, 4, seed=n + 9) for n in SIZES])

    def loss(features, *groups):
        return relation_distillation(relations(features, groups), old)

    assert torch.autograd.gradcheck(loss, inputs)
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    # One prototype alone in its group has no relations, as its softmax is 1.
    assert [bool(g.any()) for g in gradients] == [True, True, False, True]


def test_the_distance_to_prototypes_is_that_of_a_loop():
    features, prototypes = drawn(5, 7), 3 * drawn(4, 7, seed=1)
    rows = [2, 0, 2, 3, 1]
    own = torch.nn.functional.one_hot(torch.tensor(rows), 4).bool()
    cosines = [
        float(f @ prototypes[k] / (f.norm() * prototypes[k].norm()))
        for f, k in zip(features, rows, strict=True)
    ]
    expected = 1 - sum(cosines) / 5
    assert prototype_distance(features, prototypes, own).item() == pytest.approx(expected)


# --- the loss of a batch -----------------------------------------------------------------------


class Watch(SupervisedPlugin):
    """Stands behind the strategy; each loss and its gradients in float64 by other means."""

    def __init__(self, tests, multi, *settings):
        super().__init__()
        self.tests, self.multi, self.settings = tests, multi, settings
        self.old, self.seen, self.distilled = None, [], []

    def before_forward(self, strategy, **kwargs):
        self.model = copy.deepcopy(strategy.model).double()
        self.views, self.labels, self.tasks = (column.clone() for column in strategy.mbatch)

    def keys(self, head):
        return list(zip(head.tasks.tolist(), head.columns.tolist(), strict=True))

    def rows(self, model, wanted):
        keys, table = self.keys(model.head), torch.cat([*model.head.groups])
        return [table[keys.index(key)] for key in wanted]

    def after_backward(self, strategy, **kwargs):
        temperature, prototypes, distillation = self.settings
        features = self.model.encoder(self.views.double())
        tasks = self.tasks.tolist() if self.multi else [0] * len(self.labels)
        own = self.rows(self.model, list(zip(tasks, self.labels.tolist(), strict=True)))
        cosines = [
            f.detach() @ p / (f.detach().norm() * p.norm())
            for f, p in zip(features, own, strict=True)
        ]
        projected = self.model.head.projection(features)
        expected = naive_contrastive(projected, self.labels.tolist(), temperature)
        expected = expected + prototypes * (1 - sum(cosines) / len(cosines))
        for wanted in self.seen:
            new, old = (torch.stack(self.rows(m, wanted)) for m in (self.model, self.old))
            with torch.no_grad():
                q = (self.old.encoder(self.views.double()) @ unit(old).T).softmax(1)
            p = (features @ unit(new).T).softmax(1)
            divergence = (q * (q / p).log()).sum(1).mean()
            self.distilled.append(divergence.item())
            expected = expected + distillation * divergence
        assert strategy.loss.item() == pytest.approx(expected.item(), rel=1e-4)
        expected.backward()
        for (name, p), q in zip(
            strategy.model.named_parameters(), self.model.parameters(), strict=True
        ):
            if p.grad is None or q.grad is None:
                assert all(g is None or not g.any() for g in (p.grad, q.grad)), name
            else:
                torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-5, msg=name)

    def after_training_iteration(self, strategy, **kwargs):
        """Tasks to come get prototypes, which nothing is held to."""
        strategy.eval(self.tests)

    def after_training_exp(self, strategy, **kwargs):
        self.old = copy.deepcopy(strategy.model).double().eval()
        task = strategy.experience.task_labels[0] if self.multi else 0
        classes = sorted(strategy.experience.classes_in_this_experience)
        if (key := [(task, c) for c in classes]) not in self.seen:
            self.seen.append(key)


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def sharpened(model):
    """With features nine times as large, whose relations are less even."""
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter *= 9
    return model


@torch.no_grad()
def perturb(model):
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn_like(parameter)


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_of_every_batch_is_the_papers(clusters, make_learner, head):
    scenario = clusters(task_labels=head == "multi")
    watch = Watch(scenario.test_stream, head == "multi", 0.3, 1.5, 3.0)
    strategy = PRD(0.3, 1.5, 3.0, noise=0.2)
    learner = make_learner(sharpened(make_model(head)), strategy, watch, epochs=1)
    torch.manual_seed(1)
    for experience in [*scenario.train_stream, scenario.train_stream[0]]:
        learner.train(experience)
        perturb(learner.model)
    assert len(watch.distilled) == 3 * (0 + 1 + 2 + 3)
    assert min(watch.distilled) > 1e-4


class Passes(SupervisedPlugin):
    """What the model is given, and what the loop has after the pass."""

    def __init__(self):
        super().__init__()
        self.views, self.after = [], []

    def pairs(self):
        return list(zip(self.views, self.after, strict=True))

    def before_forward(self, strategy, **kwargs):
        self.views.append([column.clone() for column in strategy.mbatch])

    def after_forward(self, strategy, **kwargs):
        expected = copy.deepcopy(strategy.model).eval()(strategy.mb_x)
        self.after.append((strategy.mb_x, strategy.mb_y, strategy.mb_task_id))
        torch.testing.assert_close(strategy.mb_output, expected)


def passes(make_learner, stream, **settings):
    watch = Passes()
    learner = make_learner(make_model(), PRD(**settings.pop("strategy", {})), watch, **settings)
    torch.manual_seed(1)
    learner.train(stream)
    return watch


def test_the_loop_has_its_batch_again_and_the_answers_to_it(clusters, make_learner):
    watch = passes(make_learner, clusters().train_stream)
    for (views, *labels), (x, *columns) in watch.pairs():
        assert torch.equal(views[: len(x)], x)
        for both, once in zip(labels, columns, strict=True):
            assert torch.equal(both, once.repeat(2))


def test_the_second_view_has_noise(clusters, make_learner):
    stream = clusters(samples=30).train_stream
    watch = passes(make_learner, stream, strategy={"noise": 0.3})
    added = torch.cat([v[0][len(a[0]) :] - a[0] for v, a in watch.pairs()])
    assert added.std().item() == pytest.approx(0.3, rel=0.05)
    assert added.mean().item() == pytest.approx(0.0, abs=0.02)
    watch = passes(make_learner, stream, strategy={"noise": 0.0})
    assert all(torch.equal(v[0], a[0].repeat(2, 1, 1, 1)) for v, a in watch.pairs())


def test_the_second_view_is_another_augmentation_of_what_is_stored(clusters, make_learner):
    calls = []

    def numbered(x, training):
        calls.append((x.dtype, training))
        return Prepare()(x) + len(calls)

    stream = clusters().train_stream[0]
    watch = passes(make_learner, stream, strategy={"noise": 0.0}, prepare=numbered)
    assert set(calls) == {(torch.uint8, True)}
    for views, after in watch.pairs():
        first, second = views[0].split(len(after[0]))
        torch.testing.assert_close(second, first + 1)


@pytest.mark.parametrize("head", HEADS)
def test_each_encoder_runs_once_an_iteration_on_both_views(clusters, make_learner, head):
    strategy, stream = PRD(), clusters(task_labels=head == "multi").train_stream
    learner = trained(make_learner, stream[:2], strategy, head=head)
    sizes = []
    for encoder in (learner.model.encoder, strategy._old):
        encoder.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    learner.train(stream[2])
    assert sizes == [16] * 12
    assert len(learner.model.encoder._forward_hooks) == 1  # the tap is closed


class Adds(SupervisedPlugin):
    def before_backward(self, strategy, **kwargs):
        strategy.loss = strategy.loss + 1.0


def test_what_others_add_to_the_loss_stays_before_it_and_after_it(clusters, make_learner):
    losses = []
    for plugins in ([PRD()], [Adds(), PRD()], [PRD(), Adds()]):
        learner = trained(make_learner, clusters().train_stream, *plugins)
        losses.append(torch.stack(learner.losses))
        assert isinstance(learner._criterion, nn.CrossEntropyLoss)
    torch.testing.assert_close(losses[1], losses[0] + 1)
    torch.testing.assert_close(losses[2], losses[0] + 1)


@pytest.mark.parametrize("head", HEADS)
def test_it_goes_with_strategies_that_leave_the_pass_alone(clusters, make_learner, head):
    for other in (LwF(), EWC(1.0), Replay(12)):
        stream = clusters(task_labels=head == "multi").train_stream
        learner = trained(make_learner, stream, other, PRD(), head=head)
        assert all(p.isfinite().all() for p in learner.model.parameters())


# --- what is held, and what is left alone ------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, 0.1, 0.9, weight_decay=0.01, fused=True),
    "adam": lambda groups: torch.optim.Adam(groups, 0.01, weight_decay=0.01, fused=True),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_distillation_earlier_prototypes_stay_to_the_bit(
    clusters, make_learner, optimizer, head
):
    stream = clusters(task_labels=head == "multi").train_stream
    for strength in (0.0, 1.0):
        strategy = PRD(distillation=strength)
        learner = make_learner(make_model(head), strategy, optimizer=OPTIMIZERS[optimizer])
        learner.train(stream[0])
        before = learner.model.head.groups[0].detach().clone()
        learner.train([stream[1], stream[2]])
        groups = learner.model.head.groups
        assert torch.equal(groups[0], before) == (strength == 0)
        assert len(groups) == 3


def test_the_first_experience_has_nothing_to_distil(clusters, make_learner, weights):
    models = []
    for strength in (0.0, 4.0):
        learner = trained(make_learner, clusters().train_stream[:1], PRD(distillation=strength))
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_prototypes_move_their_features_only_by_what_is_distilled(clusters, make_learner):
    """Their own loss has no gradient for the encoder."""
    stream, encoders = clusters().train_stream, []
    for weight in (0.0, 5.0):
        learner = trained(make_learner, stream, PRD(prototypes=weight, distillation=0.0))
        encoders.append(learner.model.encoder.state_dict())
    assert all(torch.equal(encoders[0][name], encoders[1][name]) for name in encoders[0])


def test_the_old_encoder_and_prototypes_stay_as_they_were(clusters, make_learner, weights):
    stream, strategy = clusters().train_stream, PRD()
    torch.manual_seed(0)
    learner = make_learner(make_model(dropout=0.5), strategy)
    learner.train(stream[0])
    then, prototypes = weights(learner.model.encoder), learner.model.head.groups[0].clone()
    seen = []

    class Look(SupervisedPlugin):
        def after_training_iteration(self, loop, **kwargs):
            seen.append((weights(strategy._old), strategy.old_prototypes[0].clone()))

    make_learner(learner.model, strategy, Look()).train(stream[1])
    assert len(seen) == 6
    assert all(torch.equal(state[name], then[name]) for state, _ in seen for name in then)
    assert all(torch.equal(old, prototypes) for _, old in seen)
    assert not strategy._old.training
    assert not any(p.requires_grad for p in strategy._old.parameters())


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_it_trains_in_mixed_precision(clusters, make_learner, weights, head, precision):
    models = []
    for chosen in ("fp32", precision):
        stream = clusters(task_labels=head == "multi").train_stream
        learner = trained(make_learner, stream, PRD(), head=head, precision=chosen, lr=0.02)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=0.05, atol=0.02)


def test_of_accumulated_batches_the_mean_gradient_moves_the_weights(clusters, make_learner):
    stream = clusters(samples=8).train_stream[:1]  # two batches an epoch

    class Sum(SupervisedPlugin):
        def __init__(self):
            super().__init__()
            self.parts = []

        def before_backward(self, strategy, **kwargs):
            parameters = [p for p in strategy.model.parameters() if p.requires_grad]
            self.parts.append(torch.autograd.grad(strategy.loss, parameters, retain_graph=True))

    watch = Sum()
    learner = make_learner(make_model(), PRD(), watch, epochs=1, accumulate=2)
    learner.train(stream)
    for p, first, second in zip(learner.model.parameters(), *watch.parts, strict=True):
        torch.testing.assert_close(p.grad, (first + second) / 2)


@pytest.mark.parametrize("head", HEADS)
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, restored = resume_and_compare(PRD, head)
    assert restored.trained == strategy.trained == [0, 1, 2]


@pytest.mark.parametrize("head", HEADS)
def test_a_strategy_restored_in_mid_experience_goes_on_to_the_same_bit(
    clusters, make_learner, head
):
    assert hand_over_and_compare(clusters, make_model, make_learner, PRD, False, head)


class Reloads(SupervisedPlugin):
    """Gives a strategy its own state again after each batch, the last of an experience too."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy = strategy

    def after_training_iteration(self, strategy, **kwargs):
        self.strategy.load_state_dict(self.strategy.state_dict())


def test_its_own_state_given_again_changes_nothing(clusters, make_learner, weights):
    models = []
    strategies = PRD(), PRD()
    for plugins in ([strategies[0]], [strategies[1], Reloads(strategies[1])]):
        learner = trained(make_learner, clusters().train_stream, *plugins, epochs=1)
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("head", HEADS)
def test_avalanches_own_loop_trains_to_the_same_weights(assert_same_in_avalanche, head):
    assert_same_in_avalanche(lambda: make_model(head), PRD, task_labels=head == "multi")


def test_it_keeps_the_relations_of_new_samples_to_old_prototypes(clusters, make_learner):
    stream, divergence = clusters(samples=30).train_stream, []
    x = torch.stack([item[0] for item in stream[1].dataset])
    for strength in (0.0, 4.0):
        torch.manual_seed(1)
        learner = make_learner(sharpened(make_model()), PRD(distillation=strength), epochs=5)
        relations_of = []
        for experience in (stream[0], stream[1]):
            learner.train(experience)
            model = learner.model
            relations_of.append(relations(model.encoder(x), model.head.groups[:1]).detach())
        divergence.append(relation_distillation(*reversed(relations_of)).item())
    assert divergence[1] < 0.2 * divergence[0]


# --- what it refuses ---------------------------------------------------------------------------


def refusal(what):
    with pytest.raises(InputError) as caught:
        what()
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "strategy.temperature=0: expected more than 0; raise it"),
        ({"prototypes": -1}, "strategy.prototypes=-1: expected 0 or more; raise it"),
        ({"distillation": -2.0}, "strategy.distillation=-2.0: expected 0 or more; raise it"),
        ({"noise": -0.1}, "strategy.noise=-0.1: expected 0 or more; raise it"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    assert refusal(lambda: PRD(**settings)) == message


def test_noise_on_tokens_is_refused(clusters):
    scenario = clusters()
    PRD().check(scenario)
    scenario.vocabulary = 9
    PRD(noise=0).check(scenario)
    assert refusal(lambda: PRD().check(scenario)) == (
        "strategy.noise=0.1: this scenario's inputs are tokens, which noise cannot be added to; "
        "set strategy.noise=0"
    )


def test_models_without_an_encoder_or_prototypes_are_refused():
    for head in HEADS:
        PRD().check_model(make_model(head))
    linear = classifier(MLP((1, 4, 4), [5]), single(5, 6))
    assert refusal(lambda: PRD().check_model(linear)) == (
        "head: PRD learns a prototype of each class, and Linear has none; set "
        "head=learned_prototypes"
    )
    assert refusal(lambda: PRD().check_model(nn.Flatten())) == (
        "hypernet: PRD compares an encoder with what it was, and Flatten generates its weights "
        "for each task; set hypernet=none"
    )


@pytest.mark.parametrize(
    ("other", "what"), [(DER(12), "forward pass"), (ERACE(12), "forward pass")]
)
def test_strategies_that_decide_on_the_same_do_not_go_with_it(other, what):
    text = refusal(lambda: Several(prd=PRD(), other=other))
    assert f"both prd and other decide on the {what}" in text
