"""Mail by SMTP."""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from ipaddress import ip_address
from typing import Any

from asyncflow.errors import DeliveryFailed, MissingExtra
from asyncflow.notifications.addresses import is_public
from asyncflow.notifications.channels import Channel, Mail


def mail_of(to: Mail, id_: str, subject: str, body: str, now: float) -> EmailMessage:
    """The mail: with the same id in all attempts, so that who gets it twice can tell."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = to.sender, ", ".join(to.to), subject
    mail["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
    mail["Message-ID"] = f"<{id_}@asyncflow>"
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(body)
    return mail


async def send_mail(channel: Channel, id_: str, subject: str, body: str, now: float) -> str:
    """Send a mail; what the server says.

    Raises:
        DeliveryFailed: it did not take it.
        MissingExtra: aiosmtplib is not installed.
    """
    try:
        import aiosmtplib
    except ImportError:
        raise MissingExtra("aiosmtplib", "notifications", f"the channel {channel.name!r}") from None
    to = channel.mail
    client = aiosmtplib.SMTP(
        hostname=to.host, port=to.port, use_tls=to.tls, timeout=channel.timeout_seconds
    )
    try:
        async with client:
            if to.user is not None:
                if not _is_safe(client, channel.allow_private):
                    raise DeliveryFailed(
                        "the mail server has no TLS, and no password goes without:"
                        " use smtps://, or no user",
                        final=True,
                    )
                await client.login(to.user, to.password or "")
            refused, reply = await client.send_message(mail_of(to, id_, subject, body, now))
    except DeliveryFailed:
        raise
    except aiosmtplib.SMTPAuthenticationError as error:
        raise DeliveryFailed(
            f"the mail server refuses the login ({error.code})", final=error.code >= 500
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
    except (aiosmtplib.SMTPException, OSError) as error:
        raise DeliveryFailed(f"{type(error).__name__} at {to.host}:{to.port}") from None
    said = " ".join(str(reply).split())[:200]
    return f"{said} (refused: {', '.join(sorted(refused))})" if refused else said


def _is_safe(client: Any, allow_private: bool) -> bool:
    """Whether a password may go: there is TLS, or the server is this machine or allowed to be near.

    Who stands between could hide that a server has TLS.
    """
    if client.get_transport_info("sslcontext") is not None:
        return True
    peer = client.get_transport_info("peername")
    if not isinstance(peer, tuple):
        return True  # a socket of this machine
    host = str(peer[0])
    return ip_address(host.partition("%")[0]).is_loopback or (allow_private and not is_public(host))
