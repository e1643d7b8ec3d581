"""Which task a sample is of: by a classifier of tasks, and by the entropy of the answers."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import MASKED
from clplat.backbones.mlp import MLP as Perceptron
from clplat.backbones.sequence import SequenceModel
from clplat.build import build_learner, build_scenario
from clplat.errors import InputError
from clplat.layers.gated import MinGRU
from clplat.layers.recurrent import GRU
from hypernets.chunked import Chunked
from hypernets.generated import Generated
from hypernets.inference import entropy
from hypernets.rnn import RNN
from hypernets.separate import Separate, own_values
from scenarios.split import split
from scenarios.transformed import permuted
from strategies.hypernet import Hypernet
from strategies.task_classifier import TaskClassifier, fitted
from tests.handed_over import through_a_file
from tests.test_conf import composed


def rnn(layout):
    return RNN(layout, 3, 2, 5, 41)


def model_of(generator=rnn, side=4, classes=6, **settings):
    torch.manual_seed(0)
    target = classifier(Perceptron((1, side, side), [20]), nn.Linear(20, classes))
    return Generated(target, generator, task_labels=False, classes=classes, **settings)


def asked(scenario):
    """Prepared inputs and the task of each, over the test stream."""
    x = [torch.stack([item[0] for item in e.dataset]) for e in scenario.test_stream]
    tasks = torch.arange(len(x)).repeat_interleave(torch.tensor([len(part) for part in x]))
    return scenario.prepare(torch.cat(x), False), tasks


# --- the classifier ------------------------------------------------------------------------------


def test_a_fitted_network_tells_classes_apart_and_is_at_rest():
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    x = torch.eye(3)[labels] + 0.1 * torch.randn(60, 3)
    network = fitted(nn.Linear(3, 3), x, labels)
    assert torch.equal(network(x).argmax(1), labels)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_it_holds_as_many_samples_of_each_task_as_stored(clusters, make_learner):
    strategy = Hypernet(0.1, inference="classifier", capacity=10)
    learner = make_learner(model_of(), strategy)
    stream = clusters().train_stream
    for count, experience in enumerate([stream[0], stream[2], stream[1]], 1):
        learner.train(experience)
        x, tasks = strategy.classifier.memory.all()
        assert x.dtype == torch.uint8
        assert len(x) == 10
        shares = torch.bincount(tasks, minlength=3)[[0, 2, 1][:count]]
        assert shares.max() - shares.min() <= 1
        for image, task in zip(x, tasks.tolist(), strict=True):
            own = torch.stack([item[0] for item in stream[task].dataset])
            assert (own - image / 255).abs().flatten(1).amax(1).min() < 1e-6


def test_tasks_are_told_apart_and_named_as_they_are(clusters, make_learner):
    scenario = clusters(samples=30)
    strategy = Hypernet(0.1, inference="classifier", capacity=60)
    learner, model = make_learner(model_of(), strategy), None
    x, tasks = asked(scenario)
    for experience, known in ((2, [2]), (0, [0, 2]), (1, [0, 1, 2])):
        learner.train(scenario.train_stream[experience])
        model = learner.model.eval()
        found = model.infer(x)
        assert set(found.tolist()) <= set(known)
        mine = torch.isin(tasks, torch.tensor(known))
        assert (found == tasks)[mine].float().mean() > 0.9
        answers = model(x)
        for k in (0, 40, 80):
            one = model.forward_single_task(x[k : k + 1], int(found[k]))
            torch.testing.assert_close(answers[k : k + 1], one)


def test_digits_are_classified_without_task_labels(make_learner):
    scenario, scores = permuted("digits", experiences=2, seed=0), {}
    for inference in ("entropy", "classifier"):
        model = model_of(lambda layout: Chunked(layout, 8, 8, [16], 256), side=8, classes=10)
        learner = make_learner(
            model, Hypernet(0.1, inference=inference), epochs=4, batch_size=32,
            prepare=scenario.prepare, optimizer=lambda p: torch.optim.Adam(p, 5e-3),
        )  # fmt: skip
        learner.train(scenario.train_stream)
        (x, tasks), y = asked(scenario), []
        for experience in scenario.test_stream:
            y += [int(item[1]) for item in experience.dataset]
        scores[inference] = (model.eval()(x).argmax(1) == torch.tensor(y)).float().mean().item()
        if inference == "classifier":
            assert (model.infer(x) == tasks).float().mean() > 0.8  # chance: 0.5
    assert min(scores.values()) > 0.5


def test_an_evaluation_inside_an_experience_is_answered(clusters, make_learner):
    scenario, seen = clusters(), []

    class Look(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            strategy.eval(scenario.test_stream)
            seen.append(strategy.mb_output)

    strategy = Hypernet(0.1, inference="classifier", capacity=20)
    make_learner(model_of(), strategy, Look(), epochs=1).train(scenario.train_stream)
    assert len(seen) == 3


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_restored_classifier_answers_as_the_original(count, clusters, make_learner):
    strategy = Hypernet(0.1, inference="classifier", capacity=20)
    learner, scenario = make_learner(model_of(), strategy), clusters()
    learner.train(list(scenario.train_stream)[:count])
    restored = TaskClassifier(20)
    restored.load_state_dict(through_a_file(strategy.classifier.state_dict()))
    x, _ = asked(scenario)
    if count:
        assert torch.equal(restored(x), strategy.classifier(x))
    one, other = strategy.classifier.memory, restored.memory
    assert len(one) == len(other)


def test_a_restored_run_is_evaluated_as_the_original(clusters, make_learner):
    scenario, scores = clusters(), []
    original = Hypernet(0.1, inference="classifier", capacity=20)
    learner = make_learner(model_of(), original)
    learner.train(scenario.train_stream)
    scores.append(learner.eval(scenario.test_stream))
    asked_for = []
    strategy = Hypernet(0.1, inference="classifier", capacity=20)
    restored = make_learner(model_of(), strategy)
    restored.model.load_state_dict(through_a_file(learner.model.state_dict()))
    strategy.load_state_dict(through_a_file(original.state_dict()))
    network = strategy.classifier.network
    network.register_forward_hook(lambda *_: asked_for.append(1))
    scores.append(restored.eval(scenario.test_stream))
    assert scores[0] == scores[1]
    assert asked_for


# --- entropy -------------------------------------------------------------------------------------


def test_without_task_labels_the_surest_task_answers():
    model, x = model_of().eval(), torch.randn(11, 1, 4, 4)
    for task in (0, 1, 2):
        model.add_task(task)
        model.own_classes(task)[task:] = True
    model.trained = [0, 2]
    most = [model.own_classes(task).sum().double().log() for task in (0, 2)]
    found = model(x)
    for k in range(11):
        rows = [model.forward_single_task(x[k : k + 1], task)[0].double() for task in (0, 2)]
        spread = [-(r.softmax(0) * r.log_softmax(0)).sum() for r in rows]
        second = spread[1] / most[1] < spread[0] / most[0]
        torch.testing.assert_close(found[k].double(), rows[int(second)])
    torch.testing.assert_close(model(x, torch.ones(11, dtype=torch.long)), found)

    tasks = torch.tensor([2, 0, 0, 1, 2, 0, 0, 1, 1, 0, 2])
    model.infer = lambda x: tasks
    rows = [model.forward_single_task(x[k : k + 1], t)[0] for k, t in enumerate(tasks.tolist())]
    torch.testing.assert_close(model(x), torch.stack(rows))


def test_entropy_is_its_sum_and_masked_classes_add_nothing():
    logits = torch.randn(3, 5, 7, dtype=torch.float64)
    p = logits.softmax(2)
    expected = -(p * p.log()).sum(2).float()
    torch.testing.assert_close(entropy(logits), expected, rtol=1e-5, atol=1e-6)
    masked = torch.cat([logits, torch.full((3, 5, 2), MASKED)], 2)
    torch.testing.assert_close(entropy(masked), entropy(logits))
    assert entropy(torch.tensor([0.0, MASKED])) == 0


@pytest.mark.parametrize("make_scenario", [split, permuted])
def test_the_task_of_digits_is_inferred_better_than_by_chance(make_scenario, make_learner):
    scenario = make_scenario("digits", experiences=5, seed=0)
    model = model_of(Separate, side=8, classes=10, layout=own_values)
    learner = make_learner(
        model, batch_size=32, epochs=4, prepare=scenario.prepare,
        optimizer=lambda groups: torch.optim.Adam(groups, 3e-3),
    )  # fmt: skip
    learner.train(scenario.train_stream)
    model.eval()
    x, tasks = asked(scenario)
    answers = torch.stack([model.forward_single_task(x, t) for t in range(5)])
    surest = entropy(answers).argmin(0)
    assert torch.equal(model(x), answers[surest, torch.arange(len(x))])
    assert (surest == tasks).float().mean() > 0.35  # chance: 0.2


def test_positions_with_an_answer_each_are_answered_as_well():
    torch.manual_seed(0)
    target = classifier(SequenceModel((6, 3), MinGRU, width=4, pooling="none"), nn.Linear(4, 5))
    model = Generated(target, rnn, task_labels=False).eval()
    for task in (0, 1):
        model.add_task(task)
    model.trained = [0, 1]
    assert model(torch.randn(7, 6, 3)).shape == (7, 6, 5)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 0])
def test_a_classifier_of_one_sample_is_refused(capacity):
    with pytest.raises(InputError) as caught:
        Hypernet(inference="classifier", capacity=capacity)
    assert str(caught.value) == (
        f"strategy.capacity={capacity}: a classifier of tasks needs samples of at least 2; raise it"
    )


def learner_of(*overrides):
    config = composed(*overrides)
    return build_learner(config, build_scenario(config, []))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["strategy=hypernet", "strategy.inference=classifier", "scenario.task_labels=true"],
            "strategy.inference=classifier: the scenario tells the task; set "
            "scenario.task_labels=false, or strategy.inference=entropy",
        ),
        (
            ["scenario=text", "strategy=hypernet", "strategy.inference=classifier"],
            "strategy.inference=classifier: it reads images and series, and this scenario's "
            "samples are tokens; set strategy.inference=entropy",
        ),
        (
            ["strategy=hypernet", "strategy.inference=oracle"],
            "strategy.inference=oracle: choose one of entropy, classifier",
        ),
        (
            ["strategy=hypernet", "hypernet=none"],
            "strategy=hypernet: it keeps what a hypernetwork generates, and there is none; set "
            "hypernet=rnn, or another of the group hypernet (clplat --help lists them)",
        ),
        (
            ["strategy=hypernet", "head=multi", "scenario.task_labels=true"],
            "head: a hypernetwork generates a head for each task, and Multi is none that can be "
            "generated; set head=single, or head=cosine",
        ),
        (
            ["hypernet=chunked", "head=growing"],
            "head: a hypernetwork generates a head for each task, and Growing is none that can be "
            "generated; set head=single, or head=cosine",
        ),
        (
            ["backbone=mlp", "hypernet=kernels"],
            "hypernet=kernels: the target has no convolution; choose backbone=convnet, resnet18 "
            "or resnet32, or another hypernet",
        ),
        (
            ["strategy=replay", "backbone=resnet18", "hypernet=chunked",
             "scenario.task_labels=true"],
            "strategy: Replay may answer for several tasks at a time, and the running statistics "
            "of batch norm are of one task each; choose a backbone without batch norm, or "
            "strategy=hypernet",
        ),
        (
            ["strategy=lwf", "hypernet=chunked"],
            "strategy: LwF may ask for answers of earlier tasks in training, and a hypernetwork "
            "has to be told which; set scenario.task_labels=true, or strategy=hypernet, or "
            "strategy=finetune",
        ),
        (
            ["strategy=hypernet", "strategy.subset=0"],
            "strategy.subset=0: expected a whole number of earlier tasks, at least 1, or null for "
            "all; change it",
        ),
        (
            ["strategy=hypernet", "strategy.beta=-1"],
            "strategy.beta=-1: expected a number of 0 or more; change it",
        ),
        (
            ["strategy=hypernet", "strategy.importance=diagonal"],
            "strategy.importance=diagonal: choose one of null, exact, empirical, batch",
        ),
        (
            ["strategy=hypernet", "strategy.targets=own_values"],
            "strategy.targets=own_values: choose one of stored, recomputed",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(overrides, text):
    with pytest.raises(InputError) as caught:
        learner_of(*overrides)
    assert str(caught.value) == text


def test_importance_that_a_backbone_does_not_give_names_the_key_that_mends_it(
    make_learner, clusters
):
    torch.manual_seed(0)
    target = classifier(SequenceModel((1, 4, 4), GRU, width=4, depth=1), nn.Linear(4, 6))
    learner = make_learner(Generated(target, rnn, classes=6), Hypernet(importance="exact"))
    with pytest.raises(InputError) as caught:
        learner.train(clusters(task_labels=True).train_stream[0])
    assert "set strategy.importance=batch" in str(caught.value)


def test_a_compiled_encoder_gives_the_same_answers():
    answers = []
    for compiled in ("true", "false"):
        config = composed(
            "hypernet=chunked", f"compile={compiled}", "device=cpu", "backbone.hidden=[5]",
            "scenario.task_labels=true", "train.epochs=1",
        )  # fmt: skip
        scenario = build_scenario(config, [])
        learner, _ = build_learner(config, scenario)
        learner.train(scenario.train_stream[0])
        learner.train(scenario.train_stream[1])
        model, x = learner.model.eval(), torch.rand(5, 1, 8, 8, generator=torch.manual_seed(0))
        answers.append(model(x, torch.tensor([0, 1, 1, 0, 0])))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            [
                *("strategy=hypernet", "strategy.inference=classifier", "strategy.capacity=3"),
                "scenario.experiences=5",
            ],
            "strategy.capacity=3: the classifier of tasks keeps samples of each of the 5 "
            "experiences; raise it to 5 or more",
        ),
        (
            ["strategy=hypernet", "scenario.experiences=10"],
            "strategy.inference=entropy: where an experience has one class, its prediction is "
            "always sure; set strategy.inference=classifier, or fewer scenario.experiences",
        ),
        (
            ["strategy=hypernet", "strategy.grow_by=8", "strategy.grow_at=[5]"],
            "strategy.grow_at=[5]: there are experiences 0 to 1; leave 5 out",
        ),
        (
            ["strategy=hypernet", "strategy.grow_by=8", "strategy.grow_at=3"],
            "strategy.grow_at=3: expected a list of experiences; set [3]",
        ),
        (
            ["strategy=hypernet", "hypernet=chunked", "hypernet.generator.hidden=50"],
            "hypernet.generator.hidden=50: expected a list of widths; set [50]",
        ),
        (
            [
                *("strategy=hypernet", "backbone=convnet", "scenario.task_labels=true"),
                "strategy=lwf",
                "hypernet=chunked",
            ],
            "strategy: LwF may answer for several tasks at a time, and the running statistics of "
            "batch norm are of one task each; choose a backbone without batch norm, or "
            "strategy=hypernet",
        ),
        (
            ["strategy=hypernet", "optimizer._target_=torch.optim.RAdam", "~optimizer.fused"],
            "optimizer: RAdam has no look-ahead; choose sgd, adam or adamw, or set "
            "strategy.look_ahead=false",
        ),
    ],
)
def test_what_a_review_found_is_refused_before_training(overrides, text):
    with pytest.raises(InputError) as caught:
        learner_of(*overrides)
    assert str(caught.value) == text
