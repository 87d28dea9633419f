"""Templates: what they can say, and that nothing they say takes long, takes much, or gets out."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from asyncflow import Channel
from asyncflow.errors import TemplateError
from asyncflow.notifications import sending, templates

HOOK = "https://example.org/hook"
DATA: dict[str, Any] = {
    **templates.SAMPLE,
    "event": {
        **templates.SAMPLE["event"],
        "message": "m" * 1_000_000,
        "tags": [],
        "payload": {"rows": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], "n": 3},
    },
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ event.kind|upper ~ '-' ~ count }}", "FLOW-RUN.FAILED-1"),
        ("{% for r in event.payload.rows %}{{ loop.index }}:{{ r.a }} {% endfor %}", "1:1 2:2 "),
        ("{% for r in event.tags %}x{% else %}none{% endfor %}", "none"),
        ("{% for i in range(4) if i != 1 %}{{ i }}{% endfor %}", "023"),
        ("{% for k, v in labels.items() %}{{ k }}{% endfor %}", ""),
        ("{{ event.payload.rows|map(attribute='b')|join('+') }}", "x+y"),
        ("{{ event.payload.rows|sum('a') }} {{ 2.345|round(1) }}", "3 2.3"),
        ("{{ event.payload.rows|selectattr('a', 'gt', 1)|list|tojson }}", '[{"a": 2, "b": "y"}]'),
        ("{{ event.message[:5] }} {{ 'a' + 'b' }} {{ 1 + 2 * 3 }} {{ 2 ** 8 }}", "mmmmm ab 7 256"),
        ("{{ 'a-b'|replace('-', '+') }} {{ 'a-b'.split('-')|last }}", "a+b b"),
        ("{{ event.payload.order.id }}|{{ event.task or 'none' }}", "|none"),
        ("{% set n = event.payload.n %}{{ 'many' if n > 2 else 'few' }}", "many"),
        ("{% for i in range(2) %}{{ loop.cycle('a', 'b') }}{% endfor %}", "ab"),
    ],
)
def test_what_messages_need_can_be_said(template: str, text: str) -> None:
    templates.check(template)
    assert templates.render(template, DATA) == text


LOOP = "{{% for {0} in range(1000) %}}"
DOUBLED = "{% set a = a ~ a %}"

GREEDY = {
    "loops without output": LOOP.format("a") + LOOP.format("b") + "{% endfor %}" * 2,
    "a text that doubles": "{% set a = 'xxxxxxxxxx' %}" + DOUBLED * 42 + "{{ a }}",
    "sums of texts": "{% set a = 'x' %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
    "lists that double": "{% set a = [1] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
    "lists that are compared": "{% set a, b = [1], [1] %}"
    + "{% set a = [a, a] %}{% set b = [b, b] %}" * 40
    + "{{ a == b }}",
    "dicts that double": "{% set a = {} %}" + "{% set a = {1: a, 2: a} %}" * 40 + "{{ a }}",
    "many copies": "{% set a = event.message|upper %}" * 500,
    "many copies by a method": "{% set a = event.message.upper() %}" * 500,
    "many slices": "{% set a = event.message[1:] %}" * 500,
    "a text times a text": "{{ event.message|replace('m', event.message)|length }}",
    "a text between texts": "{{ event.message|list|join(event.message)|length }}",
    "a width": "{{ '{:>1000000000}'.format(1) }}",
    "another width": "{{ '%1000000000d' % 1 }}",
    "an indent": "{{ [1]|tojson(indent=1000000000) }}",
    "a batch": "{{ 'x'|batch(1000000000, 'x')|list }}",
    "a precision": "{{ 1|round(1000000000, 'ceil') }}",
    "a power": "{{ 9 ** 999999999 }}",
    "powers of powers": "{% set n = 2 %}" + "{% set n = n * n %}" * 64 + "{{ n }}",
    "parentheses": "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}",
    "signs": "{{ " + "-" * 9000 + "1 }}",
    "blocks": "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
    "digits": "{{ " + "9" * 9000 + " }}",
    "filters": "{{ event.message" + "|list|sort" * 9000 + " }}",
    "a macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a block that is set": "{% set a %}{{ event.message }}{% endset %}" * 100,
    "another function as range": "{% set range = 'x'.ljust %}{{ range(1000000000) }}",
    "a method in a variable": "{% set f = 'x'.ljust %}{{ f(1000000000) }}",
    "itself": "{{ self }}",
    "its length": "x" * 100_001,
    "no text": 5,
}


@pytest.mark.parametrize("template", GREEDY.values(), ids=GREEDY.keys())
def test_a_template_that_wants_too_much_is_an_error(template: str) -> None:
    with pytest.raises(TemplateError) as caught:
        templates.render(template, DATA)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 400


def test_constants_are_worked_out_within_the_same_bounds() -> None:
    """Jinja2 does so when it compiles, before anything is rendered."""
    with pytest.raises(TemplateError):
        templates.render("{{ ['x' * 9, 1]|tojson(indent=1000000000) }}", {})


def test_a_template_has_an_end_in_time_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "PATIENCE", -1.0)
    with pytest.raises(TemplateError, match="took more than"):
        templates.render("{% for i in range(900) %}{% endfor %}", {})


def test_what_a_template_is_given_is_not_changed_by_it() -> None:
    before = copy.deepcopy(DATA)
    with pytest.raises(TemplateError):
        templates.render("{{ event.tags.append('x') }}", DATA)
    with pytest.raises(TemplateError):
        templates.render("{% set event.kind = 'x' %}", DATA)
    assert before == DATA


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ run.name }}", "'run' is not known"),
        ("{{ event.flow_name }}", "an event has no 'flow_name'"),
        ("{{ event['flow_name'] }}", "an event has no 'flow_name'"),
        ("{{ 1 // 0 }}", "division"),
        ("{% if %}", "wrong"),
        ("{{ 'x'|nothing }}", "No filter named 'nothing'"),
        ("{% include 'x' %}", "include is not for templates"),
        ("{{ event.message.encode() }}", r"encode\(\) is not for templates"),
    ],
)
def test_a_slip_is_found_when_a_template_is_declared(template: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        Channel("ops", HOOK, body=template)


def test_what_an_event_of_a_user_carries_is_not_known_when_a_template_is_declared() -> None:
    Channel("ops", HOOK, body="{{ event.payload.order.id + 1 }}")


def test_a_long_text_is_cut_and_says_so() -> None:
    text = templates.render("{{ event.message }}{{ event.message }}", DATA)
    assert len(text) == templates.MOST_OUTPUT
    assert text.endswith("characters)")
    message = sending.compose(Channel("ops", HOOK), "id", [(DATA, None, None)])
    assert len(message.body) < sending.LONGEST_BODY
    assert "(cut: it has 1,000,000 characters)" in message.body
    assert "asyncflow resume" in message.body, "what to do stands after it"


def test_a_template_that_fails_or_says_nothing_leaves_the_default_text() -> None:
    channel = Channel("ops", HOOK, subject="{{ event.task }}", body="{{ 1 // event.tags|length }}")
    message = sending.compose(channel, "id", [(DATA, None, None)])
    assert message.subject == "flow a flow failed: a run"
    assert "flow-run.Failed" in message.body
    assert message.body.endswith("integer division or modulo by zero)")


def test_halves_of_characters_and_control_characters_do_not_go_out() -> None:
    data = {**DATA, "event": {**DATA["event"], "message": "a\ud800\x00\x1b[2J\x9bb\ttab"}}
    message = sending.compose(Channel("ops", HOOK), "id", [(data, None, None)])
    assert "a[2Jb\ttab" in message.body
    message.body.encode()


@pytest.mark.parametrize(
    ("event", "subject"),
    [
        ({"kind": "flow-run.TimedOut", "flow": "etl", "run_name": "n"}, "flow etl timed out: n"),
        ({"kind": "task-run.Failed", "task": "get", "run_name": "n"}, "task get failed: n"),
        ({"kind": "order.paid"}, "order.paid: orders"),
        ({}, "automation: orders"),
    ],
)
def test_the_subject_says_what_happened_to_what(event: dict[str, str], subject: str) -> None:
    assert templates.default_subject({"automation": "orders", "event": event}) == subject
