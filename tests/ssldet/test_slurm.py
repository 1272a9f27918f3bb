"""What srun says of its tasks, as torchrun would say it."""

import pytest

from ssldet.slurm import adopt, first_host, tasks_on

STEP = {
    "SLURM_JOB_ID": "4711", "SLURM_NODEID": "1", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "12", "SLURM_STEP_TASKS_PER_NODE": "8,4", "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


def test_a_task_of_srun_knows_what_torchrun_would_tell_it() -> None:
    environment = dict(STEP)
    adopt(environment)
    assert {name: value for name, value in environment.items() if not name.startswith("SLURM")} == {
        "RANK": "9", "LOCAL_RANK": "1", "GROUP_RANK": "1", "WORLD_SIZE": "12", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu07", "MASTER_PORT": "24711",
    }  # fmt: skip
    again = dict(environment)
    adopt(again)
    assert again == environment


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**STEP, "RANK": "0"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"},
    ],
)
def test_one_task_a_batch_script_and_another_launcher_are_left_alone(environment: dict[str, str]) -> None:
    before = dict(environment)
    adopt(environment)
    assert environment == before


@pytest.mark.parametrize(
    ("hosts", "first"), [("node7", "node7"), ("a-[3,5-9],b", "a-3"), ("n1,n2", "n1"), ("", ""), ("x[007-010]", "x007")]
)
def test_the_first_host_is_where_ranks_meet(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize(("node", "count"), [("0", "8"), ("1", "8"), ("2", "4"), ("3", ""), ("x", "")])
def test_tasks_are_counted_by_machine(node: str, count: str) -> None:
    assert tasks_on(node, "8(x2),4") == count
