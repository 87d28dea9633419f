"""Templates of messages: a part of Jinja2, in its sandbox, over plain data only.

A template sees dicts, lists, texts and numbers that were copied for it; nothing of the
application can be reached from there. It is also bounded in what it takes. Nothing can stop a
thread, and one line of Jinja2 can ask for a gigabyte, so what would be without bounds is taken
out before a template is compiled: it is read as a tree, what is not on our lists is refused by
name, and what may grow (loops, and whatever joins texts) is led through functions that count.
"""

from __future__ import annotations

import functools
import html
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from asyncflow.errors import MissingExtra, TemplateError

#: Characters of a template, of what it gives, and of all that it makes on the way.
LONGEST = 100_000
MOST_OUTPUT = 64 * 1024
MOST_MADE = 4_000_000
#: Seconds that a template may take, and steps of all of its loops together.
PATIENCE = 2.0
MOST_STEPS = 100_000
#: The largest number of steps of a loop over a range.
MOST_RANGE = 1_000
#: What anything else than a text counts for, in characters.
_WEIGHT = 32
#: Bits of a number.
MOST_BITS = 256
#: Characters of an error or message in the default text.
MOST_TOLD = 8_000

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

#: The fields that events have, whichever of them.
EVENT_FIELDS = frozenset(SAMPLE["event"]) | {
    "task", "task_run_id", "schedule", "deployment", "automation", "cause",
}  # fmt: skip


# --- without a template -----------------------------------------------------------------------


def default_subject(data: Mapping[str, Any]) -> str:
    """What a message is called: "flow etl failed: run name"."""
    event = data.get("event") or {}
    kind = str(event.get("kind") or "")
    sort, _, what = kind.partition(".")
    name = event.get("run_name") or event.get("flow") or ""
    if sort == "flow-run" and what and event.get("flow"):
        return f"flow {event['flow']} {_past(what)}: {name}"
    if sort == "task-run" and what and event.get("task"):
        return f"task {event['task']} {_past(what)}: {name or data.get('automation', '')}"
    return f"{kind or 'automation'}: {name or data.get('automation', '')}"


