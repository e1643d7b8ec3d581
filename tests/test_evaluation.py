"""Scores and metrics against naive loops, and against Avalanche's metrics on the same runs."""

import copy

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin

from clplat import metrics
from clplat.evaluation import DuringTraining, Evaluator, TrainingScore, accuracy
from strategies.finetune import FineTune
from strategies.replay import Replay


def naive_scores(model, stream, score=lambda logits, label: float(int(logits.argmax()) == label)):
    """The mean score of each experience, one sample at a time."""
    model = copy.deepcopy(model).eval()
    multi, means = hasattr(model.head, "linears"), []
    for experience in stream:
        scores = []
        for x, y, task in experience.dataset:
            with torch.no_grad():
                logits = model(x[None], task) if multi else model(x[None])
            scores.append(score(logits[0], int(y)))
        means.append(sum(scores) / len(scores))
    return means


def test_accuracy_is_one_where_the_largest_logit_is_the_targets():
    output = torch.tensor([[0.1, 0.9, 0.0], [0.7, 0.2, 0.1], [-3.0, -2.0, -1.0]])
    assert accuracy(output, torch.tensor([1, 2, 2])).tolist() == [True, False, True]


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("eval_batch_size", [5, 512])
def test_the_accuracy_matrix_of_a_run_is_that_of_a_naive_loop(
    clusters, mlp, make_learner, head, eval_batch_size
):
    scenario = clusters(samples=18, task_labels=head == "multi")
    learner = make_learner(
        mlp(head, dropout=0.2), evaluator=Evaluator(), eval_batch_size=eval_batch_size, epochs=6
    )
    ours, naive = [learner.eval(scenario.test_stream)], []
    naive.append(naive_scores(learner.model, scenario.test_stream))
    for experience in scenario.train_stream:
        learner.train(experience)
        ours.append(learner.eval(scenario.test_stream))
        naive.append(naive_scores(learner.model, scenario.test_stream))
    assert ours == naive
    assert len({score for row in ours for score in row}) > 3


def test_any_score_of_output_and_target_is_averaged_over_samples(clusters, mlp, make_learner):
    def closeness(output, target):
        return -(output[:, 0] - target).square()

    scenario = clusters(samples=10)
    learner = make_learner(mlp(), evaluator=Evaluator(closeness), eval_batch_size=3)
    scores = learner.eval(scenario.test_stream)
    expected = naive_scores(
        learner.model, scenario.test_stream, lambda logits, label: -float((logits[0] - label) ** 2)
    )
    assert scores == pytest.approx(expected, rel=1e-5)


def test_eval_returns_the_scores_of_the_experiences_it_was_given(clusters, mlp, make_learner):
    scenario = clusters()
    learner = make_learner(mlp(), evaluator=Evaluator())
    learner.train(scenario.train_stream[0])
    every = learner.eval(scenario.test_stream)
    assert learner.eval(scenario.test_stream[0]) == every[:1]
    assert learner.eval([scenario.test_stream[2], scenario.test_stream[0]]) == [every[2], every[0]]
    assert every[0] == 0.5  # so that the lines above compare more than zeros


def test_the_training_score_is_the_mean_over_the_last_epochs_batches(clusters, mlp, make_learner):
    class Naive(FineTune):
        def __init__(self):
            super().__init__()
            self.hits = []

        def before_training_epoch(self, strategy, **kwargs):
            self.hits = []

        def after_forward(self, strategy, **kwargs):
            pairs = zip(strategy.mb_output.tolist(), strategy.mb_y.tolist(), strict=True)
            self.hits += [row.index(max(row)) == label for row, label in pairs]

    training, naive = TrainingScore(), Naive()
    assert training.mean() is None
    learner = make_learner(mlp(), naive, training, epochs=4)
    means = []
    for experience in clusters(samples=9).train_stream:
        learner.train(experience)
        assert len(naive.hits) == 18
        means.append(sum(naive.hits) / 18)
        assert training.mean() == means[-1]
    assert 0 < max(means) < 1


def test_evaluation_during_training_notes_the_scores_of_that_moment(clusters, mlp, make_learner):
    scenario, calls, naive = clusters(), [], []

    def notify(experience, samples, scores):
        calls.append((experience, samples, scores))
        naive.append(naive_scores(learner.model, scenario.test_stream))

    plugin = DuringTraining(scenario.test_stream, 4, notify)
    learner = make_learner(mlp(), plugin, evaluator=Evaluator(), epochs=3, lr=0.5)
    for experience in scenario.train_stream:
        learner.train(experience)
        learner.eval(scenario.test_stream)
    # Three batches an epoch: 8, 8 and 8 samples of 24; 9 iterations an experience.
    expected = [(k, 72 * k + 8 * i) for k in range(3) for i in (4, 8)]
    assert [call[:2] for call in calls] == expected
    assert [call[2] for call in calls] == naive
    assert naive[0] != naive[-1]


