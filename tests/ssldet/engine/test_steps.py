"""Checkpoints: whatever fails at whichever operation, the newest valid one is the last or the one before."""

import errno
import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from ssldet.disk import Disk
from ssldet.engine.steps import Checkpoints, plain, room_for
from ssldet.errors import CheckpointError


class Crash(BaseException):
    """The process is gone; nothing of it may tidy up."""


class FaultyDisk(Disk):
    """Fails at the k-th operation.

    `crash` ends the process there; `power` also takes back every name and every content that was never synchronised;
    `short` writes half.
    """

    def __init__(self, fails_at: int, how: str) -> None:
        self.left, self.how = fails_at, how
        self.unsafe: set[Path] = set()
        self.renamed: list[tuple[Path, Path]] = []

    def cut(self) -> None:
        """Lose what is not on the medium."""
        for path in self.unsafe:
            if path.exists():
                path.write_bytes(b"")
        for old, new in reversed(self.renamed):
            if new.exists():
                new.replace(old)

    def _count(self, file: BinaryIO | None = None, content: Any = b"") -> None:
        self.left -= 1
        if self.left != 0:
            return
        if self.how == "power":
            self.cut()
        if self.how in {"crash", "power"}:
            raise Crash
        if self.how == "short" and file is not None:
            file.write(bytes(content)[: len(content) // 2])
        raise OSError(errno.EIO if self.how == "EIO" else errno.ENOSPC, "injected")

    def create(self, path: Path) -> BinaryIO:
        self._count()
        self.unsafe.add(path)
        return super().create(path)

    def put(self, file: BinaryIO, content: bytes | memoryview) -> None:
        self._count(file, content)
        super().put(file, content)

    def sync(self, file: BinaryIO) -> None:
        self._count()
        super().sync(file)
        self.unsafe.discard(Path(file.name))

    def replace(self, old: Path, new: Path) -> None:
        self._count()
        super().replace(old, new)
        self.renamed.append((old, new))
        if old in self.unsafe:
            self.unsafe.remove(old)
            self.unsafe.add(new)

    def sync_folder(self, folder: Path) -> None:
        self._count()
        super().sync_folder(folder)
        self.renamed = [(old, new) for old, new in self.renamed if new.parent != folder]

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)

    def names(self, folder: Path) -> list[str]:
        self._count()
        return super().names(folder)

    def digest(self, path: Path) -> str:
        self._count()
        return super().digest(path)


def state(step: int) -> dict[str, Any]:
    return {"objective": {"weight": torch.full((64,), float(step))}, "counters": {"skipped": step}}


def is_right(found: Any) -> bool:
    return bool((found.state["objective"]["weight"] == found.step).all()) and found.state["step"] == found.step


def saving(folder: Path, disk: Disk) -> None:
    Checkpoints(folder, disk=disk).save(3, state(3))


def recovering(folder: Path, disk: Disk) -> None:
    checkpoints = Checkpoints(folder, disk=disk)
    found = checkpoints.newest()
    assert found is not None
    for path in found.damaged:
        checkpoints.set_aside(path)
    checkpoints.sweep()
    checkpoints.save(3, state(3))


@pytest.mark.parametrize("how", ["ENOSPC", "EIO", "short", "crash", "power"])
@pytest.mark.parametrize("work", [saving, recovering])
def test_a_fault_at_any_operation_costs_at_most_one_step(
    tmp_path: Path, how: str, work: Callable[[Path, Disk], None]
) -> None:
    fired = 0
    for k in range(1, 100):
        folder = tmp_path / str(k)
        for step in (1, 2):
            Checkpoints(folder).save(step, state(step))
        if work is recovering:
            (folder / "step-000003.ckpt").write_bytes(b"half")
            (folder / "step-000004.ckpt.tmp-1").write_bytes(b"half")
            (folder / "step-000004.ckpt.sha256").write_text("no  file\n")
        disk = FaultyDisk(k, how)
        try:
            work(folder, disk)
        except (OSError, Crash):
            fired += 1
        found = Checkpoints(folder).newest()
        assert found is not None
        # A read error makes a good file look damaged, so that recovery may fall back by one more.
        assert found.step in ({1, 2, 3} if work is recovering and how in {"EIO", "ENOSPC", "short"} else {2, 3})
        assert is_right(found)
        again = Checkpoints(folder)
        again.sweep()
        again.save(5, state(5))
        assert is_right(again.newest())
        assert not [path for path in folder.iterdir() if ".tmp-" in path.name]
        if disk.left > 0:
            break
    else:
        pytest.fail("the work never came through")
    assert fired >= 10


def test_a_save_that_came_back_survives_a_power_cut(tmp_path: Path) -> None:
    disk = FaultyDisk(0, "power")
    for step in (1, 2, 3):
        Checkpoints(tmp_path, disk=disk).save(step, state(step))
        disk.cut()
        found = Checkpoints(tmp_path).newest()
        assert found is not None
        assert found.step == step
        assert is_right(found)


def test_nothing_old_is_deleted_before_the_new_one_reads_back(tmp_path: Path) -> None:
    class Rotten(Disk):
        def digest(self, path: Path) -> str:
            return "0" * 64

    for step in (1, 2):
        Checkpoints(tmp_path).save(step, state(step))
    with pytest.raises(OSError, match="reads back differently"):
        Checkpoints(tmp_path, disk=Rotten()).save(3, state(3))
    assert Checkpoints(tmp_path).steps() == [3, 2, 1]


def test_every_damage_is_noticed_and_the_one_before_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (7, 9):
        checkpoints.save(step, state(step))
    path = checkpoints.path(9)
    good = path.read_bytes()
    chance = random.Random(0)
    for attempt in range(300):
        bad = bytearray(good)
        place = chance.randrange(len(good))
        if attempt % 3 == 0:
            bad[place] ^= 1 << chance.randrange(8)
        elif attempt % 3 == 1:
            bad = bad[:place]
        else:
            bad[place : place + 512] = bytes(min(512, len(good) - place))
        if bad == good:
            continue
        path.write_bytes(bad)
        found = checkpoints.newest()
        assert found is not None
        assert (found.step, found.damaged) == (7, (path,))
        assert is_right(found)
    assert "steps lost: 2" in caplog.text
    checkpoints.set_aside(path)
    assert checkpoints.steps() == [7]
    assert (tmp_path / "step-000009.ckpt.damaged").exists()


@pytest.mark.parametrize("kind", ["copied", "bytes", "list", "no schema", "fault"])
def test_content_that_its_checksum_vouches_for_is_looked_at_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state(2))
    path = checkpoints.path(9)
    if kind == "copied":
        path.write_bytes(checkpoints.path(2).read_bytes())
    elif kind == "bytes":
        path.write_bytes(b"no checkpoint")
    else:
        content = {"list": [9], "no schema": {"step": 9}, "fault": {"schema": 1, "step": 9, "odd": True}}[kind]
        torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
    found = checkpoints.newest(lambda content: "odd it is" if "odd" in content else "")
    assert found is not None
    assert (found.step, found.damaged) == (2, (path,))
    says = {"copied": "holds step 2", "fault": "odd it is", "bytes": "can't be loaded"}
    assert says.get(kind, "is no checkpoint") in caplog.text


