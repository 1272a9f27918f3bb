"""this machine, some images -> findings, each with its remedy."""

import logging
import os
import platform
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ssldet.errors import SsldetError

log = logging.getLogger(__name__)

NEEDED = {
    "torch": (2, 6),
    "torchvision": (0, 21),
    "timm": (1, 0, 20),
    "lightly": (1, 6),
    "pytorch-lightning": (2, 6, 4),
    "pillow": (12, 0),
}
"""Package -> oldest version that works: older Lightning was once compromised, older Pillow and torch are unsafe."""

OPTIONAL = {
    "transformers": "Hugging Face export; pip install transformers",
    "detectron2": "training in detectron2; see ssldet doctor detectron2",
}

DETECTRON2 = "detectron2"
"""Argument of `doctor` that is not an image folder; a folder of that name is `./detectron2`."""
DETECTRON2_NEEDS = {
    "fvcore": ((0, 1, 5), (0, 1, 6)),
    "iopath": ((0, 1, 7), (0, 1, 10)),
    "omegaconf": ((2, 1), (2, 4)),
    "yacs": ((0, 1, 8), (1,)),
}
"""Package that detectron2 needs -> oldest version that works, and the first later one that doesn't."""
DETECTRON2_INSTALL = (
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2', which no package index has "
    "and which compiles against the torch that is installed"
)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: Name of the part that was checked.
        ok: Whether it works; `None` for information that is neither good nor bad.
        detail: State of the part, such as its version.
        remedy: What to do; empty where nothing is wrong.
    """

    subject: str
    ok: bool | None
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return one line."""
        mark = {True: "ok  ", False: "FAIL", None: "note"}[self.ok]
        return f"{mark}  {self.subject}: {self.detail}" + (f"  ->  {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Findings:
    """The results of all checks, in order."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed."""
        return all(finding.ok is not False for finding in self.findings)

    def __str__(self) -> str:
        """Return one line per finding."""
        return "\n".join(map(str, self.findings))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"healthy": self.healthy, "findings": [asdict(finding) for finding in self.findings]}


