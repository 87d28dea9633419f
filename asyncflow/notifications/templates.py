"""Templates of messages: Jinja2's sandbox over plain data only, in bounded time and space.

A template sees dicts, lists, texts and numbers that were copied for it; nothing of the
application can be reached from there.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping
from typing import Any

from asyncflow.errors import MissingExtra, TemplateError

#: Characters of a template, and of what it gives.
LONGEST = 100_000
MOST_OUTPUT = 64 * 1024
#: Seconds that a template may take.
PATIENCE = 2.0
#: The largest number of steps of a loop over a range.
MOST_STEPS = 1_000

SUBJECT = "{{ event.kind }}: {{ event.run_name or event.flow or automation }}"
BODY = """\
{{ automation }} fired: {{ event.kind }}{% if count > 1 %} ({{ count }} events){% endif %}

{% if event.message %}{{ event.message }}

{% endif -%}
{% for name in ("flow", "deployment", "run_name", "run_id", "task", "state_name", "schedule") -%}
{% if event[name] %}{{ name }}: {{ event[name] }}
{% endif %}{% endfor -%}
{% for name, value in labels.items() %}{{ name }}: {{ value }}
{% endfor -%}
{% if event.run_id %}
look into it with: asyncflow runs show {{ event.run_id }}
{% if event.state == "FAILED" or event.state == "CRASHED" -%}
go on with it:     asyncflow resume {{ event.run_id }}
{% endif %}{% endif %}"""

#: What templates are tried with when they are declared.
SAMPLE: Mapping[str, Any] = {
    "automation": "an automation",
    "event": {
        "id": 1, "time": 1_800_000_000.0, "kind": "flow-run.Failed", "flow": "a flow",
        "run_name": "a run", "run_id": "0190163d-8694-739b-aea5-966c26f8ad91", "state": "FAILED",
        "state_name": "Failed", "message": "a message", "tags": ["a"], "payload": {},
    },
    "labels": {},
    "count": 1,
}  # fmt: skip


def render(template: str, data: Mapping[str, Any]) -> str:
    """The text that a template gives.

    Args:
        template: of Jinja2.
        data: plain data; it is copied.

    Raises:
        TemplateError: it is none, it fails, reaches for what it must not, or does not end.
        MissingExtra: Jinja2 is not installed.
    """
    compiled = _compiled(template)
    try:
        plain = json.loads(json.dumps(data, default=str))
    except (TypeError, ValueError) as error:
        raise TemplateError(f"what a template is given is no plain data: {error}") from None
    done: list[Any] = []

    def work() -> None:
        try:
            size, parts = 0, []
            for part in compiled.generate(plain):
                size += len(part)
                if size > MOST_OUTPUT:
                    raise TemplateError(f"it gives more than {MOST_OUTPUT:,} characters")
                parts.append(part)
            done.append("".join(parts))
        except BaseException as error:
            done.append(error)

    # In a thread that nobody waits for: nothing can stop code that does not end.
    thread = threading.Thread(target=work, name="asyncflow-template", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not done:
        raise TemplateError(f"the template {_short(template)} took more than {PATIENCE:g} s")
    if isinstance(done[0], BaseException):
        raise TemplateError(f"the template {_short(template)} fails: {_reason(done[0])}")
    text: str = done[0]
    return text


def check(template: str) -> None:
    """Raise TemplateError unless a template can be rendered for an event."""
    render(template, SAMPLE)


@functools.lru_cache(maxsize=256)
def _compiled(template: str) -> Any:
    if not isinstance(template, str):
        raise TemplateError(f"{template!r} is no template: give a text")
    if len(template) > LONGEST:
        raise TemplateError(
            f"a template may have {LONGEST:,} characters, this has {len(template):,}"
        )
    environment = _environment()
    import jinja2

    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the template {_short(template)} is wrong: {_reason(error)}") from None


@functools.cache
def _environment() -> Any:
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingExtra("jinja2", "notifications", "a template of a message") from None

    class Environment(ImmutableSandboxedEnvironment):
        """The sandbox, with nothing in it but what messages need."""

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            # Methods of texts that make them large: "x".ljust(10 ** 9).
            if getattr(obj, "__name__", "") in ("ljust", "rjust", "center", "zfill", "expandtabs"):
                raise TemplateError(f"{obj.__name__} is not for templates")
            return super().call(context, obj, *args, **kwargs)

        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or isinstance(left, str | list) or isinstance(right, str | list):
                raise TemplateError(f"{operator} is for small numbers only in templates")
            return super().call_binop(context, operator, left, right)

    environment = Environment(autoescape=False, keep_trailing_newline=False)
    environment.globals = {"range": _range}
    for name in ("center", "format", "indent", "wordwrap", "attr", "xmlattr", "pprint"):
        environment.filters.pop(name, None)
    return environment


def _range(*bounds: int) -> range:
    steps = range(*bounds)
    if len(steps) > MOST_STEPS:
        raise TemplateError(f"a range of more than {MOST_STEPS:,} steps")
    return steps


def _short(template: str) -> str:
    text = " ".join(str(template).split())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
