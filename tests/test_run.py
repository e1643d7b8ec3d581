"""Parts of a run that the command line's tests do not see from outside."""

import json

import numpy as np
import pytest

from clplat.digest import config_digest
from clplat.directory import already_done
from clplat.errors import InputError
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
