"""The site that `make docs` builds: these pages, the bundles' own, and a reference from the docstrings."""

from __future__ import annotations

import re

from monai.transforms import MapTransform
from sphinx.application import Sphinx

import monai_unet

del MapTransform.__new__  # it takes (*args, **kwargs), which Sphinx would show instead of each transform's parameters

project, release = "monai_unet", monai_unet.__version__
html_title = f"{project} {release}"
html_theme = "furo"
html_show_copyright = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["long_lines.css"]
html_extra_path = ["front"]  # index.html, which leads to the first page

# the source folder is the repository's: links between README, pages and bundles are those of a code host
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md", "docs/api/*.rst", "bundles/*/docs/README.md"]

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
highlight_language = "none"  # a block without a language is not Python
myst_heading_anchors = 3
default_role = "py:obj"  # `Name` in a docstring leads to that name
autodoc_member_order = "groupwise"
autodoc_typehints = "description"
autodoc_inherit_docstrings = False  # MONAI's and torch's are theirs
napoleon_custom_sections = [("Shapes", "params_style")]


def lead_to_reference(app: Sphinx, name: str, source: list[str]) -> None:
    """Lead links to the package's source to the reference: on a code host they show the source."""
    source[0] = re.sub(r"\]\(monai_unet/(\w+)[^)]*\)", r"](docs/api/\1.rst)", source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", lead_to_reference)
