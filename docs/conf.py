"""How the pages are built: `make docs`."""

from importlib.metadata import version as installed

project = "ssldet"
author = "The ssldet authors"
version = release = installed("ssldet")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "ssldet"
exclude_patterns = ["_build", "adr"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
myst_heading_anchors = 2
