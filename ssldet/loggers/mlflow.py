"""numbers of a run -> MLflow: the server that MLFLOW_TRACKING_URI names, or else a file in the run folder."""

import os
import re
import time
from collections.abc import Mapping

from ssldet.loggers.base import LoggedRun

EXPERIMENT = "ssldet"
TAG = "ssldet.id"
"""Tag by which a resumed run finds the one that it goes on with."""
LONGEST = 500
"""Characters of a setting that a server takes."""
AT_ONCE = 100
"""Settings that a server takes in one request."""


class MLflow:
    """Writes to a tracking server or a database file; a resumed run goes on with the same entry."""

    needs = ("mlflow",)

    def __init__(self, run: LoggedRun) -> None:
        """Find the entry of the run, or make one of experiment `ssldet`, or of MLFLOW_EXPERIMENT_NAME.

        Args:
            run: Where to write, its id and its settings.
        """
        # It would report its use to its makers; whoever wants that sets the variable.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(run.folder / 'mlflow.db').absolute()}")
        self._client = MlflowClient(tracking_uri=place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        earlier = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'") if run.id else []
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        made = self._client.create_run(experiment, run_name=run.folder.name, tags={TAG: run.id})
        self._run = made.info.run_id
        settings = [Param(_allowed(key), str(value)[:LONGEST]) for key, value in run.settings.items()]
        for first in range(0, len(settings), AT_ONCE):
            self._client.log_batch(self._run, params=settings[first : first + AT_ONCE])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve.

        Args:
            step: Optimiser steps done, the place of the point.
            values: Name of a curve -> finite number.
        """
        now = int(1000 * time.time())
        self._client.log_batch(
            self._run, metrics=[self._metric(_allowed(name), value, now, step) for name, value in values.items()]
        )

    def close(self) -> None:
        """End the entry."""
        self._client.set_terminated(self._run)


def _allowed(name: str) -> str:
    """Return a name without the characters that MLflow refuses, such as those of odd class names."""
    return re.sub(r"[^\w./ -]", "_", name, flags=re.ASCII)
