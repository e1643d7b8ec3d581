"""Settings chosen by Optuna, on the accuracy that isolated runs hand back."""

import json

import yaml

from tests.sweeps import outcomes, swept

SEARCH = (
    "hydra/sweeper=optuna hydra.sweeper.n_trials=3 train.epochs=1 scenario.experiences=2 "
    "optimizer.lr=tag(log,interval(0.00001,0.01))"
)


def test_the_best_of_three_trials_is_that_of_the_highest_accuracy(tmp_path):
    status, err = swept(SEARCH, tmp_path)
    assert status == 0, err
    accuracies = {
        line["objective"]: json.loads((tmp_path / line["out"] / "result.json").read_text())
        for line in outcomes(tmp_path)
    }
    assert len(accuracies) == 3
    assert all(result["accuracy"] == given for given, result in accuracies.items())
    found = yaml.safe_load((tmp_path / "runs/optimization_results.yaml").read_text())
    assert found["best_value"] == max(accuracies)
    best = found["best_params"]["optimizer.lr"]
    assert f"accuracy {max(accuracies):.3f} with optimizer.lr={best}," in err

    again, err = swept(f"{SEARCH} hydra.sweeper.n_jobs=3", tmp_path)  # others at random, as before
    assert again == 0
    assert "3 runs: 3 skipped" in err


def test_trials_that_fail_leave_the_search(tmp_path):
    # Nothing is run: the settings are refused.
    search = SEARCH.replace("optimizer.lr", "optimizer.weight_decay").replace("0.00001,0.01", "1,2")
    status, err = swept(f"{search} optimizer.lr=-1", tmp_path)
    assert status == 2
    assert "3 runs: 3 failed" in err
    assert "best: none of the runs finished" in err
    assert "Traceback" not in err


def test_seeds_are_not_searched_for(command):
    outcome = command("hydra/sweeper=optuna seeds=3")
    assert outcome.status == 2
    assert outcome.err == (
        "clplat: seeds=3 hydra/sweeper=optuna: it would choose the best seed; set one, by seed=0, "
        "and run the best settings with seeds=3 afterwards\n"
    )