def test_all_damaged_is_an_error_and_nothing_is_touched(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.path(1).write_bytes(b"")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        checkpoints.newest()
    assert sorted(tmp_path.iterdir()) == before


def test_the_newest_are_kept_and_a_name_is_written_once(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.newest() is None
    for step in (1, 2, 10, 9, 11):
        checkpoints.save(step, state(step))
    assert checkpoints.steps() == [11, 10, 9]
    before = checkpoints.path(11).stat().st_mtime_ns
    checkpoints.save(11, state(99))
    assert checkpoints.path(11).stat().st_mtime_ns == before


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssldet.engine import steps

    monkeypatch.setattr(steps, "SCHEMA", 99)
    Checkpoints(tmp_path).save(1, state(1))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has schema 99, this ssldet reads 1"):
        Checkpoints(tmp_path).newest()


def test_only_what_loads_without_code_is_saved(tmp_path: Path) -> None:
    plain({"a": [1, 2.0, None, "x", True, (torch.zeros(2), {3: "y"})]})
    with pytest.raises(TypeError, match=r"state\.folder: PosixPath would not load"):
        Checkpoints(tmp_path).save(1, {"folder": tmp_path})
    with pytest.raises(TypeError, match="neither text nor a whole number"):
        plain({(1, 2): 3})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_will_be_full_is_noticed_at_the_start(tmp_path: Path) -> None:
    assert room_for(10**9, 2, tmp_path, 3 * 10**9) is None
    problem = room_for(10**9, 2, tmp_path, 2 * 10**9)
    assert problem is not None
    assert "2.00 GB free, but 3 checkpoints need 3.00 GB" in problem
