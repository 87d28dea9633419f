"""Sends one message on the way that its channel names."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

from asyncflow.errors import DeliveryFailed, MissingExtra
from asyncflow.notifications import templates
from asyncflow.notifications.channels import Channel

#: Characters of a subject, and of a body.
LONGEST_SUBJECT = 200
LONGEST_BODY = 20_000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
#: What would call all members of a chat.
_MENTION = re.compile(r"@(?=everyone|here|channel|all\b)|<!(?=here|channel|everyone)")


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

    Args:
        parts: the data of each firing, and the subject and body that its action has, if any.

    Raises:
        TemplateError: a template fails.
    """
    subjects, bodies = [], []
    for data, subject, body in parts:
        text = templates.render(subject or channel.subject or templates.SUBJECT, data)
        subjects.append(" ".join(_CONTROL.sub(" ", text).split())[:LONGEST_SUBJECT])
        text = templates.render(body or channel.body or templates.BODY, data)
        bodies.append(_CONTROL.sub("", text).strip()[:LONGEST_BODY])
    if len(parts) == 1:
        return Message(id_, subjects[0], bodies[0], [parts[0][0]])
    subject = f"{len(parts)} messages: {subjects[0]}"[:LONGEST_SUBJECT]
    whole = "\n\n----\n\n".join(f"{s}\n\n{b}" for s, b in zip(subjects, bodies, strict=True))
    return Message(id_, subject, whole[: 5 * LONGEST_BODY], [data for data, _, _ in parts])


async def send(channel: Channel, message: Message, now: float, resolver: Any = None) -> str:
    """Send it; what came of it.

    Raises:
        DeliveryFailed: it was not taken.
        MissingExtra: what it needs is not installed.
    """
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
            return await _mail(channel, message)
        case _:
            return await _service(channel, message)


async def _mail(channel: Channel, message: Message) -> str:
    try:
        import aiosmtplib
    except ImportError:
        raise MissingExtra("aiosmtplib", "notifications", "a mail") from None
    to = channel.mail
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = to.sender, ", ".join(to.to), message.subject
    mail["Message-ID"] = f"<{message.id}@asyncflow>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(message.body)
    try:
        _, reply = await aiosmtplib.send(
            mail,
            hostname=to.host,
            port=to.port,
            username=to.user,
            password=to.password,
            use_tls=to.tls,
            timeout=channel.timeout_seconds,
        )
    except aiosmtplib.SMTPAuthenticationError as error:
        raise DeliveryFailed(
            f"the mail server refuses the login ({error.code})", final=True
        ) from None
    except aiosmtplib.SMTPResponseException as error:
        final = 500 <= error.code < 600
        raise DeliveryFailed(f"the mail server answers {error.code}", final=final) from None
    except aiosmtplib.SMTPRecipientsRefused as error:
        codes = sorted({one.code for one in error.recipients})
        final = all(code >= 500 for code in codes)
        raise DeliveryFailed(
            f"the mail server refuses the receivers {codes}", final=final
        ) from None
    except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
        raise DeliveryFailed(f"{type(error).__name__} at {to.host}:{to.port}") from None
    return str(reply)[:200]


async def _service(channel: Channel, message: Message) -> str:
    def work() -> bool:
        # Here, as it takes half a second.
        try:
            import apprise
        except ImportError:
            raise MissingExtra(
                "apprise", "notifications", f"the channel {channel.name!r}"
            ) from None
        service = apprise.Apprise()
        if not service.add(channel.target):
            raise DeliveryFailed("Apprise does not know its URL", final=True)
        body = _MENTION.sub(lambda m: m.group() + "\u200b", message.body)
        return bool(service.notify(title=message.subject, body=body))

    async with asyncio.timeout(channel.timeout_seconds):
        done = await asyncio.to_thread(work)
    if not done:
        raise DeliveryFailed("the service did not take it")
    return "sent"
