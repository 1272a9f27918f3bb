"""numbers of a run -> Weights & Biases, offline: nothing is sent before `wandb sync`, or unless WANDB_MODE=online."""

import os
from collections.abc import Mapping

from ssldet.loggers.base import LoggedRun


class WeightsAndBiases:
    """Writes the folder `wandb` of the run folder; a resumed run goes on under its id."""

    needs = ("wandb",)

    def __init__(self, run: LoggedRun) -> None:
        """Start a run of project `ssldet`, or of the one that WANDB_PROJECT names.

        Args:
            run: Where to write, its id and its settings.
        """
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ssldet"),
            name=run.folder.name,
            id=run.id or None,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
            # It would print on the terminal, and read what others print there.
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve.

        Args:
            step: Optimiser steps done, the place of the point.
            values: Name of a curve -> finite number.
        """
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End the run there too."""
        self._run.finish()
