"""A sweep on a Ray cluster of two nodes, one of which is lost on the way."""

import pytest

from clplat.directory import RESULT
from tests.sweeps import ended, lasting, outcomes, started, swept, wait_until
from tests.test_resumable import assert_same


def two_nodes(attempts=4):
    """A cluster of two nodes, and the second. Ray gives a node half a minute to start, which may
    be too short on a machine in use.
    """
    from ray.cluster_utils import Cluster  # reads the environment

    memory = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster()
    try:
        cluster.add_node(**memory, include_dashboard=False)
        return cluster, cluster.add_node(**memory)
    except Exception:
        cluster.shutdown()
        if attempts == 1:
            raise
        return two_nodes(attempts - 1)


@pytest.mark.timeout(900)
def test_runs_outlive_a_lost_node_and_end_as_serial_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_enable_metrics_collection", "false")
    long = lasting(60)
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    for folder in (alone, spread, tmp_path / "home"):
        folder.mkdir()
    assert swept(f"seed=0,1,2 {long}", alone)[0] == 0

    cluster, lost = two_nodes()
    try:
        ray = f"hydra/launcher=ray hydra.launcher.init.address={cluster.address}"
        with started(f"{ray} seed=0,1,2 {long}", spread) as sweep:
            wait_until(lambda: len([*spread.rglob("checkpoint.pt")]) == 2)  # a run on each node
            cluster.remove_node(lost, allow_graceful=False)
            status, err = ended(sweep)
    finally:
        cluster.shutdown()
    assert status == 0, err
    assert "3 runs: 3 finished" in err
    assert [line["state"] for line in outcomes(spread)] == ["finished"] * 3
    whole = [file.parent for file in alone.rglob(RESULT)]
    assert len(whole) == 3
    for out in whole:
        assert_same(out, spread / out.relative_to(alone))
