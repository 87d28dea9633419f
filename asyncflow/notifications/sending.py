"""Makes one message of what happened, and sends it on the way that its channel names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncflow.errors import DeliveryFailed, InvalidOption, MissingExtra, TemplateError
from asyncflow.failures import told
from asyncflow.notifications import templates
from asyncflow.notifications.channels import Channel

#: Characters of a subject, and of a body.
LONGEST_SUBJECT = 200
LONGEST_BODY = 20_000
#: What is no text: control characters, and halves of characters.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be sent.

    Attributes:
        id: the same for all attempts.
        subject, body: texts.
        data: plain data, for webhooks: one entry for each firing.
    """

    id: str
    subject: str
    body: str
    data: Sequence[Mapping[str, Any]]


def compose(
    channel: Channel,
    id_: str,
    parts: Sequence[tuple[Mapping[str, Any], str | None, str | None]],
) -> Message:
    """One message of one firing, or of several (a digest).

    A template that fails, or gives nothing, loses no message: it has the default text then, and
    says so.

    Args:
        parts: the data of each firing, and the subject and body that its action has, if any.
    """
    subjects, bodies = [], []
    for data, subject, body in parts:
        notes: list[str] = []
        text = _filled(subject or channel.subject, templates.default_subject, data, notes)
        subjects.append(" ".join(_CONTROL.sub(" ", text).split())[:LONGEST_SUBJECT])
        text = _filled(body or channel.body, templates.default_body, data, notes)
        text = templates.cut(_CONTROL.sub("", text).strip(), LONGEST_BODY)
        bodies.append("\n\n".join([text, *notes]))
    if len(parts) == 1:
        return Message(id_, subjects[0], bodies[0], [parts[0][0]])
    subject = f"{len(parts)} messages: {subjects[0]}"[:LONGEST_SUBJECT]
    whole = "\n\n----\n\n".join(f"{s}\n\n{b}" for s, b in zip(subjects, bodies, strict=True))
    whole = templates.cut(whole, 5 * LONGEST_BODY)
    return Message(id_, subject, whole, [data for data, _, _ in parts])


def _filled(template: str | None, default: Any, data: Mapping[str, Any], notes: list[str]) -> str:
    if template is None:
        return str(default(data))
    try:
        text = templates.render(template, data)
    except (TemplateError, MissingExtra) as error:
        notes.append(f"(asyncflow: this is the default text, as {error})")
        return str(default(data))
    return text if _CONTROL.sub("", text).strip() else str(default(data))


async def send(channel: Channel, message: Message, now: float, resolver: Any = None) -> str:
    """Send it; what came of it. Nothing of the channel that is secret is in what it says.

    Raises:
        DeliveryFailed: it was not taken.
        MissingExtra, InvalidOption: what it needs is not installed, or not in the environment.
    """
    try:
        async with asyncio.timeout(channel.timeout_seconds):
            return channel.mask(await _sent(channel, message, now, resolver))
    except DeliveryFailed as error:
        text = channel.mask(str(error))
        raise DeliveryFailed(text, final=error.final, after=error.after) from None
    except (MissingExtra, InvalidOption):
        raise
    except TimeoutError:
        raise DeliveryFailed(f"no answer within {channel.timeout_seconds:g} s") from None
    except Exception as error:
        raise DeliveryFailed(channel.mask(told(error, 300))) from None


async def _sent(channel: Channel, message: Message, now: float, resolver: Any) -> str:
    match channel.kind:
        case "webhook":
            from asyncflow.notifications.webhook import post

            document = {
                "id": message.id,
                "subject": message.subject,
                "text": message.body,
                "firings": list(message.data),
            }
            return await post(channel, document, message.id, now, resolver)
        case "mail":
            from asyncflow.notifications.email import send_mail

            return await send_mail(channel, message.id, message.subject, message.body, now)
        case _:
            from asyncflow.notifications.services import notify

            return await notify(channel, message.subject, message.body)
