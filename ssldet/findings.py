"""What an evaluation found, object by object: figures that a report explains, and examples that it shows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["found", "missed", "false"]
"""An object that was found, one that was not, and a detection of nothing."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One object or detection to show.

    Attributes:
        outcome: What became of it.
        key: `Sample.key` of its image.
        name: Class of the detection; of a missed object, its own.
        detected: The detection, absolute xyxy in pixels of the image on disk; `None` where there is none.
        object: The object that was found, missed or meant, in the same form; `None` where there is none.
        score: Confidence of the detection.
        overlap: Overlap of the detection with the object.
        error: Kind of the mistake, and for a wrong class the right one; empty for what was found.
    """

    outcome: Outcome
    key: str
    name: str
    detected: tuple[float, float, float, float] | None = None
    object: tuple[float, float, float, float] | None = None
    score: float | None = None
    overlap: float | None = None
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What stands behind the figures of an evaluation.

    Attributes:
        figures: Plain values, such as the baseline, the costs of mistakes and precision-recall curves; a report shows
            those that it knows.
        examples: What to show, each kind in the order of its pictures.
    """

    figures: Mapping[str, Any]
    examples: Sequence[Example] = field(default=())
