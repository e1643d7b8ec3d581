"""What TensorBoard needs to know of several runs together: the columns of its HPARAMS page."""

import io
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from yaml import YAMLError

from clplat.check import GROUPS
from clplat.directory import RESULT, read_config, read_result, write_atomically
from clplat.hparams import FINAL, Value, hparams_summary, hyperparameters
from clplat.links import tensorboard_told

# Generated modules, whose names no type checker can see.
api: Any = api_pb2
plugin_data: Any = plugin_data_pb2
proto: Any = event_pb2

COLUMNS = "events.out.tfevents.0.columns"
SHOWN = 5  # columns that TensorBoard shows until more are chosen
USUAL = ("scenario", "backbone", "train.epochs", "optimizer.lr")  # where fewer tell runs apart
TYPES = {bool: api.DATA_TYPE_BOOL, float: api.DATA_TYPE_FLOAT64, str: api.DATA_TYPE_STRING}


def shown_first(configurations: Sequence[Mapping[str, Value]]) -> list[str]:
    """The hyper-parameters that tell configurations apart, the most telling first, then others.

    Choices of groups, then what was varied for one choice, then what only some choices have.
    """
    names = {name: None for values in configurations for name in values}

    def distinct(name: str) -> int:
        return len({values[name] for values in configurations if name in values})

    chosen = [name for name in GROUPS if distinct(name) > 1]
    varied = [name for name in names if distinct(name) > 1 and name not in GROUPS]
    some = [name for name in names if any(name not in values for values in configurations)]
    some.sort(key=lambda name: not name.endswith((".strength", ".capacity")))
    usual = [name for name in USUAL if name in names]
    return [*dict.fromkeys([*chosen, *varied, *some, *usual])][:SHOWN]


def columns(configurations: Sequence[Mapping[str, Value]], measured: Collection[str]) -> Any:
    """The message that lists the columns: the hyper-parameters of all, the metrics measured."""
    shown, infos = shown_first(configurations), []
    for name in sorted({name for values in configurations for name in values}):
        values = {values[name] for values in configurations if name in values}
        kinds = {float if type(value) is int else type(value) for value in values}
        kind = kinds.pop() if len(kinds) == 1 else str
        # TensorBoard puts columns that "differ" first.
        info = api.HParamInfo(name=name, type=TYPES[kind], differs=name in shown)
        if kind is not float:
            info.domain_discrete.extend(
                sorted(values) if kind is bool else sorted(map(str, values))
            )
        infos.append(info)
    final = [
        api.MetricInfo(name=api.MetricName(tag=tag), display_name=title)
        for title, tag in FINAL.items()
        if tag.split("/")[1] in measured
    ]
    experiment = api.Experiment(hparam_infos=infos, metric_infos=final)
    return hparams_summary(
        metadata.EXPERIMENT_TAG,
        plugin_data.HParamsPluginData(experiment=experiment, version=metadata.PLUGIN_DATA_VERSION),
    )


def write_columns(folder: Path) -> None:
    """Name the columns for all finished runs below a folder, in an event file of its own there.

    TensorBoard takes the columns of the first such message that it meets, wherever it is. So runs
    have none, and those of the folders above and below, of other runs than these, are removed.
    """
    configurations, measured = {}, set()
    for file in sorted(folder.rglob(RESULT)):
        try:
            result, config = read_result(file.parent), read_config(file.parent)
        except (ValueError, YAMLError):  # damaged: the report names it
            continue
        if result and config and "digest" in result:
            names = {group: result[group] for group in GROUPS if group in result}
            configurations[result["digest"]] = hyperparameters(config, names)
            measured |= {name for name, value in result.items() if value is not None}
    if not configurations:
        return
    folder = folder.absolute()
    above = [parent for parent in folder.parents if parent.is_relative_to(Path.cwd())]
    for other in (*folder.rglob(COLUMNS), *(parent / COLUMNS for parent in above)):
        other.unlink(missing_ok=True)
    data = io.BytesIO()
    events = RecordWriter(data)
    summary = columns([*configurations.values()], measured)
    for event in (proto.Event(file_version="brain.Event:2"), proto.Event(summary=summary)):
        events.write(event.SerializeToString())
    write_atomically(folder / COLUMNS, data.getvalue())


def compared(folder: Path, runs: Sequence[Path]) -> str:
    """How to compare finished runs in TensorBoard, once the columns are written for it.

    `folder` is the sweep's, unless the runs lie elsewhere.
    """
    places = [run.absolute() for run in runs]
    if not all(place.is_relative_to(folder.absolute()) for place in places):
        folder = Path(os.path.commonpath(places))
    write_columns(folder)
    return tensorboard_told(folder)
