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

FINAL = (
    "accuracy",
    "average_incremental_accuracy",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "learning_accuracy",
)
# What changes how a run runs but not what it is.
NOT_HYPERPARAMETERS = ("device", "threads", "compile", "data", "eval")
FIRST = ("scenario", "strategy", "strategy.strength", "strategy.capacity")
LAYOUT = {"accuracy": {"of each experience": ["Multiline", [r"accuracy/task\d+"]]}}


def hyperparameters(config: dict[str, Any], names: dict[str, str]) -> dict[str, float | str | bool]:
    """The config as flat keys: the chosen name of each group, then every value that is set."""
    flat: dict[str, float | str | bool] = dict(names)
    for key, value in settings(config).items():
        parts = key.split(".")
        hidden = parts[0] in NOT_HYPERPARAMETERS or any(part.startswith("_") for part in parts)
        if value is not None and not hidden:
            flat[key] = value if isinstance(value, bool | int | float) else str(value)
    return flat


def _summary(tag: str, data: Any) -> Any:
    plugin = proto.SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString()
    )
    value = proto.Summary.Value(tag=tag, metadata=proto.SummaryMetadata(plugin_data=plugin))
    value.tensor.CopyFrom(metadata.NULL_TENSOR)
    return proto.Summary(value=[value])


def experiment_summary(hparams: dict[str, Any]) -> Any:
    """The columns of the HPARAMS page: hyper-parameters, and the final metrics."""
    infos = []
    for name, value in hparams.items():
        # TensorBoard puts columns that differ first, the others in alphabetical order after them.
        info = api.HParamInfo(name=name, differs=name in FIRST)
        info.type = (
            api.DATA_TYPE_BOOL
            if isinstance(value, bool)
            else api.DATA_TYPE_FLOAT64
            if isinstance(value, int | float)
            else api.DATA_TYPE_STRING
        )
        infos.append(info)
    columns = [
        api.MetricInfo(
            name=api.MetricName(tag=f"metrics/{name}"), display_name=name.replace("_", " ")
        )
        for name in FINAL
    ]
    experiment = api.Experiment(hparam_infos=infos, metric_infos=columns)
    data = plugin_data.HParamsPluginData(
        experiment=experiment, version=metadata.PLUGIN_DATA_VERSION
    )
    return _summary(metadata.EXPERIMENT_TAG, data)


def session_start_summary(hparams: dict[str, Any], group: str) -> Any:
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
    return _summary(metadata.SESSION_START_INFO_TAG, data)


def session_end_summary() -> Any:
    end = plugin_data.SessionEndInfo(status=api.STATUS_SUCCESS)
    data = plugin_data.HParamsPluginData(session_end_info=end, version=metadata.PLUGIN_DATA_VERSION)
    return _summary(metadata.SESSION_END_INFO_TAG, data)


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
        self._writer.add_custom_scalars(LAYOUT)
        text = yaml.safe_dump(config, sort_keys=False)
        self._writer.add_text("config", "\n".join("    " + line for line in text.splitlines()))
        hparams = hyperparameters(config, names)
        self._file().add_summary(experiment_summary(hparams))
        self._file().add_summary(session_start_summary(hparams, group=digest))

    def _file(self) -> Any:
        return self._writer._get_file_writer()

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
