"""TensorBoard events of a run: scalars, the matrix in three forms, hyper-parameters."""

from pathlib import Path
from typing import Any

import torch
import yaml
from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from clplat.figures import close, curve_figure, matrix_figure
from clplat.metrics import Matrix
from clplat.naming import settings

# Generated modules, whose names no type checker can see.
api: Any = api_pb2
plugin_data: Any = plugin_data_pb2
proto: Any = summary_pb2

# What the HPARAMS page has a column of: its title and tag. It shows the first five at once.
FINAL = {
    "accuracy": "metrics/accuracy",
    "forgetting": "metrics/forgetting",
    "average incremental accuracy": "metrics/average_incremental_accuracy",
    "bytes held": "cost/memory_bytes",
    "seconds": "cost/seconds",
    "backward transfer": "metrics/backward_transfer",
    "forward transfer": "metrics/forward_transfer",
    "learning accuracy": "metrics/learning_accuracy",
    "intransigence": "metrics/intransigence",
    "stability gap": "metrics/stability_gap",
    "anytime accuracy": "metrics/anytime_accuracy",
    "parameters": "cost/parameters",
}
AT_END = ("intransigence", "stability_gap", "anytime_accuracy")  # others are known all along
# What changes how a run runs but not what it is.
NOT_HYPERPARAMETERS = ("device", "threads", "compile", "data", "eval")
CHARTS = 100  # at most, of experiences one by one

Value = float | str | bool


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


def hyperparameters(config: dict[str, Any], names: dict[str, str]) -> dict[str, Value]:
    """The config as flat keys: the chosen name of each group, then every value that is set."""
    flat: dict[str, Value] = dict(names)
    for key, value in settings(config).items():
        parts = key.split(".")
        hidden = parts[0] in NOT_HYPERPARAMETERS or any(part.startswith("_") for part in parts)
        if value is not None and not hidden:
            flat[key] = value if isinstance(value, bool | int | float) else str(value)
    return flat


def hparams_summary(tag: str, data: Any) -> Any:
    """A message to TensorBoard's plugin of hyper-parameters."""
    plugin = proto.SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
    )
    value = proto.Summary.Value(tag=tag, metadata=proto.SummaryMetadata(plugin_data=plugin))
    value.tensor.CopyFrom(metadata.NULL_TENSOR)
    return proto.Summary(value=[value])


def session_start_summary(hparams: dict[str, Value], group: str) -> Any:
    """One run's values; runs of one `group`, the seeds of one config, are shown as their mean."""
    start = plugin_data.SessionStartInfo(group_name=group)
    for name, value in hparams.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        else:
            start.hparams[name].string_value = value
    data = plugin_data.HParamsPluginData(
        session_start_info=start, version=metadata.PLUGIN_DATA_VERSION
    )
    return hparams_summary(metadata.SESSION_START_INFO_TAG, data)


def session_end_summary() -> Any:
    end = plugin_data.SessionEndInfo(status=api.STATUS_SUCCESS)
    data = plugin_data.HParamsPluginData(session_end_info=end, version=metadata.PLUGIN_DATA_VERSION)
    return hparams_summary(metadata.SESSION_END_INFO_TAG, data)


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
