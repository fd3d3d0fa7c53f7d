"""How the site is built: `make docs` writes it to out/docs, without the network; every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import generated  # beside this file, which is what the lines above are for  # noqa: E402  # beside this file, which is what the lines above are for

import relu_deploy  # noqa: E402

project = "relu_deploy"
author = "the relu_deploy authors"
project_copyright = "the relu_deploy authors, Apache-2.0"
version = release = relu_deploy.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["*.py"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

# `names` in docstrings are code, as they are in Markdown.
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
    app.connect("source-read", generated.fill_in)  # type: ignore[attr-defined]
