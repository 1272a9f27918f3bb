"""variables of `srun` -> those that torchrun sets, so that all else knows one kind of launcher."""

import os
import re
from collections.abc import MutableMapping

FIRST_PORT, PORTS = 20_000, 20_000
"""Ports where the ranks of a job may meet; the job's number chooses, so that two jobs on one machine differ."""


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what torchrun would set, where this process is one of several that `srun` started; else do nothing.

    A batch script itself is no such process, although it knows how many tasks its job may start.

    Args:
        environment: Read and changed; what it says of ranks already is left alone.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    if "RANK" in environment or "WORLD_SIZE" in environment or not tasks.isdigit() or int(tasks) < 2:
        return
    node = environment.get("SLURM_NODEID", "0")
    job = int(re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or 0)
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    told = {
        "RANK": environment.get("SLURM_PROCID", ""),
        "LOCAL_RANK": environment.get("SLURM_LOCALID", ""),
        "GROUP_RANK": node,
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": tasks_on(node, environment.get("SLURM_STEP_TASKS_PER_NODE", "")),
        "MASTER_ADDR": first_host(hosts),
        "MASTER_PORT": str(FIRST_PORT + job % PORTS),
    }
    for name, value in told.items():
        if value:
            environment.setdefault(name, value)


def first_host(hosts: str) -> str:
    """Return the first of the machines that SLURM lists, such as `node[07-09,12],login` -> `node07`."""
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", hosts)
    return "" if found is None else found[1] + (found[2] or "")


def tasks_on(node: str, counts: str) -> str:
    """Return the number of tasks on a machine, such as `8(x2),4` -> `8` for machines 0 and 1; empty if unknown."""
    spread: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        spread += [count] * int(times or 1)
    return spread[int(node)] if node.isdigit() and int(node) < len(spread) else ""
