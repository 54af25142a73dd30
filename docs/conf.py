"""Settings of Sphinx; `make docs` builds the pages."""

from __future__ import annotations

import hyparflow

project = "hyparflow"
author = "The hyparflow authors"
version = release = hyparflow.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings put names between single backquotes
highlight_language = "text"  # a block that does not say what it is may be anything
smartquotes_action = "D"  # dashes, but no curly quotes: "data" is what is typed
napoleon_use_param = False  # else arguments that are described together are torn apart
napoleon_use_ivar = True
napoleon_attr_annotations = False  # as above: the descriptions say it
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the descriptions say what is taken; so signatures stay short
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"{project} {release}"
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["pages.css"]
