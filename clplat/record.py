"""The run directory: what a run leaves behind, written so that a crash never leaves half a file."""

import io
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from clplat import metrics
from clplat.directory import (
    CONFIG,
    DIGEST_LINE,
    ENCODER,
    LINES,
    MATRIX,
    RESULT,
    write_atomically,
)
from clplat.events import EventWriter
from clplat.metrics import Matrix
from clplat.status import Status

log = logging.getLogger("clplat")
EVENTS = "events.out.tfevents.*"
LOGGERS = ("clplat", "scenarios", "strategies")  # whose messages go to run.log


def cut(path: Path, size: int) -> None:
    """Leave the first `size` bytes of a file; a file of none is removed."""
    if size:
        os.truncate(path, size)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def kept_log() -> Iterator[MemoryHandler]:
    """Keep what is logged while there is no run directory yet, such as where data was read from."""
    kept = MemoryHandler(capacity=10**6, flushLevel=logging.CRITICAL + 1)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(kept)
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield kept
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(kept)


class Record:
    """Writes one run's directory, line by line while it runs and the result at its end.

    `kept` is what was logged before, and begins the log; `began` is when. A record that is
    `resumed` goes on from a `position` of an earlier one; what was written after it is gone.
    """

    def __init__(
        self,
        out: Path,
        config: dict[str, Any],
        digest: str,
        names: dict[str, str],
        kept: MemoryHandler | None = None,
        began: float | None = None,
        resumed: dict[str, Any] | None = None,
    ):
        before = {"seconds": 0.0, "lines": 0, "events": {}} if resumed is None else resumed
        began = time.perf_counter() if began is None else began
        self.out, self._began = out, began - before["seconds"]
        out.mkdir(parents=True, exist_ok=True)
        if resumed is None:
            (out / "run.log").unlink(missing_ok=True)  # of an attempt that is not gone on with
        for events in out.glob(EVENTS):
            cut(events, before["events"].get(events.name, 0))
        cut(out / LINES, before["lines"])
        text = yaml.safe_dump(config, sort_keys=False)
        write_atomically(out / CONFIG, f"{DIGEST_LINE}{digest}\n{text}".encode())
        self._log = logging.FileHandler(out / "run.log")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        if kept is not None:
            kept.setTarget(self._log)
            kept.flush()
        for name in LOGGERS:
            if kept is not None:
                logging.getLogger(name).removeHandler(kept)  # or all would be logged twice
            logging.getLogger(name).addHandler(self._log)
            logging.getLogger(name).setLevel(logging.INFO)
        self.status = Status(out)
        self._lines = open(out / LINES, "a")  # noqa: SIM115 - closed by close()
        self._events = EventWriter(out)
        if resumed is None:
            self._events.begin(config, names, digest)

    @property
    def seconds(self) -> float:
        """Since the run began, without the time between an end and a resumption."""
        return time.perf_counter() - self._began

    def position(self) -> dict[str, Any]:
        """How much has been written until now."""
        self._events.flush()
        files = {file.name: file.stat().st_size for file in self.out.glob(EVENTS)}
        return {"seconds": self.seconds, "lines": self._lines.tell(), "events": files}

    def _line(self, **values: Any) -> None:
        values["seconds"] = round(self.seconds, 3)
        self._lines.write(json.dumps(values, allow_nan=False) + "\n")
        self._lines.flush()
        told = ("experience", "epoch", "samples", "task", "accuracy")
        self.status.alive(**{key: values[key] for key in told if key in values})

    def epoch(
        self, experience: int, epoch: int, iteration: int, loss: float | None, score: float | None
    ) -> None:
        """After each epoch: mean training loss and score, None where a strategy has none.

        `iteration` counts over the whole run.
        """
        self._line(experience=experience, epoch=epoch, loss=loss, training_score=score)
        values = {"train/loss": loss, "train/score": score}
        self._events.scalars({k: v for k, v in values.items() if v is not None}, iteration)

    def point(
        self, experience: int, samples: int, accuracy: float, scores: Sequence[float]
    ) -> None:
        """An evaluation after so many samples; `accuracy` is the mean over experiences seen."""
        self._line(experience=experience, samples=samples, accuracy=accuracy, scores=list(scores))
        self._events.scalars({"anytime/accuracy": accuracy}, samples)

    def experience(self, index: int, matrix: Matrix) -> None:
        """After experience `index` (-1: before training): its row, and the metrics so far."""
        scores = matrix[index].tolist()
        self._events.scalars({f"accuracy/task{j:02d}": s for j, s in enumerate(scores)}, index + 1)
        if index < 0:
            self._events.charts(len(scores))
            self._line(experience=index, scores=scores)
            return
        seen = np.vstack([matrix[: index + 1, : index + 1], matrix[-1:, : index + 1]])
        so_far = metrics.summary(seen)
        self._line(experience=index, scores=scores, **so_far)
        self._events.scalars({f"metrics/{name}": v for name, v in so_far.items()}, index + 1)
        log.info("experience %d: accuracy %.4f over those seen", index, so_far["accuracy"])

    def encoder(self, weights: dict[str, Any]) -> None:
        """The encoder once it is pre-trained, for other runs to begin with."""
        data = io.BytesIO()
        torch.save(weights, data)
        write_atomically(self.out / ENCODER, data.getvalue())

    def task(self, number: int, score: float, cross_entropy: float) -> None:
        """After one of a series of independent tasks: what was reached at its end."""
        self._line(task=number, score=score, cross_entropy=cross_entropy)
        values = {"tasks/score": score, "tasks/cross_entropy": cross_entropy}
        self._events.scalars(values, number)

    def analysis(self, index: int, values: dict[str, Any]) -> None:
        """What was found in the network after experience `index`.

        Numbers are scalars, tensors (N,) histograms over units, tensors (N, 2) curves x, y.
        """
        self._line(
            experience=index,
            analysis={k: v.tolist() if hasattr(v, "tolist") else v for k, v in values.items()},
        )
        self._events.analysis(values, index + 1)

    def finish(self, result: dict[str, Any], matrix: Matrix) -> None:
        """The matrix, then result.json, whose presence says that the run is whole."""
        array = io.BytesIO()
        np.save(array, matrix, allow_pickle=False)
        write_atomically(self.out / MATRIX, array.getvalue())
        self._events.finish(result, matrix)
        self._log.flush()
        text = json.dumps(result, indent=2, allow_nan=False) + "\n"
        write_atomically(self.out / RESULT, text.encode())
        self.status.set("finished")

    def close(self) -> None:
        self._events.close()
        self._lines.close()
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self._log)
        self._log.close()
