"""How hard an experience's samples are: their losses under a model trained on them before.

By a copy of the learner's model, trained plainly first, or as another run left them in files.
"""

import copy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.nn.functional import cross_entropy

from clplat.batches import Batches, prepared
from clplat.data import Columns, tensors_of
from clplat.errors import InputError
from clplat.learner import Learner
from clplat.modes import in_evaluation


@torch.no_grad()
def losses_of(loop: Any, columns: Columns) -> Tensor:
    """Cross-entropy of each sample (N,) under a loop's model in evaluation mode, on the CPU."""
    kept, losses = loop.mbatch, []
    with in_evaluation(loop.model):
        for x, y, task in Batches(columns, loop.eval_mb_size):
            loop.mbatch = [prepared(loop, x, training=False), y, task]
            losses.append(cross_entropy(loop.forward().float(), y, reduction="none"))
    loop.mbatch = kept
    return torch.cat(losses).cpu()


class On(SupervisedPlugin):
    """Gives a loop its batches."""

    def __init__(self, batches: Batches):
        super().__init__()
        self.batches = batches

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        strategy.dataloader = self.batches


def trained_copy(strategy: Any, columns: Columns, epochs: int) -> Learner:
    """A loop that has trained a copy of the model plainly, as `strategy` would have.

    By a copy of its optimizer at the peak rate, in the order that is due; draws of `strategy`
    itself, dropout's included, stay as if there had been none of this.
    """
    model, optimizer = copy.deepcopy((strategy.model, strategy.optimizer))
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
    device, experience = torch.device(strategy.device), strategy.experience
    order, settings = torch.Generator().manual_seed(0), {}
    if isinstance(strategy, Learner):
        order = strategy.order.clone_state()
        settings = {"prepare": strategy.prepare, "precision": strategy.precision}
        settings |= {"grad_clip": strategy.grad_clip, "accumulate": strategy.accumulate}
    loop = Learner(
        model,
        lambda groups: optimizer,
        plugins=[On(Batches(columns, strategy.train_mb_size, order))],
        criterion=strategy._criterion,
        batch_size=strategy.train_mb_size,
        epochs=epochs,
        eval_batch_size=strategy.eval_mb_size,
        device=device,
        resident_bytes=0,  # no second copy of the data: the loop is given its batches
        **settings,
    )
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        loop.train(experience)
    return loop


def losses_file(folder: str, experience: Any) -> Path:
    return Path(folder) / f"experience_{experience.current_experience}.pt"


def write_losses(folder: str, experience: Any, losses: Tensor, y: Tensor) -> None:
    """One file for each experience, with the targets, by which other samples can be told."""
    file = losses_file(folder, experience)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"losses": losses, "targets": y.cpu()}, file)


def read_losses(folder: str, experience: Any) -> Tensor:
    """What `write_losses` wrote of these samples; InputError if there is no such thing."""
    file, y = losses_file(folder, experience), tensors_of(experience.dataset)[1]
    given = f"strategy.read_losses={folder}: {file.name}"
    mend = "give the folder that strategy.write_losses named in a run with this scenario and seed"
    if not file.is_file():
        raise InputError(f"{given}: no such file; {mend}")
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
        losses, targets = held["losses"], held["targets"]
        fits = targets.shape == y.shape and bool((targets == y).all())
        fits = fits and losses.shape == y.shape
        fits = fits and bool((losses >= 0).all() & losses.isfinite().all())
    except (RuntimeError, UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{given}: not a file of losses; {mend}") from error
    if not fits:
        raise InputError(f"{given}: not the losses of these {len(y)} samples; {mend}")
    return losses
