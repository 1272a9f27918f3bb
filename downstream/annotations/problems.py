"""faults of an annotation file -> one AnnotationError: everything that is wrong, said at once."""

from pathlib import Path

from ssldet.errors import AnnotationError

SHOWN = 10
"""Places listed for each kind of fault; the rest is counted."""


class Problems:
    """Collects what is wrong with one file or folder.

    Attributes:
        path: The file or folder, named at the top of the message.
    """

    def __init__(self, path: Path) -> None:
        """Start with nothing wrong.

        Args:
            path: The file or folder that is read.
        """
        self.path = path
        self._places: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._total = 0

    def add(self, where: str, what: str, remedy: str) -> None:
        """Note one fault.

        Args:
            where: A JSON pointer (`$.annotations[3].bbox`) or `file:line`.
            what: What was found there.
            remedy: What should be there and what to do; faults with the same remedy are listed together.
        """
        self._total += 1
        self._counts[remedy] = self._counts.get(remedy, 0) + 1
        places = self._places.setdefault(remedy, [])
        if len(places) < SHOWN:
            places.append(f"{where}: {what}")

    def __len__(self) -> int:
        """Number of faults."""
        return self._total

    def stop(self) -> None:
        """Go on only if nothing is wrong.

        Raises:
            AnnotationError: One line for each fault, up to ten of each kind and the count of the others.
        """
        if not self._total:
            return
        lines = [f"{self.path}: {self._total} problem{'s' if self._total > 1 else ''}"]
        for remedy, places in self._places.items():
            lines += [f"  {place}; {remedy}" for place in places]
            if more := self._counts[remedy] - len(places):
                lines.append(f"  … and {more} more of this kind ({remedy})")
        raise AnnotationError("\n".join(lines))


def shown(value: object, limit: int = 60) -> str:
    """Return how a foreign value looks, on one line and cut to a readable length.

    Args:
        value: Anything that a file may hold.
        limit: Largest number of characters.
    """
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= limit else text[: limit - 1] + "…"
