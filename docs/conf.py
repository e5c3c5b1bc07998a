"""Sphinx's settings for the documentation: `make docs` writes build/docs/index.html.

The site needs no network, neither to build nor to read, and no server: it is opened as a file.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import finemoe  # noqa: E402 - from this checkout, wherever Sphinx is called
from finemoe.artifact.docs.notebooks import stage_notebooks  # noqa: E402
from finemoe.artifact.docs.site import site_links  # noqa: E402

project = "finemoe"
author = "The finemoe authors"
copyright = "The finemoe authors, Apache-2.0"
version = release = finemoe.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]
nitpicky = True
# Without a network other projects' inventories are not at hand: only names of finemoe are resolved.
# The engine's parts are internal; only their types appear.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!finemoe).*"),
    (r"py:class", r"finemoe\.runtime\.(devices|iteration|parts|probe|session|tiers)\..*"),
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # would be fetched
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
# Notebooks hold what libraries printed, which no lexer need understand.
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"finemoe {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
pygments_style = "friendly"


def setup(app):
    """Executed notebooks of another run: `sphinx-build -D executed_notebooks=results/smoke/notebooks ...`."""
    app.add_config_value("executed_notebooks", "results/notebooks", "", str)
    # Sphinx looks for sources only once its configuration is read.
    app.connect("config-inited", lambda _, config: stage_notebooks(ROOT / config.executed_notebooks))
    app.connect("source-read", _with_links)


def _with_links(app, docname, source):
    source[0] = site_links(source[0], docname)
