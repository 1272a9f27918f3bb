"""How the pages are built: `make docs`; with SSLDET_DOCS=quick, the tutorial trains for one step only."""

import os
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cells
import generated

project = "ssldet"
author = "The ssldet authors"
version = release = installed("ssldet")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "ssldet"
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8f", "color-brand-content": "#0b5c8f"},
    "dark_css_variables": {"color-brand-primary": "#74bde8", "color-brand-content": "#74bde8"},
}
exclude_patterns = ["_build", "adr"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
myst_heading_anchors = 2


def setup(app: Any) -> None:
    """Write what is generated before the pages are read, and execute the tutorial when it is."""
    app.connect("builder-inited", lambda app: generated.write(HERE / "_generated"))
    app.connect("source-read", _execute)


def _execute(app: Any, name: str, source: list[str]) -> None:
    if name == "tutorial":
        settings = cells.SMALL if os.environ.get("SSLDET_DOCS") == "quick" else None
        source[0] = cells.executed(source[0], HERE / "_generated" / "tutorial", settings)
