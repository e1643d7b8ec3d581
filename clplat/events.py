"""TensorBoard events of a run: scalars, the matrix in three forms, hyper-parameters."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from clplat.figures import close, curve_figure, matrix_figure
from clplat.hparams import (
    AT_END,
    FINAL,
    hyperparameters,
    session_end_summary,
    session_start_summary,
)
from clplat.metrics import Matrix

CHARTS = 100  # at most, of experiences one by one


def layout(experiences: int) -> dict[str, dict[str, list[Any]]]:
    """The page of custom scalars: a chart for each experience, and one with all of them.

    The former compare runs, the latter shows what one run forgets.
    """
    width = len(str(experiences - 1))
    each = {
        f"experience {j:0{width}d}": ["Multiline", [rf"accuracy/task{j:02d}$"]]
        for j in range(min(experiences, CHARTS))
    }
    every = {"experiences of a run": ["Multiline", [r"accuracy/task\d+"]]}
    return {"accuracy on each experience": each, "accuracy on all experiences": every}


def matrix_markdown(matrix: Matrix) -> str:
    """The accuracy matrix as a table, the untrained model first."""
    size = matrix.shape[1]
    lines = ["| after \\ on | " + " | ".join(str(j) for j in range(size)) + " |"]
    lines.append("|---" * (size + 1) + "|")
    for index in range(-1, size):
        name = "untrained" if index < 0 else str(index)
        lines.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in matrix[index]) + " |")
    return "\n".join(lines)


class EventWriter:
    """One event file in the run's directory."""

    def __init__(self, out: Path):
        self._writer = SummaryWriter(str(out))

    def begin(self, config: dict[str, Any], names: dict[str, str], digest: str) -> None:
        """What a run is, before what it does."""
        text = yaml.safe_dump(config, sort_keys=False)
        self._writer.add_text("config", "\n".join("    " + line for line in text.splitlines()))
        hparams = hyperparameters(config, names)
        self._file().add_summary(session_start_summary(hparams, group=digest))

    def _file(self) -> Any:
        return self._writer._get_file_writer()

    def charts(self, experiences: int) -> None:
        """Which charts the page of custom scalars has, once the number of experiences is known."""
        self._writer.add_custom_scalars(layout(experiences))

    def scalars(self, values: dict[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def analysis(self, values: dict[str, Any], step: int) -> None:
        for name, value in values.items():
            tag = f"analysis/{name}"
            if isinstance(value, float):
                self._writer.add_scalar(tag, value, step)
            elif value.ndim == 1:
                self._writer.add_histogram(tag, value, step)
            else:
                x, y = value.T.tolist()
                figure = curve_figure(x, y, name)
                self._writer.add_figure(tag, figure, step)
                close(figure)

    def finish(self, result: dict[str, Any], matrix: Matrix) -> None:
        for tag in FINAL.values():
            kind, name = tag.split("/")
            if (kind == "cost" or name in AT_END) and result.get(name) is not None:
                self._writer.add_scalar(tag, result[name], matrix.shape[1])
        figure = matrix_figure(matrix, result["strategy"], result["score"])
        self._writer.add_figure("accuracy_matrix", figure)
        close(figure)
        self._writer.add_text("accuracy_matrix", matrix_markdown(matrix))
        self._writer.add_tensor("accuracy_matrix/values", torch.from_numpy(matrix))
        self._file().add_summary(session_end_summary())

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
