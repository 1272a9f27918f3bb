"""ranks -> which of them failed, and why: the processes of one run watch each other beside the training itself.

A collective operation says at best that some connection was closed, and at worst waits for many minutes. So every rank
has a thread that gives signs of life through a small store at the launcher's address, tells there why its rank failed,
and ends its process if another rank is lost and the main thread does not come back from waiting for it.
"""

import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # PyTorch's gap

from ssldet import ranks, slurm
from ssldet.errors import DistributedError, SsldetError, StoppedError

INTERVAL = 0.5
"""Seconds between two signs of life."""
SUSPICION = 3.0
"""Seconds without a sign of life after which a rank counts as lost, where a collective operation has failed."""
SILENCE = 60.0
"""The same where nothing has failed: long enough for a machine that is short of memory."""
GRACE = 5.0
"""Seconds for the main thread to come back, once another rank is lost; then the process ends."""
CONNECTING = 10.0
"""Seconds for one attempt to reach the store."""

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells each process."""


class Peers:
    """The other ranks, as this one sees them.

    Attributes:
        problem: Why the run can't go on, although this rank could; empty where it can.
    """

    def __init__(self, rank: int, world: int, scope: str) -> None:
        """Begin to give signs of life.

        Args:
            rank: Of this process.
            world: Number of ranks.
            scope: Sets what is said apart from that of other runs at the same address.
        """
        self.rank, self.world, self.problem = rank, world, ""
        self.record: Callable[[str], None] = lambda _: None
        self._complete, self._joined, self._missing = False, False, list(range(world))
        self._back, self._over = threading.Event(), threading.Event()  # the main thread leaves; it has left
        self._store: PrefixStore | None = None
        self._scope, self._count = scope, 0
        self._seen = time.monotonic(), ""
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def join(self, stopped: Callable[[], str]) -> None:
        """Wait until all ranks are here.

        Args:
            stopped: Returns the name of a signal that asked this run to stop, or an empty text.

        Raises:
            DistributedError: A rank failed on its way, or did not come in time; or the address can't be used.
            StoppedError: The run was asked to stop.
        """
        deadline = time.monotonic() + ranks.TIMEOUT.total_seconds()
        while self.problem or not self._complete:
            if self.problem:
                raise DistributedError(self.problem)
            late = f"rank {', '.join(map(str, self._missing))} of {self.world}"
            if name := stopped():
                raise StoppedError(f"stopped by {name} while waiting for {late}; start all ranks again")
            if time.monotonic() > deadline:
                raise DistributedError(
                    f"{late} did not come to {_address()} within {ranks.TIMEOUT.total_seconds():.0f} seconds; look at "
                    "what it says, and start all ranks again"
                )
            time.sleep(0.02)
        self._joined = True

    def explain(self) -> str:
        """Return which rank is to blame for the error of a collective operation; empty if none is."""
        begun = time.monotonic()
        try:
            before = self._signs()
            while time.monotonic() - begun < SUSPICION and not self.problem:
                time.sleep(INTERVAL / 5)
            if not self.problem:
                after = self._signs()
                lost = [number for number in range(self.world) if after[number] in {before[number], ""}]
                if lost and self.rank not in lost:
                    self._tell(lost[0], _GONE)
        except RuntimeError:
            self._store, self.problem = None, self.problem or self._without_store()
        return self.problem

    def leave(self, error: BaseException | None) -> None:
        """Tell the others why this rank ends, and end the thread.

        Args:
            error: Why; `None` where the run has come to its end.
        """
        self._back.set()
        deadline = time.monotonic() + CONNECTING
        while error is not None and self._store is None and not self._complete and time.monotonic() < deadline:
            if not self._thread.is_alive():
                break
            time.sleep(INTERVAL / 5)
        with suppress(RuntimeError):
            if error is not None and not self.problem:
                self._tell(self.rank, f"failed: {str(error) or type(error).__name__}")
            if self._store is not None:
                self._store.set(f"left/{self.rank}", "1")
                # The store may live in this process, and would end with it before the others have read why.
                patience = time.monotonic() + (GRACE + CONNECTING if error is not None and self.rank == 0 else 0)
                while time.monotonic() < patience and not self._alone():
                    time.sleep(INTERVAL / 5)
        self._over.set()
        self._thread.join(CONNECTING)

    def _alone(self) -> bool:
        """Tell whether every other rank that came has left, or is lost."""
        if self._store is None:
            return True
        here = [n for n in range(self.world) if n != self.rank and self._store.check([f"here/{n}"])]
        return all(self._store.check([f"left/{n}"]) or self._store.check([f"lost/{n}"]) for n in here)

    def _watch(self) -> None:
        """Give signs of life and look for those of the next rank; the thread."""
        try:
            self._store = self._connect()
        except DistributedError as error:
            self.problem = str(error)
            return
        while not self._over.wait(INTERVAL):
            # Until it has joined, the main thread waits for nobody, and finds the problem when it joins.
            if self.problem and self._joined and not self._back.wait(GRACE):
                self._abandon()
            if self._store is not None:
                try:
                    self._look(self._store)
                except RuntimeError:  # as PyTorch's store says that it is out of reach
                    self._store = None
            elif not self._over.wait(SILENCE):
                self._find_again()

    def _find_again(self) -> None:
        """Look for the store, which was out of reach."""
        try:
            self._store = self._connect()
        except DistributedError:
            self.problem = self.problem or self._without_store()

    def _without_store(self) -> str:
        return f"rank 0 or its launcher, at {_address()}, {_GONE}"

    def _look(self, store: PrefixStore) -> None:
        self._count += 1
        store.set(f"life/{self.rank}", str(self._count))
        if not self._complete:
            self._missing = [number for number in self._missing if not store.check([f"here/{number}"])]
            self._complete = not self._missing
        if store.check(["failed"]):
            told = json.loads(store.get("failed"))
            if told["rank"] != self.rank:
                self.problem = told["why"]
            return
        following = (self.rank + 1) % self.world
        if store.check([f"left/{following}"]) or not store.check([f"life/{following}"]):
            return
        sign = store.get(f"life/{following}").decode()
        if sign != self._seen[1]:
            self._seen = time.monotonic(), sign
        elif time.monotonic() - self._seen[0] > SILENCE:
            self._tell(following, _GONE)

    def _signs(self) -> list[str]:
        """Return the last sign of life of each rank; empty where there was none."""
        store = self._store
        if store is None:
            raise RuntimeError("the store is out of reach")
        keys = [f"life/{number}" for number in range(self.world)]
        return [store.get(key).decode() if store.check([key]) else "" for key in keys]

    def _tell(self, number: int, why: str) -> None:
        """Tell all ranks that one is lost; what was told first counts."""
        store = self._store
        if store is None:
            return
        who = store.get(f"here/{number}").decode() if store.check([f"here/{number}"]) else "which never came"
        message = json.dumps({"rank": number, "why": f"rank {number} ({who}) {why}"})
        store.set(f"lost/{number}", "1")
        told = json.loads(store.compare_set("failed", "", message))
        if told["rank"] != self.rank:
            self.problem = told["why"]

    def _abandon(self) -> None:
        """End this process, whose main thread waits for a rank that is lost."""
        self.record(self.problem)
        with suppress(OSError):
            sys.stderr.write(f"error: {self.problem}\n")
        os._exit(DistributedError.exit_code)

    def _connect(self) -> PrefixStore:
        """Open or find the store.

        Raises:
            DistributedError: Another program has the address.
        """
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        hosts = self.rank == 0 and not launcher
        if hosts and not distributed.is_initialized():
            _require_free(port)
        while not hosts and not _answers(host, port):
            if self._complete or self._over.wait(INTERVAL / 5):
                raise DistributedError(f"rank 0 can't be reached at {_address()}")
        if not (hosts or launcher or _is_store(host, port)):
            raise DistributedError(
                f"something else than rank 0 of this run answers at {_address()}; choose another port for all ranks "
                "(torchrun --master-port, or MASTER_PORT)"
            )
        store = PrefixStore(self._scope, _opened(host, port, hosts=hosts))
        store.set(f"here/{self.rank}", f"process {os.getpid()} on {socket.gethostname()}")
        return store


_GONE = (
    "gives no sign of life: it was killed, ran out of memory or lost its network; everything up to the last checkpoint "
    "is saved, resume to go on"
)

_watching: list[Peers] = []
"""One group of ranks per process, as torch.distributed has it; empty where no launcher started several."""
_numbers = itertools.count(1)
"""Of the runs of this process, which are the same on all ranks."""


@contextmanager
def together() -> Iterator[None]:
    """Let the ranks that a launcher started watch each other from here on; inside another such block, do nothing.

    Raises:
        DistributedError: The launcher has not told all that ranks must know.
    """
    slurm.adopt()
    if _watching or not _several():
        yield
        return
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = Peers(ranks.rank(), int(os.environ["WORLD_SIZE"]), f"ssldet/{attempt}/{next(_numbers)}")
    _watching.append(own)
    try:
        yield
    except BaseException as error:
        own.leave(error)
        raise
    else:
        own.leave(None)
    finally:
        _watching.clear()


def join(stopped: Callable[[], str], record: Callable[[str], None]) -> None:
    """Wait until all ranks are here; does nothing where there is one, or where they start each other.

    Args:
        stopped: Returns the name of a signal that asked this run to stop, or an empty text.
        record: Writes down why a run has failed, if the process must be ended.
    """
    for own in _watching:
        own.record = record
        own.join(stopped)


def explain(error: BaseException) -> BaseException:
    """Return the error, or that of another rank if this one only follows from it.

    Args:
        error: What was raised on this rank.
    """
    if isinstance(error, SsldetError) or not isinstance(error, Exception) or not ranks.connected():
        return error
    reasons = [own.explain() for own in _watching]
    return DistributedError(reasons[0]) if any(reasons) else error


def _several() -> bool:
    """Tell whether a launcher started several ranks.

    Raises:
        DistributedError: It has not told all that ranks must know.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    alone = given.get("WORLD_SIZE", "1") == "1" and given.get("RANK", "0") == "0"
    if alone or not ({"RANK", "LOCAL_WORLD_SIZE"} & given.keys()):
        return False
    _require([name for name in VARIABLES if name not in given], "is not set")
    _require([name for name in VARIABLES if name != "MASTER_ADDR" and not given[name].isdigit()], "is no number")
    return True


