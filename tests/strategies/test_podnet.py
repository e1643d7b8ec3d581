"""PODNet: its losses by hand, the proxies it places and holds, and what it leaves alone."""

import copy
import math
from collections import Counter

import pytest
import torch
from avalanche.core import SupervisedPlugin
from sklearn.cluster import KMeans
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.convnet import ConvNet
from clplat.backbones.heads import MASKED, single
from clplat.backbones.local_similarity import LocalSimilarity
from clplat.backbones.mlp import MLP
from clplat.backbones.resnet import ResNet
from clplat.backbones.sequence import SequenceModel
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.layers.gated import MinGRU
from clplat.prepare import Prepare
from clplat.several import Several
from strategies.der import DER
from strategies.podnet import PODNet, hinged_nca, released_nca
from strategies.replay import Replay
from tests.handed_over import HandedOver

SHAPE, CLASSES, PROXIES = (1, 4, 4), 6, 3
ENCODERS = {
    "convnet": lambda: ConvNet(SHAPE, [3, 5]),
    "resnet": lambda: ResNet(SHAPE, [3, 4], 2),
    "sequence": lambda: SequenceModel(SHAPE, MinGRU, width=6, depth=2),
}


def make_model(encoder="convnet"):
    torch.manual_seed(0)
    made = ENCODERS[encoder]()
    return classifier(made, LocalSimilarity(made.width, CLASSES, PROXIES))


@pytest.fixture
def mlp():
    """In place of the one that `resume_and_compare` would take: with stages and proxies."""
    return lambda head: make_model()


def make(**settings):
    return PODNet(**{"capacity": 12, "balance_epochs": 2, "balance_lr": 0.05, **settings})


def trained(make_learner, stream, strategy, encoder="convnet", others=(), **options):
    learner = make_learner(make_model(encoder), strategy, *others, **options)
    torch.manual_seed(1)
    for experience in stream:
        learner.train(experience)
    return learner


# --- the losses of the classifier --------------------------------------------------------------


def logits_and_targets(samples=5, classes=4):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(samples, classes, dtype=torch.float64, generator=generator)
    return logits, torch.randint(classes, (samples,), generator=generator)


def naive_hinged(logits, targets, margin):
    total = 0.0
    for row, y in zip(logits.tolist(), targets.tolist(), strict=True):
        others = sum(math.exp(z) for c, z in enumerate(row) if c != y)
        total += max(0.0, -math.log(math.exp(row[y] - margin) / others))
    return total / len(logits)


def naive_released(logits, targets):
    """The published form: less the largest, and exp(0) in place of the target's own term."""
    total = 0.0
    for row, y in zip(logits.tolist(), targets.tolist(), strict=True):
        shifted = [z - max(row) for z in row]
        below = sum(math.exp(0.0 if c == y else z) for c, z in enumerate(shifted))
        total += math.log(below) - shifted[y]
    return total / len(logits)


@pytest.mark.parametrize("margin", [0.0, 0.6, 3.0])
def test_the_hinged_loss_is_that_of_a_loop(margin):
    logits, targets = logits_and_targets(9)
    found = hinged_nca(logits, targets, torch.tensor(margin).double())
    assert found.item() == pytest.approx(naive_hinged(logits, targets, margin), rel=1e-6)


def test_the_released_loss_is_that_of_a_loop():
    logits, targets = logits_and_targets(9)
    assert released_nca(logits, targets).item() == pytest.approx(naive_released(logits, targets))


def test_the_losses_have_the_gradients_of_finite_differences():
    logits, targets = logits_and_targets()
    margin = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    inputs = (logits.requires_grad_(), margin)
    assert torch.autograd.gradcheck(lambda z, m: hinged_nca(z, targets, m), inputs)
    assert torch.autograd.gradcheck(lambda z: released_nca(z, targets), logits)


