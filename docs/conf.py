"""Sphinx configuration: `make docs` builds the site in out/docs, without network access; warnings are errors."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generated  # the module beside this file  # noqa: E402

import relu_deploy  # noqa: E402

project = "relu_deploy"
author = "the relu_deploy authors"
project_copyright = "the relu_deploy authors, Apache-2.0"
version = release = relu_deploy.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["*.py"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

napoleon_google_docstring = True
napoleon_numpy_docstring = False

# `names` in docstrings are code, as in Markdown.
default_role = "code"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
add_module_names = False
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"relu_deploy {version}"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["style"]
html_css_files = ["tables.css"]
pygments_style = "default"


def setup(app: object) -> None:
    app.connect("source-read", generated.expand_page)  # type: ignore[attr-defined]
