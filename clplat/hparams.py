"""Hyper-parameters and final metrics as TensorBoard's HPARAMS page takes them; light to import."""

from typing import Any

from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

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

Value = float | str | bool


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