def _past(name: str) -> str:
    """The name of a state within a sentence: TimedOut as "timed out"."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


_TOLD = ("flow", "deployment", "run_name", "run_id", "task", "state_name", "schedule")


def default_body(data: Mapping[str, Any]) -> str:
    """What there is to say of a firing, and what to do."""
    event = data.get("event") or {}
    count = data.get("count", 1)
    many = f" ({count} events)" if isinstance(count, int) and count > 1 else ""
    lines = [f"{data.get('automation', '')} fired: {event.get('kind', '')}{many}", ""]
    if event.get("message"):
        lines += [cut(str(event["message"]), MOST_TOLD), ""]
    lines += [f"{name}: {event[name]}" for name in _TOLD if event.get(name)]
    lines += [f"{name}: {value}" for name, value in (data.get("labels") or {}).items()]
    run = event.get("run_id")
    if run:
        lines += ["", f"look into it with: asyncflow runs show {run}"]
        if event.get("state") in ("FAILED", "CRASHED"):
            lines.append(f"go on with it:     asyncflow resume {run}")
    return "\n".join(lines)


def cut(text: str, most: int) -> str:
    """A text of at most so many characters, which says so where it had more."""
    if len(text) <= most:
        return text
    mark = f"\n... (cut: it has {len(text):,} characters)"
    return text[: max(0, most - len(mark))] + mark


# --- with one ---------------------------------------------------------------------------------


def render(template: str, data: Mapping[str, Any]) -> str:
    """The text that a template gives, at most 64 KiB of it.

    Args:
        template: of Jinja2.
        data: plain data; it is copied.

    Raises:
        TemplateError: it is none, it fails, reaches for what it must not, or does not end.
        MissingExtra: Jinja2 is not installed.
    """
    compiled, _ = _compiled(template)
    return _generated(template, compiled, data)


def check(template: str) -> None:
    """Try a template that is declared on an event that was made up.

    What an event of the user's own may carry is not known then: that such a thing is missing
    there is no error.

    Raises:
        TemplateError: it is none, fails, or speaks of something that no event has.
    """
    compiled, unknown = _compiled(template)
    if unknown is not None:
        raise TemplateError(f"the template {_short(template)} is wrong: {unknown}")
    from jinja2 import UndefinedError

    try:
        _generated(template, compiled, SAMPLE)
    except TemplateError as error:
        if not isinstance(error.__cause__, UndefinedError):
            raise


def _generated(template: str, compiled: Any, data: Mapping[str, Any]) -> str:
    try:
        plain = json.loads(json.dumps(data, default=str))
    except (TypeError, ValueError) as error:
        raise TemplateError(f"what a template is given is no plain data: {error}") from None
    size, parts = 0, []
    budget = _Budget()
    before = _BUDGET.set(budget)
    try:
        for part in compiled.generate(plain):
            budget.tick()
            parts.append(part)
            size += len(part)
            if size > MOST_OUTPUT:
                break
    except Exception as error:
        said = TemplateError(f"the template {_short(template)} fails: {_reason(error)}")
        raise said from error
    finally:
        _BUDGET.reset(before)
    return cut("".join(parts), MOST_OUTPUT) if size > MOST_OUTPUT else "".join(parts)


@functools.lru_cache(maxsize=256)
def _compiled(template: str) -> tuple[Any, str | None]:
    """The template, ready to be used, and what it speaks of that no event has."""
    if not isinstance(template, str):
        raise TemplateError(f"{template!r} is no template: give a text")
    if len(template) > LONGEST:
        raise TemplateError(
            f"a template may have {LONGEST:,} characters, this has {len(template):,}"
        )
    environment, transform = _environment()
    import jinja2

    before = _BUDGET.set(_Budget())
    try:
        tree = environment.parse(template)
        unknown = _unknown(tree)
        code = environment.compile(transform(tree))
        return jinja2.Template.from_code(environment, code, {}), unknown
    except (jinja2.TemplateError, TemplateError) as error:
        raise TemplateError(f"the template {_short(template)} is wrong: {_reason(error)}") from None
    except (RecursionError, SyntaxError, MemoryError, ValueError, OverflowError) as error:
        # Python's own limits: of nested blocks, of numbers.
        text = f"the template {_short(template)} is wrong: {type(error).__name__}"
        raise TemplateError(text) from None
    finally:
        _BUDGET.reset(before)


def _unknown(tree: Any) -> str | None:
    """What a template speaks of that is not there, whatever the event; None: nothing."""
    from jinja2 import nodes

    set_here = {n.name for n in tree.find_all(nodes.Name) if n.ctx != "load"}
    for name in tree.find_all(nodes.Name):
        if name.name not in SAMPLE and name.name not in set_here and name.name != "range":
            if name.name == "loop":
                continue
            return f"{name.name!r} is not known: there are {', '.join(sorted(SAMPLE))}"
    if "event" in set_here:
        return None
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if not isinstance(node.node, nodes.Name) or node.node.name != "event":
            continue
        field: Any = getattr(node, "attr", None)
        if field is None and isinstance(node.arg, nodes.Const):
            field = node.arg.value
        if isinstance(field, str) and field not in EVENT_FIELDS and field not in _METHODS:
            return f"an event has no {field!r}: it has {', '.join(sorted(EVENT_FIELDS))}"
    return None


#: Methods of texts and dicts that templates may call.
_METHODS = frozenset({
    "capitalize", "count", "cycle", "endswith", "get", "isdigit", "items", "keys", "lower",
    "lstrip", "removeprefix", "removesuffix", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "title", "upper", "values",
})  # fmt: skip


class _Budget:
    """What is left to one rendering: time, steps of loops, and characters to make."""

    __slots__ = ("_ends", "_made", "_steps")

    def __init__(self) -> None:
        self._steps = MOST_STEPS
        self._made = 0
        self._ends = time.monotonic() + PATIENCE

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise TemplateError(f"its loops take more than {MOST_STEPS:,} steps")
        if not self._steps & 0x3F:
            self.tick()

    def tick(self) -> None:
        if time.monotonic() > self._ends:
            raise TemplateError(f"it took more than {PATIENCE:g} s")

    def make(self, size: int) -> None:
        self._made += size
        if self._made > MOST_MADE:
            raise TemplateError(f"it makes more than {MOST_MADE:,} characters on the way")
        self.tick()


#: Of the rendering (or compiling, which works out constants) that goes on.
_BUDGET: ContextVar[_Budget] = ContextVar("budget")


def _made(value: Any) -> Any:
    """A value that an operation gave, once it is counted."""
    _BUDGET.get().make(len(value) if isinstance(value, str | list | tuple | dict) else _WEIGHT)
    return value


def _weighed(value: Any) -> Any:
    """A list or dict of a template, once all that is in it is counted.

    One that holds the last one twice, time and again, is small and takes for ever to be shown
    or compared.
    """
    budget, open_ = _BUDGET.get(), [value]
    while open_:
        one = open_.pop()
        if isinstance(one, dict):
            open_ += one.values()
        elif isinstance(one, list | tuple):
            open_ += one
        budget.make(len(one) if isinstance(one, str) else _WEIGHT)
    return value


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose results are counted."""

    @functools.wraps(function)  # and with it what Jinja2 is to give to it
    def call(*args: Any, **kwargs: Any) -> Any:
        return _made(function(*args, **kwargs))

    return call


