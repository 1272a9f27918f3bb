"""numbers of a run -> event files in its folder `tensorboard`; see them by: tensorboard --logdir runs."""

from collections.abc import Mapping

from ssldet.loggers.base import LoggedRun


class TensorBoard:
    """Writes event files; after a run is resumed, what was measured later than the checkpoint is hidden."""

    needs = ("tensorboard",)

    def __init__(self, run: LoggedRun) -> None:
        """Open a file for this part of the run.

        Args:
            run: Where to write, and after which step.
        """
        # Here, because it imports several libraries that nothing else needs.
        from torch.utils.tensorboard import SummaryWriter

        # Also at the start: the folder may hold what a run measured that was killed before its first checkpoint.
        purge = run.step + 1 if run.step else 0
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge)
        if not run.step:
            rows = "\n".join(f"| {name} | `{value}` |" for name, value in run.settings.items())
            self._writer.add_text("run.toml", f"| field | value |\n|---|---|\n{rows}", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve.

        Args:
            step: Optimiser steps done, the place of the point.
            values: Name of a curve -> finite number.
        """
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()
