"""What a config may build."""

from importlib.metadata import EntryPoint

import pytest

from clplat.errors import InputError
from clplat.targets import check_names, check_objects, is_allowed, targets


@pytest.mark.parametrize(
    "name",
    [
        "strategies.replay.Replay",
        "scenarios.split.split",
        "clplat.backbones.mlp.MLP",
        "torch.optim.Adam",
        "torch.nn.Linear",
        "avalanche.training.plugins.EWCPlugin",
        "avalanche.benchmarks.SplitMNIST",
    ],
)
def test_plugins_optimizers_and_avalanche_are_allowed(name):
    assert is_allowed(name, [])
    check_objects({"node": {"_target_": name}}, [])


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "posix.system",
        "torch.load",
        "torch.hub.load",
        "torch.optimal.X",
        "numpy.load",
        "joblib.load",
        "hydra.utils.call",
        "clplat.run.run",
        "clplat.directory.write_atomically",
        "avalanche.checkpointing.maybe_load_checkpoint",
        "strategiesx.replay",
        "nowhere_at_all.X",
    ],
)
def test_everything_else_is_refused_by_name(name, tmp_path):
    with pytest.raises(InputError, match=r"not allowed; a config may name what is in"):
        check_names({"strategy": {"_target_": name}}, [tmp_path])


@pytest.mark.parametrize(
    "name",
    [
        "strategies.replay.torch.load",
        "scenarios.sources.os.system",
        "scenarios.sources.gzip.open",
        "clplat.backbones.heads.math.sqrt",
        "strategies.replay",
        "strategies.ewc.KINDS",
    ],
)
def test_an_allowed_name_that_leads_elsewhere_is_refused_by_what_it_is(name):
    check_names({"strategy": {"_target_": name}}, [])
    with pytest.raises(InputError, match=r"not allowed; it is .* expected a class or function"):
        check_objects({"strategy": {"_target_": name}}, [])


def test_modules_of_the_users_folders_are_allowed_and_no_others(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_strategy.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    assert is_allowed("my_strategy.X", [tmp_path / "mine"])
    assert not is_allowed("my_strategy.X", [tmp_path / "other"])


def test_an_installed_package_opts_in_by_an_entry_point(monkeypatch):
    assert not is_allowed("sklearn.svm.SVC", [])
    point = EntryPoint(name="sk", value="sklearn", group="clplat")
    monkeypatch.setattr("clplat.targets.entry_points", lambda group: [point])
    assert is_allowed("sklearn.svm.SVC", [])


def test_targets_are_found_at_every_depth():
    config = {"a": {"_target_": "x", "b": [{"c": {"_target_": "y"}}]}, "d": 1}
    assert dict(targets(config)) == {"a._target_": "x", "a.b[0].c._target_": "y"}


def test_a_name_that_is_not_there_is_explained():
    with pytest.raises(InputError, match=r"cannot be imported .* correct the name"):
        check_objects({"strategy": {"_target_": "strategies.replay.Nothing"}}, [])