@functools.cache
def _environment() -> tuple[Any, Callable[[Any], Any]]:
    """Jinja2 with nothing in it but what messages need; and what makes a template bounded."""
    try:
        from jinja2 import ChainableUndefined, nodes
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        from jinja2.visitor import NodeTransformer
    except ImportError:
        raise MissingExtra("jinja2", "notifications", "a template of a message") from None

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%", "+", "-"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "+" and isinstance(left, str) and isinstance(right, str):
                return _text([left, right])
            for one in (left, right):
                if isinstance(one, str | list | tuple | dict):
                    raise TemplateError(f"{operator} is for numbers only: join texts with ~")
            if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
                raise TemplateError("** is for powers of up to 64 only")
            return _number(super().call_binop(context, operator, left, right))

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            return _made(super().call(context, obj, *args, **kwargs))

    class Bounded(NodeTransformer):
        def generic_visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
            # By name: a kind of node that comes with a later Jinja2 is not on the list.
            if type(node).__name__ not in _NODES:
                raise TemplateError(
                    f"{_KINDS.get(type(node).__name__, type(node).__name__.lower())} is not for"
                    " templates of messages"
                )
            return super().generic_visit(node, *args, **kwargs)

        def visit_Name(self, node: Any) -> Any:  # noqa: N802 - Jinja2 calls it so
            if node.name == "self":
                raise TemplateError("self is not for templates of messages")
            return node

        def visit_For(self, node: Any) -> Any:  # noqa: N802 - Jinja2's name
            if node.recursive:
                raise TemplateError("a recursive loop is not for templates of messages")
            node = self.generic_visit(node)
            node.iter = _filter(node.iter, "_counted")
            return node

        def visit_Concat(self, node: Any) -> Any:  # noqa: N802 - Jinja2's name
            node = self.generic_visit(node)
            return _filter(nodes.List(node.nodes, lineno=node.lineno), "_text")

        def visit_List(self, node: Any) -> Any:  # noqa: N802 - Jinja2's name
            return _filter(self.generic_visit(node), "_weighed")

        visit_Dict = visit_List  # noqa: N815 - Jinja2's name

        def visit_Tuple(self, node: Any) -> Any:  # noqa: N802 - Jinja2's name
            node = self.generic_visit(node)
            return _filter(node, "_weighed") if node.ctx == "load" else node

        def visit_Getitem(self, node: Any) -> Any:  # noqa: N802 - Jinja2's name
            node = self.generic_visit(node)
            if not isinstance(node.arg, nodes.Slice):
                return node
            bounds = (node.arg.start, node.arg.stop, node.arg.step)
            return _filter(
                node.node, "_sliced", [b if b is not None else nodes.Const(None) for b in bounds]
            )

        def visit_Call(self, node: Any) -> Any:  # noqa: N802 - Jinja2's name
            called = node.node
            if isinstance(called, nodes.Name) and called.name == "range" and node.args:
                node = self.generic_visit(node)
                return _filter(node.args[0], "_range", node.args[1:])
            if not isinstance(called, nodes.Getattr) or called.attr not in _METHODS:
                name = getattr(called, "attr", None) or getattr(called, "name", "this")
                raise TemplateError(f"{name}() is not for templates of messages")
            return self.generic_visit(node)

    def _filter(node: Any, name: str, args: Any = ()) -> Any:
        return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)

    environment = Environment(
        autoescape=False, keep_trailing_newline=False, undefined=ChainableUndefined, optimized=False
    )
    environment.globals = {}
    known = environment.filters
    environment.filters = {
        **{name: _bounded(known[name]) for name in _FILTERS},
        **{name: _bounded(function) for name, function in _OWN_FILTERS.items()},
        "_counted": _counted, "_range": _range, "_weighed": _weighed,
    }  # fmt: skip
    return environment, Bounded().visit


