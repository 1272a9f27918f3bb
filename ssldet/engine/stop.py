"""SIGTERM, SIGINT, SIGUSR1, SIGHUP -> a flag: nothing is saved inside a handler, which may run within a step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""What asks a run to stop: a scheduler's end of time, Ctrl-C, SLURM's early warning, a terminal that is closed."""


class StopFlag:
    """While entered, the signals only raise the flag, which the training loop checks between two steps.

    Attributes:
        raised: Name of the first signal that came; empty where none did.
    """

    def __init__(self) -> None:
        """Start lowered."""
        self.raised = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopFlag":
        """Take the signals over; Python lets only the main thread do so, elsewhere the flag just stays down."""
        if threading.current_thread() is threading.main_thread():
            # nohup ignores SIGHUP, and that is meant to stay.
            taken = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._raise) for number in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the earlier handlers of the signals."""
        for number, handler in self._before.items():
            # None is a handler that was not set from Python and can't be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = self.raised or signal.Signals(number).name
