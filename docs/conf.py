"""Configuration of Sphinx; `make docs` builds the site into `site/`."""

import gc
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the package, and the extensions beside this file

from pyroae._version import __version__  # noqa: E402

project = "pyroae"
author = "The pyroae authors"
project_copyright = "The pyroae authors"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "_docstrings", "sphinx.ext.napoleon", "_katex"]
exclude_patterns = ["_*"]
default_role = "code"
highlight_language = "none"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

nb_execution_mode = "off"  # outputs are stored: `python docs/_notebooks.py --write`
nb_ipywidgets_js = {}  # no scripts from elsewhere
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # those of torch and Pyro are written in other forms
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"pyroae {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False


def setup(app: Sphinx) -> None:
    """Leave memory to the end of the process: searching nodes of pages for garbage would be a
    quarter of the time.
    """
    gc.disable()
    app.connect("build-finished", lambda *_: gc.freeze())
