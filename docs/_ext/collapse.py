"""The directive ``collapse``: content that a reader opens, under a title."""

from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Collapse(SphinxDirective):
    """Its argument is the title."""

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """The content between the two tags."""
        start = f"<details><summary>{escape(self.arguments[0])}</summary>"
        return [
            nodes.raw("", start, format="html"),
            *self.parse_content_to_nodes(),
            nodes.raw("", "</details>", format="html"),
        ]


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("collapse", Collapse)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