def test_the_evaluator_also_works_in_avalanches_template(clusters, mlp, make_template):
    scenario = clusters(samples=18)
    template = make_template(mlp(), evaluator=Evaluator(), train_epochs=6)
    for experience in scenario.train_stream:
        template.train(experience)
        scores = template.eval(scenario.test_stream)
        assert scores == naive_scores(template.model, scenario.test_stream)


# --- Avalanche's metrics -------------------------------------------------------------------------


def avalanche_metrics():
    return EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(experience=True, stream=True),
        loggers=[],
    )


@pytest.fixture
def no_logger_is_meant():
    """Avalanche's plugin warns, where it is made, that it has no logger."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")
        yield


@pytest.mark.parametrize("experiences", [2, 3])
@pytest.mark.usefixtures("no_logger_is_meant")
def test_our_metrics_equal_avalanches_where_definitions_agree(
    clusters, mlp, make_learner, experiences
):
    scenario, theirs = clusters(experiences, samples=40), avalanche_metrics()
    learner = make_learner(
        mlp(), Replay(10), theirs, evaluator=Evaluator(), batch_size=16, epochs=4, lr=0.2
    )
    torch.manual_seed(1)
    matrix = np.full((experiences + 1, experiences), np.nan)
    for k, experience in enumerate(scenario.train_stream):
        learner.train(experience)
        matrix[k] = learner.eval(scenario.test_stream)
    matrix[-1] = 0.0  # of the untrained model: no metric below reads it
    last = theirs.get_last_metrics()

    def named(text):
        (value,) = [v for name, v in last.items() if text in name and "train" not in name]
        return value

    for k in range(experiences):
        task = f"/Task000/Exp00{k}"
        assert named(f"Top1_Acc_Exp/eval_phase/test_stream{task}") == pytest.approx(matrix[-2][k])
    assert named("Top1_Acc_Stream") == pytest.approx(metrics.accuracy(matrix))
    assert named("StreamBWT") == pytest.approx(metrics.backward_transfer(matrix))
    assert named("StreamForgetting") == pytest.approx(-metrics.backward_transfer(matrix))
    # Theirs is the first score less the last, ours the best less the last: the same where the
    # first is the best.
    if (matrix[:-2].max(0) == np.diag(matrix))[:-1].all():
        assert named("StreamForgetting") == pytest.approx(metrics.forgetting(matrix))
    else:
        assert named("StreamForgetting") < metrics.forgetting(matrix)
    assert metrics.forgetting(matrix) > 0.1


@pytest.mark.usefixtures("no_logger_is_meant")
def test_avalanches_evaluator_measures_in_our_learner_what_it_measures_in_its_own_loop(
    clusters, mlp, make_learner, make_template
):
    scenario, results, returned = clusters(samples=20), [], []
    for make in (make_learner, make_template):
        evaluator = avalanche_metrics()
        loop = make(mlp(), evaluator=evaluator)
        for experience in scenario.train_stream:
            loop.train(experience)
            returned.append(loop.eval(scenario.test_stream))
        results.append(evaluator.get_all_metrics())
    assert results[0].keys() == results[1].keys()
    assert any("Forgetting" in name for name in results[0])
    for ours, theirs in zip(returned[:3], returned[3:], strict=True):
        assert ours == pytest.approx(theirs)
    for name in results[0]:
        assert results[0][name][0] == results[1][name][0], name
        np.testing.assert_allclose(results[0][name][1], results[1][name][1], atol=1e-7)


class WeighedBySquare:
    """Scores are the first logits, weights the squares of the labels plus 1."""

    def __call__(self, output, target):
        return output[:, 0]

    def weight(self, target):
        return target.square() + 1


def test_a_score_with_weights_is_averaged_by_them_over_all_batches(clusters, mlp, make_learner):
    scenario = clusters(samples=10)
    training, score = TrainingScore(WeighedBySquare()), WeighedBySquare()
    learner = make_learner(
        mlp(), [training], evaluator=Evaluator(score), eval_batch_size=3, batch_size=7
    )
    expected = []
    for experience in scenario.test_stream:
        x = torch.stack([item[0] for item in experience.dataset])
        y = torch.tensor([item[1] for item in experience.dataset])
        weight = (y**2 + 1).double().numpy()
        expected.append(np.average(learner.model(x)[:, 0].detach().numpy(), weights=weight))
    assert learner.eval(scenario.test_stream) == pytest.approx(expected, rel=1e-5)
    unweighted = make_learner(learner.model, evaluator=Evaluator(lambda o, y: o[:, 0]))
    assert learner.eval(scenario.test_stream) != pytest.approx(
        unweighted.eval(scenario.test_stream), rel=1e-3
    )


def test_outputs_with_several_targets_a_sample_have_a_training_score():
    training = TrainingScore(lambda output, target: (output.argmax(2) == target).float().mean(1))
    output = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])

    class Loop:
        mb_output, mb_y = output, torch.tensor([[0, 0], [0, 0]])

    training.before_training_epoch(Loop)
    training.after_training_iteration(Loop)
    assert training.mean() == 0.75
