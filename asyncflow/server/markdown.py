"""Markdown as HTML that is safe to show, whoever wrote it.

Twice guarded: the parser knows no HTML of its own, so that tags in the text become text; and what
it makes is let through by an allow-list only, so that a mistake in the one is none in the other.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from typing import TYPE_CHECKING

from asyncflow.errors import MissingExtra
from asyncflow.exhibits import clean as clean_text

if TYPE_CHECKING:
    from collections.abc import Callable

#: Characters of a text that are read; artifacts are shorter.
LONGEST = 96 * 1024
#: Brackets, of which each is tried as a link: a text with more is shown as it is.
BRACKETS = 4096
#: Block quotes in lists in block quotes: what is deeper is left out.
NESTED = 20

TAGS = {
    "a", "b", "blockquote", "br", "code", "dd", "del", "dl", "dt", "em", "h1", "h2", "h3", "h4",
    "h5", "h6", "hr", "i", "img", "li", "ol", "p", "pre", "s", "strong", "sub", "sup", "table",
    "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
ATTRIBUTES = {"a": {"href", "title"}, "img": {"src", "alt", "title"}, "ol": {"start"}}
SCHEMES = {"http", "https", "mailto"}

#: Pictures inside of the text, whole, and of kinds that hold no programs. Pictures elsewhere would
#: tell others who looks at them, and when.
_PICTURE = re.compile(r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+={0,2}")
#: What a link may begin with. The allow-list checks schemes again; here, too, none may be left out.
_LINK = re.compile(r"(?:https?://|mailto:)[^\s<>\"'`\\]+", re.IGNORECASE)


def safe_html(markdown: str) -> str:
    """*markdown* as HTML without scripts, styles, event handlers, frames or forms.

    Links lead to http, https or mailto only, open in a new tab and tell nothing about this page.
    Pictures are those that stand in the text as ``data:`` URLs of PNG, JPEG, GIF or WebP.

    It may take a second or two for a long text: call it in a thread.

    Args:
        markdown: CommonMark, with tables and ~~strikethrough~~; HTML in it is shown as text.

    Raises:
        MissingExtra: markdown-it-py or nh3 is not installed.
    """
    render, clean = _tools()
    text = clean_text(markdown[:LONGEST])
    if text.count("[") > BRACKETS:
        return f"<pre>{escape(text)}</pre>"
    return clean(render(text))


@cache
def _tools() -> tuple[Callable[[str], str], Callable[[str], str]]:
    try:
        import nh3
        from markdown_it import MarkdownIt
    except ImportError as error:
        missing = (error.name or "markdown_it").replace("markdown_it", "markdown-it-py")
        raise MissingExtra(missing, "dashboard", "showing Markdown") from None
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "maxNesting": NESTED})
    parser.enable(["table", "strikethrough"])
    # Its documented way to be told what a link may be.
    parser.validateLink = _is_sound  # type: ignore[method-assign] # as above
    cleaner = nh3.Cleaner(
        tags=TAGS,
        clean_content_tags={"script", "style", "iframe", "object", "svg", "math", "template"},
        attributes=ATTRIBUTES,
        attribute_filter=_kept,
        url_schemes=SCHEMES | {"data"},
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
        strip_comments=True,
    )
    return parser.render, cleaner.clean


def _is_sound(url: str) -> bool:
    return _PICTURE.fullmatch(url) is not None or _LINK.fullmatch(url) is not None


def _kept(tag: str, name: str, value: str) -> str | None:
    """The value of an attribute; None: the attribute goes."""
    if name == "href":
        return value if _LINK.fullmatch(value) else None
    if name == "src":
        return value if tag == "img" and _PICTURE.fullmatch(value) else None
    if name == "start":
        return value if value.isascii() and value.isdigit() and len(value) < 10 else None
    return value
