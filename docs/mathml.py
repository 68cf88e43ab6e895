"""Formulas of the site as MathML, which browsers set by themselves: LaTeX is converted while the site is built."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
"""What pymdownx.arithmatex makes of a formula, within a line or on its own."""

FUNCTION = re.compile(r"\\((?:log|exp|tanh)(?:_\w)?)(?![a-zA-Z])\s*(?!\s|\\left|\\Big|[(_^,;.&]|$)")
"""A function's name before its argument, but for one in parentheses."""


def on_page_content(page_html: str, **_: Any) -> str:
    """Replace every formula of a page."""
    return FORMULA.sub(lambda found: mathml(html.unescape(found[2]), block=found[1] == "div"), page_html)


def mathml(latex: str, *, block: bool) -> str:
    r"""Convert a formula.

    Raises:
        ValueError: it holds a command that the converter does not know.

    Example:
        >>> mathml(r"\log x", block=False)[-62:]
        '<mi>log</mi><mspace width="0.167em" /><mi>x</mi></mrow></math>'
    """
    spaced = FUNCTION.sub(r"\\\1\\,", latex.strip()).replace(r"\arg", r"\operatorname{arg}\,")
    converted = convert(spaced, display="block" if block else "inline").replace(r"\_", "_")
    if "\\" in converted:
        raise ValueError(f"formula: expected commands that latex2mathml knows, got {latex!r}")
    return converted