def doctor(images: Sequence[str] = ()) -> Findings:
    """Check the machine and, if given, whether images can be read, and how the tiny pretext task looks on them.

    Args:
        images: Folders, globs, file lists or single files; or `detectron2`, to check its installation instead.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [_python, _packages, _optional, _devices, _limits]
    if tuple(images) == (DETECTRON2,):
        checks = [_python, _packages, _detectron2]
    named = {check.__name__.strip("_"): check for check in checks}
    if images and tuple(images) != (DETECTRON2,):
        named["images"] = partial(_images, images)
    findings: list[Finding] = []
    for name, check in named.items():
        try:
            findings += check()
        except SsldetError as error:
            findings.append(Finding(name, False, str(error)))
    return Findings(tuple(findings))


def _python() -> Iterator[Finding]:
    fine = sys.version_info >= (3, 11)
    yield Finding("python", fine, platform.python_version(), "" if fine else "ssldet needs Python 3.11 or newer")


def _packages() -> Iterator[Finding]:
    for package, least in NEEDED.items():
        yield _version_of(package, least)


def _version_of(package: str, least: tuple[int, ...], limit: tuple[int, ...] | None = None) -> Finding:
    """Check that a package is installed in a version of at least `least` and below `limit`."""
    requirement = f"{package}>={_dotted(least)}" + ("" if limit is None else f",<{_dotted(limit)}")
    remedy = f"pip install '{requirement}'"
    try:
        installed = version(package)
    except PackageNotFoundError:
        return Finding(package, False, "not installed", remedy)
    numbers = tuple(int(part) for part in installed.split("+")[0].split(".")[:3] if part.isdigit())
    fine = least <= numbers and (limit is None or numbers < limit)
    return Finding(package, fine, installed, "" if fine else remedy)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _optional() -> Iterator[Finding]:
    for package, use in OPTIONAL.items():
        present = find_spec(package) is not None
        yield Finding(package, True if present else None, "installed" if present else f"not installed; only for {use}")


def _detectron2() -> Iterator[Finding]:
    """Check the parts of detectron2, which may be missing, broken or too new."""
    if find_spec(DETECTRON2) is None:
        yield Finding(DETECTRON2, False, "not installed", DETECTRON2_INSTALL)
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        remedy = "" if compiler else "install one, such as g++, before detectron2"
        yield Finding("C++ compiler", bool(compiler), compiler or "none found", remedy)
        return
    try:
        yield Finding(DETECTRON2, True, version(DETECTRON2))
    except PackageNotFoundError:
        yield Finding(DETECTRON2, False, "a folder of that name lies here", "change to another folder")
        return
    yield _compiled_part()
    for package, (least, limit) in DETECTRON2_NEEDS.items():
        yield _version_of(package, least, limit)
    zoo = find_spec("pkg_resources") is not None
    state = "can be imported" if zoo else "needs pkg_resources, which setuptools 82 dropped; ours do without it"
    yield Finding("detectron2.model_zoo", True if zoo else None, state, "" if zoo else "pip install 'setuptools<82'")
    panoptic = find_spec("panopticapi") is not None
    state = "installed" if panoptic else "not installed; our own metric stands in for it"
    yield Finding("panopticapi", True if panoptic else None, state)


def _compiled_part() -> Finding:
    """Load the compiled part of detectron2, which fails after a change of torch or in detectron2's source folder."""
    import_module("torch")  # its libraries must be there first
    try:
        import_module("detectron2._C")
    except ImportError as error:
        remedy = f"change to another folder than detectron2's sources, or build it anew: {DETECTRON2_INSTALL}"
        return Finding("detectron2._C", False, f"can't be loaded ({error})", remedy)
    return Finding("detectron2._C", True, "loads")


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            yield Finding(f"cuda:{number}", True, f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    else:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding("device", None, f"no CUDA device; {cores} CPU cores: use the recipes named .../small")


def _limits() -> Iterator[Finding]:
    if find_spec("resource"):
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        yield Finding("open files", files >= 1024, f"limit {files}", "" if files >= 1024 else "ulimit -n 4096")
    shared = Path("/dev/shm")  # noqa: S108  # where loader workers hand over batches on Linux
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**30
        fine = free > 0.5
        remedy = "" if fine else "give the container more shared memory (--shm-size=2g) or set data.workers=0"
        yield Finding("shared memory", fine, f"{free:.1f} GiB free", remedy)
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Finding("disk", free > 2, f"{free:.0f} GiB free here", "" if free > 2 else "checkpoints need room; free some")


def _images(images: Sequence[str]) -> Iterator[Finding]:
    from ssldet.data.images import ImageRules
    from ssldet.data.sources import open_source
    from ssldet.engine.run import DataConfig
    from ssldet.verbs import preview
    from ssldet.verbs.look import NO_FORECAST

    log.info("looking at %s", ", ".join(images))
    source = open_source(images, ImageRules())
    bad = Counter(skipped.reason for skipped in source.skipped)
    detail = f"{len(source)} usable" + "".join(f", {count} {reason}" for reason, count in bad.most_common())
    share = len(source.skipped) / (len(source) + len(source.skipped))
    fine = share <= DataConfig.max_bad_fraction
    remedy = "" if fine else f"remove them, or train with --set data.max_bad_fraction={share + 0.001:.3f}"
    yield Finding("images", fine, detail, remedy)
    log.info("%d images can be used; now trying the pretext task on some of them", len(source))
    measured = preview(images, draw=False)
    for name, value in measured.probe.items():
        yield Finding(name, None, f"{value:.3f}, {measured.meanings.get(name, 'a number of the task')}; no forecast")
    if measured.probe:
        yield Finding("forecast", None, NO_FORECAST, measured.advice)
