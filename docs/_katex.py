"""Typesets mathematics with the KaTeX that is stored in `_static/katex`: no network is needed."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

STYLES = ("katex/katex.min.css",)
SCRIPTS = ("katex/katex.min.js", "katex/auto-render.min.js", "typeset.js")


def inline(translator: Any, node: nodes.math) -> None:
    """Write a formula of a sentence between the marks that `typeset.js` replaces."""
    translator.body.append(rf'<span class="math">\({translator.encode(node.astext())}\)</span>')
    raise nodes.SkipNode


def display(translator: Any, node: nodes.math_block) -> None:
    """Write a displayed formula."""
    translator.body.append(
        rf'<div class="math">\[{translator.encode(node.astext())}\]</div>' + "\n"
    )
    raise nodes.SkipNode


def load_on_pages_with_formulas(
    app: Sphinx, page: str, template: str, context: dict[str, Any], document: nodes.document | None
) -> None:
    """Add KaTeX to the pages that need it."""
    if document is None or not any(document.findall(nodes.Element)):
        return
    if next(document.findall(lambda node: isinstance(node, nodes.math | nodes.math_block)), None):
        for style in STYLES:
            app.add_css_file(style)
        for script in SCRIPTS:
            app.add_js_file(script, loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer with Sphinx."""
    app.add_html_math_renderer("katex", (inline, None), (display, None))
    app.connect("html-page-context", load_on_pages_with_formulas)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
