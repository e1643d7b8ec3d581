"""What the rest of the platform knows of a scenario."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from avalanche.benchmarks import CLScenario, EagerCLStream
from torch import Tensor

from clplat.evaluation import Score, accuracy
from clplat.prepare import Prepare


def seed_of_task(seed: int, task: int) -> int:
    """A seed for each of a run's independent tasks, far from those of other runs' tasks."""
    return (seed + task * 0x9E3779B1) % 2**32  # the step of Knuth's multiplicative hash


class Scenario(CLScenario):
    """An Avalanche scenario with a train and a test stream, and what a model needs to know of it.

    `score` is higher-is-better and is what the accuracy matrix holds, `criterion` the loss (output,
    target) of a batch, None for cross-entropy. `class_order` gives the
    source's class behind each label, where a source was split. `marks` make it a stream without
    boundaries: one training experience whose samples come once and in order, with as many test
    experiences as there are marks; row k of the matrix is taken after `marks[k]` samples, and
    test experience j counts as seen once there were `begins[j]`. `segments` ask for forgetting
    inside a sequence of T segments: T + 1 streams of T test experiences each, R[i, j] being the
    score on experience j of stream i, what segment j wrote after segments 0..i were read; the last
    stream is of nothing read. All are evaluated after the whole of training; `test_stream` equals
    stream T - 1. `vocabulary` is the number of tokens where the inputs are some. `head` names the
    one head config that fits where a sample has several targets. A third stream, "general", has one
    experience of data apart from the others: to pre-train on, or to replay as general samples.
    `tasks` are independent scenarios, this one the first, each learnt anew; results are means over
    them.
    """

    train_stream: Any
    test_stream: Any
    tasks: Sequence["Scenario"] = ()

    def __init__(
        self,
        streams: Iterable[EagerCLStream],
        *,
        n_classes: int,
        input_shape: tuple[int, ...],
        task_labels: bool = False,
        prepare: Callable[[Tensor, bool], Tensor] = Prepare(),  # noqa: B008
        score: Score = accuracy,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        class_order: Sequence[int] | None = None,
        marks: Sequence[int] = (),
        begins: Sequence[int] = (),
        segments: Sequence[EagerCLStream] = (),
        vocabulary: int | None = None,
        head: str | None = None,
    ):
        super().__init__(list(streams))
        self.n_classes, self.input_shape, self.task_labels = n_classes, input_shape, task_labels
        self.prepare, self.score, self.criterion = prepare, score, criterion
        self.class_order = class_order
        self.marks, self.begins, self.head = tuple(marks), tuple(begins), head
        self.segments: Any = tuple(segments)
        self.vocabulary = vocabulary
        if self.marks:
            self.train_stream[0].ordered = True
