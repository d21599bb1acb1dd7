"""Configuration of Sphinx: everything comes from this checkout, nothing from the network."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples"), str(Path(__file__).parent / "_ext")]
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), os.environ.get("PYTHONPATH", "")]
)
os.environ["MPLBACKEND"] = "Agg"

import ddu_ops  # noqa: E402  # found on the path above

project = "ddu_ops"
author = "The ddu_ops authors"
project_copyright = author
release = version = ddu_ops.__version__

extensions = [
    "collapse",
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "native_math",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "tutorials"]
suppress_warnings = ["config.cache"]  # the gallery's settings are objects

smartquotes = False  # two hyphens are two hyphens: options are shown

html_theme = "furo"
html_title = f"ddu_ops {release}"
repository = os.environ.get(
    "GITHUB_REPOSITORY"
)  # a checkout does not know where it is published
html_theme_options = (
    {
        "source_repository": f"{os.environ['GITHUB_SERVER_URL']}/{repository}/",
        "source_branch": "main",
        "source_directory": "docs/",
    }
    if repository
    else {}
)
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "native"
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # as the source writes them
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80  # longer ones have a parameter per line
napoleon_custom_sections = [("Shape", "notes_style"), ("Types", "notes_style")]
napoleon_use_ivar = True

# The part of torch's inventory that these pages link to. Sphinx would download all of it, and a build uses no network.
intersphinx_mapping = {"torch": ("https://docs.pytorch.org/docs/stable/", "torch.inv")}

plot_formats = [("png", 130)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_include_source = False

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "ignore_repr_types": r"matplotlib\.",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1,
    "reference_url": {"ddu_ops": None},
    "remove_config_comments": True,
}


def short_types(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str,
    returns: str,
) -> Any:
    """``int`` for ``SupportsIndex``, and a default that can be parsed for a field's factory."""
    texts = (text and text.replace("<factory>", "...") for text in (signature, returns))
    return [
        text and re.sub(r"~?typing\.SupportsIndex|SupportsIndex", "int", text)
        for text in texts
    ]


def setup(app: Sphinx) -> None:
    """Connect what the settings above cannot say."""
    app.connect("autodoc-process-signature", short_types)
