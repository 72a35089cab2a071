"""How the site is built: `make docs`."""

import shiftjax

project = "shiftjax"
author = "The shiftjax developers"
release = version = shiftjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"shiftjax {version}"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
suppress_warnings = ["myst.xref_missing"]  # links to files beside the pages
