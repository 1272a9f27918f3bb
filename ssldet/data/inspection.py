"""data specification -> Inspection: what is wrong with a data set and what it holds, before anything is trained."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ssldet.data.files import tally
from ssldet.data.images import ImageRules, open_images
from ssldet.data.object_sizes import SMALL, ObjectSizes, Resizing
from ssldet.errors import DataError
from ssldet.escapes import counted, printable
from ssldet.types import Skipped


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found in one data set.

    Attributes:
        spec: What was looked at.
        problems: `where`, `what` and `remedy` of everything that keeps it from being used; up to a thousand of a kind.
        problem_count: How many problems there are.
        warnings: What was put right silently, or may not be what it seems.
        skipped: Files that can't be used and are gone round.
        counts: What the set holds.
        boxes_per_class: How often each class occurs, in the order of the labels; crowd regions are not counted.
        small_objects: How many objects are small for a recipe, by its name; empty where that is not known.
        advice: What helps where most objects are small; empty where they are not.
        object_sizes: How large objects are, crowd regions left out, where the checker knows; not part of the text.
    """

    spec: str
    problems: tuple[dict[str, str], ...] = ()
    problem_count: int = 0
    warnings: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    boxes_per_class: dict[str, int] = field(default_factory=dict)
    small_objects: dict[str, int] = field(default_factory=dict)
    advice: str = ""
    object_sizes: ObjectSizes | None = None

    @property
    def sound(self) -> bool:
        """Whether it can be trained and evaluated on."""
        return not self.problem_count

    def __str__(self) -> str:
        """Say it in lines."""
        lines = [f"{self.spec}: {counted(self.problem_count, 'problem') if self.problem_count else 'no problems'}"]
        lines += [f"  error    {_line(entry)}" for entry in self.problems]
        if more := self.problem_count - len(self.problems):
            lines.append(f"  error    … and {more} more of these kinds")
        lines += [f"  warning  {text}" for text in self.warnings]
        if self.advice:
            lines.append(f"  advice   {self.advice}")
        if self.skipped:
            lines.append(f"  warning  {len(self.skipped)} files can't be used ({tally(self.skipped)}):")
            lines += [f"           {entry.path}: {entry.reason}" for entry in self.skipped]
        lines += [f"  {count:>8} {what}" for what, count in self.counts.items()]
        for recipe, count in self.small_objects.items():
            lines.append(f"  {count:>8} objects smaller than {SMALL} x {SMALL} pixels in {recipe}")
        lines += [f"  {count:>8} boxes of {name}" for name, count in self.boxes_per_class.items()]
        return "\n".join(map(printable, lines))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        document = asdict(replace(self, object_sizes=None))
        del document["object_sizes"]
        return {"sound": self.sound, **document}

    def seen_by(self, resizing: Resizing, recipe: str) -> "Inspection":
        """Return this with the number of objects that are small for a recipe, and with what helps if they are many.

        Args:
            resizing: How a recipe resizes images.
            recipe: Its name.
        """
        if self.object_sizes is None:
            return self
        small = {recipe: int(self.object_sizes.small(resizing).sum())}
        return replace(self, small_objects=small, advice=self.object_sizes.advice(resizing, recipe))


def inspect_images(spec: str, rules: ImageRules) -> Inspection:
    """Look at images without labels: which of them can be used.

    Args:
        spec: See `files.list_files`.
        rules: Which images are usable.
    """
    try:
        source = open_images([spec], rules)
    except DataError as error:
        return not_opened(spec, error)
    warnings = (source.usable.unread,) if source.usable.unread else ()
    return Inspection(spec=spec, warnings=warnings, skipped=source.skipped, counts={"images": len(source)})


def not_opened(spec: str, error: DataError) -> Inspection:
    """Return what is said of a set that can't be opened.

    Args:
        spec: What was to be opened.
        error: Why that failed; its message may begin with the specification.
    """
    problem = {"where": spec, "what": str(error).removeprefix(f"{spec}: "), "remedy": ""}
    return Inspection(spec=spec, problems=(problem,), problem_count=1)


def _line(problem: dict[str, str]) -> str:
    remedy = f"; {problem['remedy']}" if problem["remedy"] else ""
    return f"{problem['where']}: {problem['what']}{remedy}"
