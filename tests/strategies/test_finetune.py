"""Fine-tuning adds nothing, and forgets."""

from clplat.evaluation import Evaluator
from clplat.learner import hook_table
from strategies.finetune import FineTune


def test_it_acts_at_no_hook():
    assert not any(hook_table([FineTune()]).values())


def test_it_learns_each_experience_and_forgets_the_ones_before(clusters, mlp, make_learner):
    scenario = clusters(samples=30)
    learner = make_learner(mlp(), FineTune(), evaluator=Evaluator(), epochs=10)
    for k, experience in enumerate(scenario.train_stream):
        learner.train(experience)
        scores = learner.eval(scenario.test_stream)
        assert scores[k] > 0.9
        assert scores[:k] == [0.0] * k
