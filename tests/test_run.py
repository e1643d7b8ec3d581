"""Parts of a run that the command line's tests do not see from outside."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hydra.types import RunMode

from clplat.digest import SEEDS, config_digest
from clplat.directory import already_done
from clplat.errors import InputError
from clplat.request import Run
from clplat.run import joint_matrix


def test_the_reference_must_be_a_finished_run_of_the_same_scenario(tmp_path):
    with pytest.raises(InputError, match="holds no finished run; expected a finished joint run of"):
        joint_matrix(str(tmp_path), "split_digits", 5)
    (tmp_path / "result.json").write_text(json.dumps({"scenario": "other", "experiences": 5}))
    with pytest.raises(InputError, match=r"holds a run of other; .* run strategy=joint first"):
        joint_matrix(str(tmp_path), "split_digits", 5)
    (tmp_path / "result.json").write_text(
        json.dumps({"scenario": "split_digits", "experiences": 5})
    )
    np.save(tmp_path / "accuracy_matrix.npy", np.eye(6, 5))
    np.testing.assert_array_equal(joint_matrix(str(tmp_path), "split_digits", 5), np.eye(6, 5))
    assert joint_matrix(None, "split_digits", 5) is None


DAMAGED = [b"{", b"[1]", b"null", b"\xff", b"[" * 100_000, b'{"accuracy": 1' + b"0" * 400 + b"}"]


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_result_is_named_with_the_mend(tmp_path, data):
    (tmp_path / "result.json").write_bytes(data)
    mend = "remove that directory, or choose another"
    with pytest.raises(InputError) as out:
        already_done(tmp_path, "aaaa", {"seed": 0})
    assert str(out.value).startswith(f"out={tmp_path}: its result.json is damaged (")
    assert str(out.value).endswith(f"; {mend} out")
    with pytest.raises(InputError) as reference:
        joint_matrix(str(tmp_path), "split_digits", 5)
    assert str(reference.value).startswith(f"reference={tmp_path}: its result.json is damaged (")
    assert str(reference.value).endswith(f"; {mend} reference")


def test_a_reference_whose_result_tells_nothing_is_damaged(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"result.json is damaged \(it names no scenario or"):
        joint_matrix(str(tmp_path), "split_digits", 5)


def test_a_damaged_config_of_a_run_is_named_with_the_mend(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"its config.yaml is damaged \(.*choose another out$"):
        already_done(tmp_path, "aaaa", {"seed": 0})


@pytest.mark.parametrize("known", [None, 0.25])
def test_a_finished_run_says_that_a_reference_is_not_looked_at(
    tmp_path, capsys, monkeypatch, known
):
    result = {"seeds": dict.fromkeys(SEEDS, 0), "accuracy": 0.5, "intransigence": known}
    (tmp_path / "result.json").write_text(json.dumps(result))
    job = SimpleNamespace(mode=RunMode.RUN)
    monkeypatch.setattr("clplat.request.HydraConfig.get", lambda: job)
    config = {**dict.fromkeys(SEEDS, 0), "reference": "runs/joint"}
    assert Run(config, {}, "aaaa", tmp_path, []).carry_out().state == "skipped"
    told = "; reference=runs/joint is not looked at: for intransigence choose another out"
    assert capsys.readouterr().err == f"finished before: {tmp_path}{'' if known else told}\n"


def test_a_directory_with_other_files_but_no_run_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert already_done(tmp_path, "aaaa", {"seed": 0}) is None


def test_a_result_of_unknown_origin_is_never_overwritten(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match="holds a run with other seeds"):
        already_done(tmp_path, "aaaa", {"seed": 0})


def test_the_digest_ignores_seeds_and_places_and_nothing_else():
    from omegaconf import OmegaConf

    base = {
        "seed": 0,
        "seed_data": "${seed}",
        "out": None,
        "reference": None,
        "scenario": {"seed": "${seed_data}", "experiences": 5},
    }

    def digest(**changes):
        return config_digest(OmegaConf.create(base | changes))

    same = digest()
    assert len(same) == 8
    assert digest(seed=3) == digest(out="x") == digest(reference="y") == digest(seed_data=4) == same
    assert digest(scenario={"seed": "${seed_data}", "experiences": 4}) != same
    assert digest(precision="bf16") != same
