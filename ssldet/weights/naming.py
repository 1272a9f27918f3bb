"""names of tensors in one project <-> in another, by a table of their beginnings."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Naming:
    """Names of the tensors of one architecture in another project.

    Attributes:
        starts: Beginning of a name there -> in our detector.
        layers: For encoder and decoder, by the beginnings of our names: name of a part of a layer there -> here.
    """

    starts: Mapping[str, str]
    layers: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @cached_property
    def backwards(self) -> "Naming":
        """The table from our names to theirs."""
        starts = {ours: theirs for theirs, ours in self.starts.items()}
        layers = {
            starts[stack]: {ours: theirs for theirs, ours in parts.items()} for stack, parts in self.layers.items()
        }
        return Naming(starts=starts, layers=layers)

    def rename(self, name: str) -> str | None:
        """Return the other name of a tensor; `None` if it begins like none of the table.

        Args:
            name: Its name.
        """
        start = max((start for start in self.starts if name.startswith(start)), key=len, default=None)
        if start is None:
            return None
        other, rest = self.starts[start], name[len(start) :]
        if parts := self.layers.get(other):
            rest = re.sub(r"^(layers\.\d+\.)(\w+)", lambda found: found[1] + parts.get(found[2], found[2]), rest)
        return other + rest


def count_parts(names: Iterable[str], start: str) -> int:
    """Return how many parts a module has, such as the layers of an encoder: different words that follow its name.

    Args:
        names: Names of tensors.
        start: The module's name with the dot behind it, such as `encoder.layers.`.
    """
    return len({name[len(start) :].partition(".")[0] for name in names if name.startswith(start)})
