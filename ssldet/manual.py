"""name of a page -> its text: the documentation that an installed package carries, for `ssldet docs`."""

from pathlib import Path

from ssldet.errors import ConfigError, suggest
from ssldet.regular import read_text

FOLDERS = (Path(__file__).with_name("docs"), Path(__file__).parents[1] / "docs")
"""Where the pages lie: in the package, or beside it where it is used from its source."""


def pages() -> dict[str, Path]:
    """Return every page by its name."""
    folder = next((folder for folder in FOLDERS if (folder / "index.md").is_file()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.md"))}


def title_of(path: Path) -> str:
    """Return the first heading of a page.

    Args:
        path: Its file.
    """
    return next((line[2:].strip() for line in read_text(path).splitlines() if line.startswith("# ")), path.stem)


def page(name: str) -> str:
    """Return a page as Markdown.

    Args:
        name: One of `pages()`.

    Raises:
        ConfigError: There is no such page.
    """
    known = pages()
    if name not in known:
        raise ConfigError(f"no page {name!r}{suggest(name, known)}; ssldet docs lists all")
    return read_text(known[name])


def contents() -> str:
    """Return a line for each page: its name and its title."""
    known = pages()
    if not known:
        return "this installation carries no pages; they are in the folder docs of the source"
    width = max(map(len, known))
    lines = [f"{name:<{width}}  {title_of(path)}" for name, path in known.items()]
    folder = next(iter(known.values())).parent
    return "\n".join([*lines, "", f"ssldet docs NAME shows a page; all lie in {folder}"])
