"""Verbs killed by SIGKILL at random moments: run again, each writes what it writes undisturbed."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.killing import TURNS, Killer

KILLS = 44
"""Kills in continuous integration; `make soak` makes more."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_verbs_write_what_they_write_undisturbed(world: Any, tmp_path: Path) -> None:
    kills = Killer(world, tmp_path, seed=1).until(KILLS)
    assert not kills.problems, str(kills)
    assert kills.total >= KILLS
    assert len(kills.counts) == len(TURNS), f"not every verb was killed:\n{kills}"
