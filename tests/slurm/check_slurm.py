"""Sweeps on a SLURM cluster of two nodes; `make test-slurm`, as root, with Debian's packages.

Apart from the suite: what is requeued waits, by SLURM's rules, for a minute or two.
"""

from pathlib import Path

import pytest

from tests.slurm.cluster import missing, two_nodes
from tests.sweeps import SHORT, ended, lasting, outcomes, started, swept, wait_until, write_dies
from tests.test_resumable import assert_same

SLURM = "hydra/launcher=submitit_slurm hydra.launcher.mem_gb=1"
pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.timeout(1200),
]


@pytest.fixture
def cluster(tmp_path_factory):
    with two_nodes(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def job_on(cluster, node):
    ask = ("squeue", f"--nodelist={node}", "--states=RUNNING", "--noheader", "--format=%i")
    (job,) = cluster.ask(*ask).split()
    return job


def test_runs_outlive_a_time_limit_and_a_lost_node_and_end_as_serial_ones(cluster, tmp_path):
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    alone.mkdir()
    spread.mkdir()
    long = lasting(100)
    assert swept(f"seed=0,1 {long}", alone)[0] == 0
    with started(f"{SLURM} seed=0,1 {long}", spread, **cluster.environment) as sweep:
        wait_until(lambda: len(list(spread.rglob("checkpoint.pt"))) == 2)
        # What SLURM sends before a limit: by --signal=USR2@120.
        assert cluster.ask("scancel", "--signal=USR2", job_on(cluster, "node1")) == ""
        cluster.lose("node2")
        status, err = ended(sweep)
    assert status == 0, err
    assert "2 runs: 2 finished" in err
    logs = {file.parent.name: file.read_text() for file in spread.rglob("run.log")}
    assert sum("asked to stop by SIGUSR2: saving first" in text for text in logs.values()) == 1
    for out in (folder.parent for folder in alone.rglob("result.json")):
        assert_same(out, spread / out.relative_to(alone))


def test_runs_that_die_or_are_cancelled_leave_the_others(cluster, tmp_path):
    arguments = f"{write_dies(tmp_path)} {SLURM} seed=0 {SHORT}"
    status, err = swept(arguments, tmp_path, **cluster.environment)
    assert status == 1, err
    assert "2 runs: 1 failed, 1 finished" in err
    assert "ended without an answer (FAILED); log: " in err

    long = lasting(150)
    with started(f"{SLURM} seed=1,2 {long}", tmp_path, **cluster.environment) as sweep:
        wait_until(lambda: len(list(tmp_path.rglob("checkpoint.pt"))) == 2)
        assert cluster.ask("scancel", job_on(cluster, "node1")) == ""
        status, err = ended(sweep)
    assert status == 1, err
    assert "ended without an answer (CANCELLED); log: " in err
    assert sorted(line["state"] for line in outcomes(tmp_path))[-2:] == ["finished"] * 2
    (left,) = tmp_path.rglob("checkpoint.pt")
    assert "asked to stop by SIGTERM" in Path(left.parent, "run.log").read_text()
