"""A SLURM cluster of two nodes on this machine, from Debian's slurmctld, slurmd and munge; as root.

`python -m tests.slurm.cluster` starts one to try things out, until Ctrl-C.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

NODES = ("node1", "node2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
KillWait=5
SchedulerParameters=sched_interval=5
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=4000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no cluster here; "" if there can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root"


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Cluster:
    folder: Path
    daemons: dict[str, subprocess.Popen]

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=self.environment
            )

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment
        )
        return done.stdout + done.stderr

    def processes_of(self, node: str) -> list[psutil.Process]:
        """A node's daemon, the processes of its jobs, and SLURM's own around each of them."""
        found = [psutil.Process(self.daemons[node].pid)]
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURMD_NODENAME") == node:
                    found.append(process)
                    around = process.parent()
                    if around and "slurmstepd" in " ".join(around.cmdline()):
                        found.append(around)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def lose(self, node: str) -> None:
        """As when its power fails."""
        if self.daemons[node].poll() is not None:
            return
        for process in self.processes_of(node):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.daemons[node].wait()


@contextmanager
def two_nodes(folder: Path) -> Iterator[Cluster]:
    """The cluster, whose nodes are ready; all is stopped at the end."""
    host = socket.gethostname().partition(".")[0]
    (folder / "state").mkdir()
    for node in NODES:
        (folder / node).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    conf = CONF.format(folder=folder, host=host, ports=free_ports(3))
    (folder / "slurm.conf").write_text(conf)
    cluster = Cluster(folder, {})
    try:
        places = [f"--{k}={folder}/munge.{k.split('-')[0]}" for k in ("key-file", "socket")]
        more = [f"--{k}-file={folder}/munge.{k}" for k in ("pid", "log", "seed")]
        cluster.start("munged", "munged", "--foreground", "--force", *places, *more)
        time.sleep(1)
        cluster.start("slurmctld", "slurmctld", "-D")
        for node in NODES:
            cluster.start(node, "slurmd", "-D", "-N", node)
        until = time.monotonic() + 60
        while cluster.ask("sinfo", "--noheader", "--format=%D %t").strip() != "2 idle":
            if time.monotonic() > until:
                logs = "".join(f.read_text()[-2000:] for f in folder.glob("*.log"))
                raise RuntimeError(f"the nodes are not ready: {cluster.ask('sinfo', '-R')}{logs}")
            time.sleep(0.5)
        yield cluster
    finally:
        cluster.ask("scancel", "--user=root")
        for name in reversed(cluster.daemons):
            if name in NODES:
                cluster.lose(name)
            cluster.daemons[name].terminate()
        for daemon in cluster.daemons.values():
            daemon.wait()


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place,
        two_nodes(Path(place)) as running,
    ):
        print(f"export SLURM_CONF={running.folder}/slurm.conf")
        print(running.ask("sinfo"))
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            pass