def _require(wrong: Sequence[str], what: str) -> None:
    if wrong:
        raise DistributedError(
            f"environment: {', '.join(wrong)} {what}; start all ranks by a launcher, such as torchrun "
            "--nproc-per-node=2 -m ssldet …, or unset RANK and WORLD_SIZE to run alone"
        )


def _address() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _require_free(port: int) -> None:
    """Try the port before PyTorch does, which would add lines of its own.

    Raises:
        DistributedError: It is taken.
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
            trial.listen()
        except OSError as error:
            raise DistributedError(
                f"port {port}, where the ranks meet, can't be opened ({error.strerror}); another program has it: "
                "choose another for all ranks (torchrun --master-port, or MASTER_PORT)"
            ) from error


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=CONNECTING).close()
    except OSError:
        return False
    return True


def _opened(host: str, port: int, *, hosts: bool) -> TCPStore:
    # Several tenants, because the training's own connection uses the same port.
    waiting = timedelta(seconds=CONNECTING)
    return TCPStore(host, port, None, hosts, waiting, wait_for_workers=False, multi_tenant=True)


def _is_store(host: str, port: int) -> bool:
    """Tell whether a store of PyTorch's answers.

    Tried in a process of its own: PyTorch waits without end for a program that is none, and holds Python's lock.
    """
    trial = os.fork()
    if trial == 0:
        code = 1
        signal.alarm(2 * int(CONNECTING))  # nobody may be left to end it
        try:
            _opened(host, port, hosts=False)
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + CONNECTING
    while time.monotonic() < deadline:
        ended, status = os.waitpid(trial, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.01)
    os.kill(trial, signal.SIGKILL)
    os.waitpid(trial, 0)
    return False
