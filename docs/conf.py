"""Sphinx: the pages of this folder, and a reference made of the docstrings."""

from __future__ import annotations

import sys
from pathlib import Path

from click import Context
from sphinx.application import Sphinx

# The docstrings are those of the checkout that the pages lie in, whatever else is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from adversarial_bench import __version__

project = "adversarial-bench"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_click"]
exclude_patterns = ["jupyter_execute", "_build", "plugin-example"]

html_theme = "furo"
html_title = f"adversarial-bench {version}"
html_show_copyright = False
html_copy_source = False

# Two hyphens begin an option.
smartquotes = False
# What the docstrings mean by single backticks is code, as in Markdown.
default_role = "code"
# Blocks without a language are output, not Python.
highlight_language = "none"
# A notebook's stored output is shown; a test runs it.
nb_execution_mode = "off"
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autodoc_default_options = {"members": True}


def example(app: Sphinx, context: Context, lines: list[str]) -> None:
    """An epilog is a command line, in which an asterisk emphasises nothing."""
    lines[:] = ["::", "", *(f"   {line}" for line in lines), ""] if lines else []


def setup(app: Sphinx) -> None:
    app.connect("sphinx-click-process-epilog", example)
