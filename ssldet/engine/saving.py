"""session -> checkpoint on disk: decide that a full disk is bad luck, and three in a row are not."""

import logging
import shutil

from ssldet.engine.steps import Checkpoints, room_for
from ssldet.errors import SetupError
from ssldet.ranks import gather_objects, rank

log = logging.getLogger(__name__)

PATIENCE = 3
"""Saves in a row that may fail before training stops."""


class Saver:
    """Saves on rank 0 and lets all ranks know how it went.

    Attributes:
        checkpoints: Where to.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        """Begin.

        Args:
            checkpoints: See the attributes.
        """
        self.checkpoints = checkpoints
        self._failures = 0

    def require_room(self, state_bytes: int) -> None:
        """Let a run start only if its checkpoints will fit.

        Args:
            state_bytes: Size of one checkpoint.

        Raises:
            SetupError: They won't.
        """
        folder = self.checkpoints.folder
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if problem := room_for(state_bytes, self.checkpoints.keep, folder, free):
            raise SetupError(problem)

    def save(self, step: int, state: dict[str, object]) -> bool:
        """Save; every rank must call this at the same step.

        Args:
            step: Optimiser steps done.
            state: What to save; read on rank 0 only.

        Returns:
            Whether it worked.

        Raises:
            SetupError: It failed for the third time in a row; on every rank alike.
        """
        problem = self._attempt(step, state) if rank() == 0 else ""
        problem = gather_objects(problem)[0]
        if not problem:
            self._failures = 0
            return True
        self._failures += 1
        if self._failures >= PATIENCE:
            raise SetupError(
                f"no checkpoint could be saved {PATIENCE} times in a row (step {step}: {problem}); make room in "
                f"{self.checkpoints.folder}, then resume: everything up to the last good one is there"
            )
        log.error("step %d could NOT be saved (%s); training goes on, make room now", step, problem)
        return False

    def _attempt(self, step: int, state: dict[str, object]) -> str:
        try:
            self.checkpoints.save(step, state)
        except OSError as error:
            return f"{type(error).__name__}: {error}"
        return ""