def test_a_sample_that_is_nearer_by_the_margin_costs_nothing_and_has_no_gradient():
    logits = torch.tensor([[5.0, 0.0, 1.0], [0.0, 2.0, 0.0]], requires_grad=True)
    loss = hinged_nca(logits, torch.tensor([0, 1]), torch.tensor(0.6))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert not gradient.any()


def test_masked_classes_do_not_count_and_a_class_alone_costs_nothing():
    logits, targets = torch.tensor([[1.0, 2.0], [0.5, 0.0]]), torch.tensor([0, 1])
    wider = torch.cat([logits, torch.full((2, 3), MASKED)], 1)
    margin = torch.tensor(0.6)
    assert hinged_nca(wider, targets, margin) == hinged_nca(logits, targets, margin)
    assert released_nca(wider, targets) == released_nca(logits, targets)
    alone = torch.tensor([[1.0, MASKED, MASKED]], requires_grad=True)
    for loss in (hinged_nca(alone, targets[:1], margin), released_nca(alone, targets[:1])):
        (gradient,) = torch.autograd.grad(loss, alone)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


# --- the loss of a batch -----------------------------------------------------------------------


class Before(SupervisedPlugin):
    """Keeps the model of each iteration; stands before the strategy."""

    def __init__(self):
        super().__init__()
        self.model = None

    def before_forward(self, strategy, **kwargs):
        self.model = copy.deepcopy(strategy.model).double()


class After(SupervisedPlugin):
    """Compares each loss and its gradients with a computation in float64 by other means."""

    def __init__(self, before, spatial, flat, loss, margin):
        super().__init__()
        self.before, self.spatial, self.flat = before, spatial, flat
        self.loss, self.margin = loss, margin
        self.teacher, self.seen, self.distances = None, set(), []

    def after_backward(self, strategy, **kwargs):
        model, x, y = self.before.model, strategy.mb_x.double(), strategy.mb_y
        stages, features = passed(model.encoder, x)
        logits, eta = naive_logits(model.head, features), model.head.scale
        if self.loss == "paper":
            of_class = hinge_over_classes(logits, y, float(eta.detach()) * self.margin)
        else:
            known = [model.head.columns.tolist().index(int(label)) for label in y]
            rows = logits[:, model.head.columns]
            largest = rows.amax(1)
            terms = [
                torch.log(1 + sum((z - m).exp() for c, z in enumerate(row) if c != k)) + m - row[k]
                for row, k, m in zip(rows, known, largest, strict=True)
            ]
            of_class = torch.stack(terms).mean()
        expected = of_class
        if self.teacher is not None:
            with torch.no_grad():
                old_stages, old_features = passed(self.teacher, x)
            now = set(strategy.experience.classes_in_this_experience)
            factor = math.sqrt(len(self.seen | now) / len(now))
            spatial = [pooled_distance(a, b) for a, b in zip(stages, old_stages, strict=True)]
            cosine = (features * old_features).sum(1) / (
                features.norm(dim=1) * old_features.norm(dim=1)
            )
            distance = self.spatial * sum(spatial) / len(spatial)
            distance = distance + self.flat * (1 - cosine).mean()
            expected = expected + factor * distance
            self.distances.append(float(distance.detach()))
        assert strategy.loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
        expected.backward()
        for (name, p), q in zip(strategy.model.named_parameters(), model.parameters(), strict=True):
            if p.grad is None:
                assert not p.requires_grad or q.grad is None, name
            else:
                torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=2e-5, msg=name)

    def after_training_exp(self, strategy, **kwargs):
        self.teacher = copy.deepcopy(strategy.model.encoder).double().eval()
        self.seen |= set(strategy.experience.classes_in_this_experience)