#: What templates are made of; everything else is refused.
_NODES = frozenset({
    "Template", "Output", "TemplateData", "For", "If", "Assign", "Name", "Const", "List", "Tuple",
    "Dict", "Pair", "Keyword", "CondExpr", "Filter", "Test", "Call", "Getattr", "Getitem", "Slice",
    "Concat", "Compare", "Operand", "Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow", "And",
    "Or", "Not", "Neg", "Pos",
})  # fmt: skip
_KINDS = {
    "Include": "include", "Import": "import", "FromImport": "import", "Extends": "extends",
    "Macro": "a macro", "CallBlock": "call", "FilterBlock": "a filter block",
    "AssignBlock": "a set block", "Block": "a block", "With": "with",
}  # fmt: skip
#: The filters of Jinja2 that give no more than they were given.
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "filesizeformat", "first", "float",
    "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "reverse", "select", "selectattr", "sort", "title", "trim", "truncate", "unique",
    "upper", "urlencode", "wordcount",
)  # fmt: skip


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    budget = _BUDGET.get()
    for item in items:
        budget.step()
        yield item


def _text(parts: Iterable[Any]) -> str:
    texts = [str(part) for part in parts]
    _BUDGET.get().make(sum(map(len, texts)))
    return "".join(texts)


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return value[start:stop:step]


def _number(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise TemplateError(f"it makes a number of more than {MOST_BITS} bits")
    return value


def _range(*bounds: int) -> range:
    steps = range(*bounds)
    if len(steps) > MOST_RANGE:
        raise TemplateError(f"a range of more than {MOST_RANGE:,} steps")
    return steps


def _escape(value: Any) -> str:
    return html.escape(str(value))


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    parts: list[Any] = []
    for item in value:
        if attribute is not None:
            item = item.get(attribute, "") if isinstance(item, dict) else ""
        parts += [d, item] if parts else [item]
    return _text(parts)


def _replace(value: Any, old: Any, new: Any, count: int = -1) -> str:
    text, old, new = str(value), str(old), str(new)
    times = text.count(old) if count < 0 else min(count, text.count(old))
    _BUDGET.get().make(len(text) + times * len(new))
    return text.replace(old, new, times)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    from math import ceil, floor

    if not isinstance(precision, int) or not -20 <= precision <= 20:
        raise TemplateError("round takes a precision of up to 20")
    if method == "common":
        return round(float(value), precision)
    return float((ceil if method == "ceil" else floor)(value * 10**precision) / 10**precision)


def _sum(value: Iterable[Any], attribute: str | int | None = None, start: float = 0) -> float:
    total = start
    for item in value:
        total += item[attribute] if attribute is not None else item
        if not isinstance(total, int | float):
            raise TemplateError("sum is for numbers only")
    return total


def _tojson(value: Any, indent: int | None = None) -> str:
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 8):
        raise TemplateError("tojson takes an indent of up to 8")
    return _text([json.dumps(value, ensure_ascii=False, indent=indent, default=str)])


#: Ours, where those of Jinja2 could give more than they were given.
_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "e": _escape, "escape": _escape, "join": _join, "replace": _replace, "round": _round,
    "string": str, "sum": _sum, "tojson": _tojson, "_sliced": _sliced, "_text": _text,
}  # fmt: skip


def _short(template: str) -> str:
    text = " ".join(str(template).split())
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _reason(error: BaseException) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 200 else text[:197] + "..."
