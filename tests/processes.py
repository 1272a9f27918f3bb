"""Which processes of some groups still run, as Linux tells."""

from collections.abc import Collection
from pathlib import Path


def running_of(groups: Collection[int]) -> dict[int, int]:
    """Return the processes of these groups that have not ended, each with its group."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            # The name of the program, in brackets, may hold anything.
            state, _, group = (place / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) in groups and state not in "ZX":
            found[int(place.name)] = int(group)
    return found