def passed(encoder, x):
    """What each stage gives, and the features, with no hook."""
    stages = []
    if isinstance(encoder, ConvNet):
        for stage in encoder.stages:
            x = stage(x)
            stages.append(x)
        return stages, x.mean((2, 3))
    if isinstance(encoder, ResNet):
        x = encoder.stem(x)
        for stage in encoder.stages:
            for block in stage:
                hidden = block.first_norm(block.first(x)).relu()
                hidden = block.second_norm(block.second(hidden)) + block.shortcut(x)
                x = hidden.relu()
            stages.append(hidden)
        return stages, x.mean((2, 3))
    x = encoder.embed(x)
    for block in encoder.blocks:
        x, _ = block(x)
        stages.append(x)
    return stages, encoder.norm(x)[:, -1]


def pooled_distance(new, old):
    """Of maps or sequences, as the paper has it: sums over width, and over height."""
    parts = []
    for x in (new, old):
        x = x if x.ndim == 4 else x[:, None]
        sums = torch.einsum("bchw,bchw->bch", x, x), torch.einsum("bchw,bchw->bcw", x, x)
        both = torch.cat([s.reshape(len(x), -1) for s in sums], 1)
        parts.append(both / both.square().sum(1, keepdim=True).sqrt())
    return (parts[0] - parts[1]).square().sum(1).clamp_min(1e-40).sqrt().mean()


def naive_logits(head, features):
    f = features / features.norm(dim=1, keepdim=True)
    logits = torch.full((len(f), CLASSES), -math.inf, dtype=f.dtype)
    columns = dict(zip(head.columns.tolist(), torch.cat([*head.groups]), strict=True))
    for label, proxies in columns.items():
        w = proxies / proxies.norm(dim=1, keepdim=True)
        s = -(f[:, None] - w).square().sum(2)
        logits[:, label] = head.scale * (s.exp() * s).sum(1) / s.exp().sum(1)
    return logits


