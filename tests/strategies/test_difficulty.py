"""Losses that samples are drawn by: of a copy trained as the learner would, or read from a file."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.data import tensors_of
from clplat.errors import InputError
from strategies.difficulty import losses_of, read_losses, trained_copy, write_losses

ADAM = {"optimizer": lambda groups: torch.optim.Adam(groups, lr=0.01)}


class Copying(SupervisedPlugin):
    """Trains a copy for 3 epochs as the second experience begins; keeps what was there then."""

    def before_training_exp(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter < 1:
            return
        self.columns = strategy.dataloader.columns
        self.before = copy.deepcopy((strategy.model, strategy.optimizer))
        self.order, self.draws = strategy.order.get_state(), torch.get_rng_state()
        self.loop = trained_copy(strategy, self.columns, 3)
        self.order_after, self.draws_after = strategy.order.get_state(), torch.get_rng_state()


def copied(clusters, make_learner, model, **options):
    """A learner's copy trained in the second experience, and a learner that trained on from there
    for as long: both their models, and what was copied."""
    labels = hasattr(model.head, "linears")
    stream = clusters(samples=11, task_labels=labels).train_stream
    torch.manual_seed(3)
    plugin = Copying()
    make_learner(model, plugin, **options).train(stream[:2])

    reference, optimizer = plugin.before
    plain = make_learner(reference, **{**options, "epochs": 3})
    plain.optimizer = optimizer
    plain.order.set_state(plugin.order)
    torch.set_rng_state(plugin.draws)
    plain.train(stream[1])
    return plugin, plain


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize(
    "options",
    [{}, ADAM, {"accumulate": 2}, {"grad_clip": 0.01}, {"precision": "bf16"}],
    ids=["sgd", "adam", "accumulate", "clip", "bf16"],
)
def test_the_copy_ends_where_plain_training_would(clusters, mlp, make_learner, head, options):
    model = mlp(head, dropout=0.3)
    plugin, plain = copied(clusters, make_learner, model, **options)
    one, other = plugin.loop.model.state_dict(), plain.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert plugin.loop.clock.train_iterations == 9  # 22 samples in batches of 8, three times
    x, y, task = plugin.columns
    inputs = (task,) if head == "multi" else ()
    logits = plain.model.eval()(x.float() / 255, *inputs)
    expected = nn.functional.cross_entropy(logits, y, reduction="none").detach()
    near = {"rtol": 0.05, "atol": 0.05} if "precision" in options else {}
    torch.testing.assert_close(losses_of(plugin.loop, plugin.columns), expected, **near)


def test_the_learner_itself_stays_as_it_was(clusters, mlp, make_learner):
    plugin, _ = copied(clusters, make_learner, mlp(dropout=0.3))
    assert torch.equal(plugin.order, plugin.order_after)
    assert torch.equal(plugin.draws, plugin.draws_after)
    models = []
    for plugins in ((), (Copying(),)):
        torch.manual_seed(5)
        learner = make_learner(mlp(dropout=0.3), *plugins, **ADAM)
        learner.train(clusters().train_stream)
        models.append(learner.model)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)


def test_the_copy_is_trained_at_the_peak_rate(clusters, mlp, make_learner, bare_loop, weights):
    stream = clusters().train_stream

    class Ended(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            for group in strategy.optimizer.param_groups:
                group["initial_lr"], group["lr"] = 0.1, 0.0
            self.loop = trained_copy(strategy, strategy.dataloader.columns, 2)

    plugin = Ended()
    make_learner(mlp(), plugin).train(stream[0])
    bare = weights(bare_loop(mlp(), stream[:1]))
    assert all(torch.equal(v, bare[name]) for name, v in weights(plugin.loop.model).items())


def test_losses_are_of_each_sample_in_evaluation_and_leave_no_trace(clusters, mlp, make_learner):
    stream = clusters(samples=11).train_stream
    learner = make_learner(mlp(dropout=0.5), eval_batch_size=5)
    learner.train(stream[0])
    learner.model.train()
    learner.model.head.eval()  # a part that is frozen
    kept = learner.mbatch
    columns = tensors_of(stream[1].dataset)
    found = losses_of(learner, columns)
    assert learner.mbatch is kept
    assert learner.model.encoder.training
    assert not learner.model.head.training
    assert not found.requires_grad

    model = copy.deepcopy(learner.model).double().eval()
    expected = [
        -model(x[None].double() / 255).log_softmax(1)[0, y]
        for x, y in zip(*columns[:2], strict=True)
    ]
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


# --- files ------------------------------------------------------------------------------------


MEND = "; give the folder that strategy.write_losses named in a run with this scenario and seed"


def refused(folder, experience):
    with pytest.raises(InputError) as error:
        read_losses(str(folder), experience)
    return str(error.value)


def test_losses_are_read_as_they_were_written(clusters, tmp_path):
    stream, folder = clusters(samples=5).train_stream, tmp_path / "deep" / "losses"
    for k, experience in enumerate(stream):
        write_losses(
            str(folder), experience, torch.arange(10.0) + k, tensors_of(experience.dataset)[1]
        )
    for k, experience in enumerate(stream):
        assert torch.equal(read_losses(str(folder), experience), torch.arange(10.0) + k)


def test_a_missing_file_is_named(clusters, tmp_path):
    given = f"strategy.read_losses={tmp_path}: experience_2.pt"
    assert refused(tmp_path, clusters().train_stream[2]) == f"{given}: no such file{MEND}"


def test_files_of_other_samples_are_refused(clusters, tmp_path):
    one, other, _ = clusters(samples=5).train_stream
    y, targets = (tensors_of(e.dataset)[1] for e in (one, other))
    losses = torch.rand(10)
    given = f"strategy.read_losses={tmp_path}: experience_0.pt: not the losses of these 10 samples"
    for wrong in (
        (losses, targets),
        (losses[:9], y),
        (losses, y[:9]),
        (losses.where(losses < losses.max(), torch.nan), y),
        (losses.where(losses < losses.max(), torch.inf), y),
        (losses - 1, y),
    ):
        write_losses(str(tmp_path), one, *wrong)
        assert refused(tmp_path, one) == given + MEND


@pytest.mark.parametrize(
    "content", [b"", b"no archive", [1.0, 2.0], {"losses": torch.rand(24)}, {}]
)
def test_a_file_of_something_else_is_refused(clusters, tmp_path, content):
    file = tmp_path / "experience_0.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    given = f"strategy.read_losses={tmp_path}: experience_0.pt"
    assert refused(tmp_path, clusters().train_stream[0]) == f"{given}: not a file of losses{MEND}"
