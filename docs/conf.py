"""How the site is built: `make docs`."""

from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

import shiftjax

project = "shiftjax"
author = "The shiftjax developers"
project_copyright = author
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
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

# A field is listed once, with the text of "Attributes:" or of its own docstring.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_use_ivar = True
default_role = "code"  # single backquotes in docstrings
suppress_warnings = ["myst.xref_missing"]  # links to files beside the pages

# In Flax the variables are arrays.
_label = next(f for f in PyObject.doc_field_types if f.name == "variable")
_label.label = "Attributes"


def skip_values(
    app: Sphinx, what: str, name: str, value: object, skip: bool, options: object
) -> bool | None:
    """Skips fields whose default, a class or a function, has a docstring of its own."""
    if what != "class":
        return None
    named_tuple = type(value).__name__ == "_tuplegetter"
    return True if named_tuple or getattr(value, "__name__", name) != name else None


def keep_plain(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Keeps the text of an option plain: "a: b" has no type, and "*" no emphasis."""
    if what == "attribute":  # Napoleon searches the first line, here a comment
        lines[:] = ["..", "", *(line.replace("*", r"\*") for line in lines)]


def setup(app: Sphinx) -> None:
    """Connects the functions above to autodoc."""
    app.connect("autodoc-process-docstring", keep_plain, priority=400)
    app.connect("autodoc-skip-member", skip_values)