def hinge_over_classes(logits, y, margin):
    terms = []
    for row, label in zip(logits, y.tolist(), strict=True):
        others = torch.cat([row[:label], row[label + 1 :]])
        terms.append((others.exp().sum().log() - (row[label] - margin)).clamp_min(0))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("loss", ["paper", "released"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_loss_of_every_batch_is_the_papers(clusters, make_learner, encoder, loss):
    before = Before()
    after = After(before, 2.0, 0.7, loss, 0.4)
    strategy = make(spatial=2.0, flat=0.7, loss=loss, margin=0.4)
    learner = make_learner(make_model(encoder), before, strategy, after, lr=0.05)
    stream = clusters().train_stream
    for experience in stream:
        learner.train(experience)
    assert len(after.distances) == 12
    assert sorted(after.distances)[2] > 1e-3  # an experience may begin at no distance


def test_the_margin_is_of_similarities_before_the_scale():
    model = make_model()
    with torch.no_grad():
        model.head.scale.fill_(4.0)
    logits, targets = logits_and_targets()
    found = PODNet(margin=0.5).criterion(model.head)(logits, targets)
    assert found.item() == pytest.approx(naive_hinged(logits, targets, 2.0))


def test_the_scale_grows_though_the_margin_is_not_met(clusters, make_learner):
    learner = trained(make_learner, clusters().train_stream, make(), epochs=10)
    assert learner.model.head.scale > 1.5


class Weights(SupervisedPlugin):
    """The sum of both distances' weights at each experience."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.factors = strategy, []

    def before_training_epoch(self, strategy, **kwargs):
        self.factors.append(self.strategy.factor)


def test_the_weight_grows_with_the_classes_seen_for_each_new_one(clusters, make_learner):
    strategy = make()
    watch = Weights(strategy)
    stream = clusters().train_stream
    trained(make_learner, [*stream, stream[0]], strategy, others=[watch], epochs=1)
    expected = [1.0, math.sqrt(2), math.sqrt(3), math.sqrt(3)]
    assert watch.factors == pytest.approx(expected)


# --- proxies -----------------------------------------------------------------------------------


class Proxies(SupervisedPlugin):
    """Copies of the head's groups at the begin of an experience, at its end, and balanced."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.begun, self.ended, self.balanced = strategy, [], [], []
        self.models = []

    @staticmethod
    def copies(strategy):
        return [group.detach().clone() for group in strategy.model.head.groups]

    def before_training_exp(self, strategy, **kwargs):
        self.models.append(copy.deepcopy(strategy.model).eval())
        self.strategy.before_training_exp(strategy)
        self.begun.append(self.copies(strategy))

    def before_forward(self, strategy, **kwargs):
        self.strategy.before_forward(strategy)

    def before_backward(self, strategy, **kwargs):
        self.strategy.before_backward(strategy)

    def after_training_exp(self, strategy, **kwargs):
        self.ended.append(self.copies(strategy))
        self.strategy.after_training_exp(strategy)
        self.balanced.append(self.copies(strategy))


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, 0.1, 0.9, weight_decay=0.01, fused=True),
    "adam": lambda groups: torch.optim.Adam(groups, 0.01, weight_decay=0.01, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_old_proxies_stay_in_the_main_phase_and_all_are_balanced_after_it(
    clusters, make_learner, optimizer
):
    watch = Proxies(make())
    learner = make_learner(make_model(), watch, optimizer=OPTIMIZERS[optimizer])
    learner.train(clusters().train_stream)
    for k in range(3):
        moved = [
            not torch.equal(*pair) for pair in zip(watch.begun[k], watch.ended[k], strict=True)
        ]
        assert moved == [False] * k + [True]
        pairs = zip(watch.ended[k], watch.balanced[k], strict=True)
        assert [not torch.equal(*pair) for pair in pairs] == [k > 0] * (k + 1)
    assert all(group.requires_grad for group in learner.model.head.groups)


def test_new_proxies_are_centres_of_the_classes_features_at_the_length_of_old_ones(
    clusters, make_learner
):
    watch, stream = Proxies(make()), clusters().train_stream
    trained(make_learner, stream, watch)
    assert torch.equal(watch.begun[0][0], watch.models[0].head.groups[0])
    for k in (1, 2):
        length = torch.cat(watch.begun[k][:k]).norm(dim=2).mean()
        x = torch.stack([item[0] for item in stream[k].dataset])
        y = torch.tensor([int(item[1]) for item in stream[k].dataset])
        features = watch.models[k].features(x).detach().double()
        for label, found in zip((2 * k, 2 * k + 1), watch.begun[k][k].double(), strict=True):
            points = nn.functional.normalize(features[y == label], dim=1).numpy()
            centres = found / length
            lloyd = KMeans(PROXIES, init=centres.numpy(), n_init=1, tol=0).fit(points)
            fixed = torch.tensor(lloyd.cluster_centers_)
            torch.testing.assert_close(centres, fixed, rtol=1e-4, atol=1e-5)
            best = KMeans(PROXIES, n_init=20, random_state=0).fit(points)
            one = KMeans(1, n_init=1, random_state=0).fit(points)
            assert lloyd.inertia_ < best.inertia_ + 0.5 * (one.inertia_ - best.inertia_)


def test_placing_proxies_leaves_the_global_generator_and_the_model_alone(clusters, make_learner):
    strategy, stream = make(), clusters().train_stream
    learner = trained(make_learner, stream[:1], strategy)
    learner.experience = stream[1]
    learner.model_adaptation()
    before, state = torch.get_rng_state(), copy.deepcopy(learner.model.state_dict())
    strategy._place_proxies(learner)
    assert torch.equal(torch.get_rng_state(), before)
    assert learner.model.training
    changed = [n for n, t in learner.model.state_dict().items() if not torch.equal(t, state[n])]
    assert changed == ["head.groups.1"]


# --- the balanced phase ------------------------------------------------------------------------


def test_the_head_alone_is_trained_on_the_memory_of_old_and_new_classes(
    clusters, make_learner, monkeypatch
):
    stream, seen = clusters().train_stream, []
    strategy = make(balance_epochs=3, batch_size=4)
    kept = {}
    balance = PODNet._balance

    def watched(self, learner):
        model, optimizer = learner.model, learner.optimizer
        kept["state"] = copy.deepcopy(model.state_dict())
        kept["moments"] = copy.deepcopy(optimizer.state_dict())
        kept["memory"] = Counter(self.memory.all()[1].tolist())
        handle = model.encoder.register_forward_pre_hook(
            lambda module, inputs: seen.append((module.training, len(inputs[0])))
        )
        balance(self, learner)
        handle.remove()
        kept["after"] = copy.deepcopy(model.state_dict())
        assert str(optimizer.state_dict()) == str(kept["moments"])
        assert model.training

    monkeypatch.setattr(PODNet, "_balance", watched)
    trained(make_learner, stream[:2], strategy)
    assert kept["memory"] == {0: 3, 1: 3, 2: 3, 3: 3}
    assert seen == [(False, 8), (False, 4)] * 3
    changed = {n for n, t in kept["after"].items() if not torch.equal(t, kept["state"][n])}
    assert changed == {"head.groups.0", "head.groups.1", "head.scale"}


def test_the_balanced_phase_is_sgd_with_momentum_on_the_loss(clusters, make_learner, monkeypatch):
    strategy, kept = make(balance_epochs=0, capacity=8), {}
    learner = trained(make_learner, clusters().train_stream[:2], strategy)  # a batch a pass
    kept["model"] = copy.deepcopy(learner.model).double().eval()
    strategy.balance_epochs, strategy.balance_lr = 4, 0.03
    strategy._balance(learner)

    model = kept["model"]
    x, y, _ = strategy.memory.all()
    features = model.features(x.double() / 255).detach()
    velocity = {p: torch.zeros_like(p) for p in model.head.parameters()}
    for _ in range(4):
        loss = hinge_over_classes(
            naive_logits(model.head, features), y, 0.6 * float(model.head.scale.detach())
        )
        gradients = torch.autograd.grad(loss, [*velocity])
        with torch.no_grad():
            for (p, v), g in zip(velocity.items(), gradients, strict=True):
                v.mul_(0.9).add_(g)
                p.sub_(0.03 * v)
    for one, other in zip(learner.model.head.parameters(), velocity, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
        assert one.grad is None


def test_the_balanced_phase_augments_and_placing_does_not(clusters, make_learner):
    calls = []

    def prepare(x, training):
        calls.append(training)
        return Prepare()(x, training)

    strategy, stream = make(balance_epochs=1), clusters().train_stream
    learner = trained(make_learner, stream[:1], strategy, epochs=1, prepare=prepare)
    calls.clear()
    learner.train(stream[1])
    # Placing; 3 batches with the memory; herding; 12 samples of the memory in 2 batches.
    assert calls == [False, *[True] * 3, False, *[True] * 2]


# --- the old encoder ---------------------------------------------------------------------------


def test_each_encoder_runs_once_an_iteration_and_taps_are_closed(clusters, make_learner):
    strategy, stream = make(balance_epochs=0), clusters().train_stream
    learner = trained(make_learner, stream[:1], strategy)
    encoder, old, calls = learner.model.encoder, strategy._old, []
    encoder.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    old.encoder.register_forward_hook(lambda *_: calls.append("old"))
    learner.train(stream[1])
    training = calls[1:-1]  # between placing and herding
    assert training == [True, "old"] * 6
    assert calls[0] is calls[-1] is False
    assert len(encoder._forward_hooks) == 1  # ours
    assert all(not stage._forward_hooks for stage in encoder.stage_outputs)


def test_the_old_encoder_stays_as_it_was(clusters, make_learner, weights):
    strategy, stream, seen = make(), clusters().train_stream, []
    learner = trained(make_learner, stream[:1], strategy)
    old, then = strategy._old.encoder, weights(learner.model.encoder)
    assert not old.training
    assert not any(p.requires_grad for p in old.parameters())

    class Look(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            seen.append(weights(old))

    make_learner(learner.model, strategy, Look()).train(stream[1])
    assert len(seen) == 6
    assert all(torch.equal(state[name], then[name]) for state in seen for name in then)
    assert strategy._old.encoder is not old


def test_without_weights_it_trains_as_if_there_were_no_distillation(clusters, make_learner):
    class Without(PODNet):
        def before_backward(self, strategy, **kwargs):
            return

    models = []
    for kind in (PODNet, Without):
        strategy = kind(12, spatial=0.0, flat=0.0, balance_epochs=1)
        models.append(trained(make_learner, clusters().train_stream, strategy).model)
    pairs = zip(*(m.state_dict().values() for m in models), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_first_experience_is_herded_replays_with_the_loss_to_the_bit(clusters, make_learner):
    stream, models = clusters().train_stream, []
    for strategy in (make(), Replay(12, "herding")):
        model = make_model()
        criterion = make().criterion(model.head)
        learner = make_learner(model, strategy, criterion=criterion)
        learner.train(stream[0])
        models.append(model)
        held = strategy.memory.all()
        models.append(held)
    pairs = zip(models[0].state_dict().values(), models[2].state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(torch.equal(a, b) for a, b in zip(models[1], models[3], strict=True))


# --- what it runs with -------------------------------------------------------------------------


class Distances(SupervisedPlugin):
    """What the strategy adds to each loss, and the type that the old encoder's features have."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.added, self.types = strategy, [], set()

    def before_training_exp(self, strategy, **kwargs):
        self.strategy.before_training_exp(strategy)

    def before_forward(self, strategy, **kwargs):
        self.strategy.before_forward(strategy)

    def before_backward(self, strategy, **kwargs):
        old, before = self.strategy._old, strategy.loss.item()
        keep = lambda module, inputs, output: self.types.add(output.dtype)  # noqa: E731
        handle = old.encoder.register_forward_hook(keep)
        self.strategy.before_backward(strategy)
        handle.remove()
        self.added.append(strategy.loss.item() - before)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_mixed_precision_distils_as_full_does(clusters, make_learner, encoder, precision, kind):
    stream, found = clusters().train_stream, {}
    strategy = make()
    learner = trained(make_learner, stream[:1], strategy, encoder)
    for chosen in ("fp32", precision):
        again = make()
        again.load_state_dict(copy.deepcopy(strategy.state_dict()))
        again.before_forward(learner)  # the old encoder, of its state
        again._new.close()
        again._new = None
        watch = found[chosen] = Distances(again)
        torch.manual_seed(2)
        model = copy.deepcopy(learner.model)
        make_learner(model, watch, precision=chosen, lr=1e-4).train(stream[1])
        assert all(p.isfinite().all() for p in model.parameters())
    assert found["fp32"].added == pytest.approx(found[precision].added, rel=0.05, abs=0.02)
    assert found[precision].types == {kind}
    assert found["fp32"].types == {torch.float32}


@pytest.mark.parametrize("loss", ["paper", "released"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, loss):
    strategy, restored = resume_and_compare(lambda: make(loss=loss))
    assert restored.old_groups == strategy.old_groups == 3
    assert torch.equal(restored.memory.all()[0], strategy.memory.all()[0])


def leaves(old, new, loop):
    old._new.close()


def leaves_and_begins_again(old, new, loop):
    """As in a run that is taken up again."""
    old._new.close()
    loader = loop.dataloader
    new.before_training_exp(loop)
    loop.dataloader = loader


@pytest.mark.parametrize("again", [leaves, leaves_and_begins_again])
def test_it_goes_on_from_its_state_in_mid_experience(clusters, make_learner, again):
    models = []
    for plugin in (make(), HandedOver(make, 9, again)):
        models.append(trained(make_learner, clusters().train_stream, plugin).model)
    assert plugin.seen == 18
    pairs = zip(*(m.state_dict().values() for m in models), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_it_forgets_less_than_fine_tuning(clusters, make_learner):
    scenario = clusters(samples=30)
    torch.manual_seed(0)
    model = classifier(ConvNet(SHAPE, [8, 16]), LocalSimilarity(16, CLASSES, PROXIES))
    learner = make_learner(model, PODNet(30), evaluator=Evaluator(), epochs=10)
    learner.train(scenario.train_stream)
    scores = learner.eval(scenario.test_stream)
    assert min(scores) > 0.6  # fine-tuning ends at 0 on the first two


def test_avalanches_own_loop_trains_to_the_same_weights(assert_same_in_avalanche):
    assert_same_in_avalanche(make_model, make, task_labels=False)


# --- what it refuses ---------------------------------------------------------------------------


def refusal(what):
    with pytest.raises(InputError) as caught:
        what()
    return str(caught.value)


def test_a_memory_too_small_for_each_class_is_refused(clusters):
    make(capacity=6).check(clusters())
    assert refusal(lambda: make(capacity=5).check(clusters())) == (
        "strategy.capacity=5: PODNet keeps at least one sample of each of the scenario's 6 "
        "classes; set strategy.capacity=6 or more"
    )


@pytest.mark.parametrize(("other", "what"), [(DER, "forward pass"), (Replay, "batches")])
def test_strategies_that_change_its_batches_do_not_go_with_it(other, what):
    text = refusal(lambda: Several(podnet=make(), other=other(12)))
    assert f"both podnet and other decide on the {what}" in text


def test_models_without_stages_or_proxies_are_refused():
    strategy = make()
    for encoder in ENCODERS:
        strategy.check_model(make_model(encoder))
    plain = classifier(MLP(SHAPE, [5]), LocalSimilarity(5, CLASSES))
    assert refusal(lambda: strategy.check_model(plain)) == (
        "backbone: PODNet compares the stages of an encoder, and MLP names none; choose convnet, "
        "resnet18, resnet32, or a sequence model such as mingru"
    )
    linear = classifier(ConvNet(SHAPE, [5]), single(5, CLASSES))
    assert refusal(lambda: strategy.check_model(linear)) == (
        "head: PODNet gives each class several proxies, and Linear has none; set "
        "head=local_similarity"
    )
    assert refusal(lambda: strategy.check_model(nn.Flatten())) == (
        "hypernet: PODNet compares an encoder with what it was, and Flatten generates its weights "
        "for each task; set hypernet=none"
    )


def test_a_compiled_encoder_is_refused():
    model = make_model()
    model.encoder.compile(backend="eager")
    assert refusal(lambda: make().check_model(model)) == (
        "compile=true: PODNet reads the stages of the encoder, which do not show once it is "
        "compiled; set compile=false"
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"spatial": -1.0}, "strategy.spatial=-1.0: expected 0 or more; raise it"),
        ({"flat": -0.5}, "strategy.flat=-0.5: expected 0 or more; raise it"),
        ({"margin": -0.1}, "strategy.margin=-0.1: expected 0 or more; raise it"),
        ({"loss": "hinge"}, "strategy.loss=hinge: choose one of paper, released"),
        ({"balance_epochs": -1}, "strategy.balance_epochs=-1: expected at least 0; raise it"),
        ({"balance_lr": 0}, "strategy.balance_lr=0: expected more than 0; raise it"),
        (
            {"batch_size": 0},
            "strategy.batch_size=0: expected a whole number of at least 1 sample a batch; or leave "
            "it null for train.batch_size",
        ),
        (
            {"capacity": 0},
            "strategy.capacity=0: a memory holds at least 1 sample; raise it",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, text):
    assert refusal(lambda: make(**settings)) == text
