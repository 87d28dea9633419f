"""The files of the dashboard, as they are served: a page, one script, and the sources of that."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any

import orjson

from asyncflow.server.bundle import join

#: The script that a page asks for, and the module that it begins with.
SCRIPT, FIRST, STYLE = "all.js", "app.js", "style.css"


@dataclass(slots=True, frozen=True)
class File:
    """What is answered at one path."""

    data: bytes
    kind: str


@dataclass(slots=True, frozen=True)
class Files:
    """All that is served to whoever comes: nothing that a request says becomes the name of a file.

    Args:
        files: by path, beginning with ``/static/`` and a name that changes with any of them.
        before, after: the page, but for what it tells of who looks.
    """

    files: dict[str, File]
    before: str
    after: str

    def page(self, session: dict[str, Any] | None = None) -> bytes:
        """The page; with what is known of who looks, it need not ask."""
        told = ""
        if session is not None:
            text = escape(orjson.dumps(session).decode())
            told = f'<meta name="asyncflow-session" content="{text}">\n    '
        return (self.before + told + self.after).encode()


def read_files() -> Files:
    """Read the files of the package.

    Raises:
        BundleError: the scripts cannot be joined.
    """
    sources: dict[str, str] = {}

    def read(at: Any, path: str) -> None:
        for entry in at.iterdir():
            if entry.is_dir():
                read(entry, f"{path}{entry.name}/")
            elif entry.name.endswith((".js", ".css", ".html")):
                sources[path + entry.name] = entry.read_text("utf-8")

    read(resources.files("asyncflow.server").joinpath("static"), "")
    page = sources.pop("index.html")
    modules = {path: text for path, text in sources.items() if path.endswith(".js")}
    bundle = join(modules, FIRST, sources[STYLE])
    # What a page asks for has an address of its own in each version, so that a browser that has
    # it does not ask again.
    version = sha256(bundle.script.encode()).hexdigest()[:16]
    folder = f"/static/{version}/"
    script = f"{bundle.script}//# sourceMappingURL={SCRIPT}.map\n"
    files = {
        folder + path: File(text.encode(), "text/javascript") for path, text in modules.items()
    }
    files[folder + SCRIPT] = File(script.encode(), "text/javascript")
    files[folder + SCRIPT + ".map"] = File(bundle.source_map.encode(), "application/json")
    # The head ends with the script: what it is told stands before that.
    before, tag, after = page.partition('<script type="module" src="static/')
    return Files(files, before, tag + after.replace(SCRIPT, f"{version}/{SCRIPT}", 1))
