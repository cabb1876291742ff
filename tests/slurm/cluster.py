"""A SLURM of one node on the loopback interface, with ports, sockets, keys and state of its own in a folder."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where Debian has the daemons
CORES = 2
CONFIG = """\
ClusterName=sparsity-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
MaxArraySize=5
MinJobAge=300
KillWait=5
OverTimeLimit=0
InactiveLimit=0
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=2000 State=UNKNOWN
PartitionName=tiny Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    return [program for program in PROGRAMS if not shutil.which(program, path=PATH)]


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands speak to a cluster that lives as long as the context.

    Nothing outside of `folder` is written, and only the daemons started here are stopped.

    Raises:
        AssertionError: a daemon did not come up; its log is in the message.
    """
    host = socket.gethostname().partition(".")[0]
    ports = free_ports(2)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge/key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            host=host, user=getpass.getuser(), folder=folder, controller_port=ports[0], node_port=ports[1], cores=CORES,
        )
    )  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
    environment = kept | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = folder / "munge"
    daemons = (
        [
            "munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={key}", f"--pid-file={munge}/pid",
            f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--num-threads=2",
        ],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D"],
    )  # fmt: skip
    started: list[subprocess.Popen] = []
    try:
        for command in daemons:
            with open(folder / f"{command[0]}.out", "w") as out:
                started.append(
                    subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
                )
            if command[0] == "munged":
                wait_until((munge / "socket").exists, folder)
        wait_until(lambda: shell(environment, "sinfo", "-h", "-o", "%t", check=False).strip() == "idle", folder)
        yield environment
    finally:
        if len(started) == len(daemons):
            shell(environment, "scancel", "--full", "--signal=KILL", "--user", getpass.getuser(), check=False)
            shell(environment, "scancel", "--user", getpass.getuser(), check=False)
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not shell(environment, "squeue", "-h", check=False).strip(), folder, seconds=15)
        for daemon in reversed(started):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def shell(environment: dict[str, str], *words: str, check: bool = True) -> str:
    """What a command prints."""
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def wait_until(condition, folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        logs = "\n".join(
            f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in folder.glob("*.*") if path.is_file()
        )
        assert time.monotonic() < deadline, logs
        time.sleep(0.1)
