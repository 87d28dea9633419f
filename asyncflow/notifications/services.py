"""The services that Apprise knows, more than 100. It is imported here only: it takes its time."""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import warnings
from typing import Any

from asyncflow.errors import DeliveryFailed, MissingExtra
from asyncflow.notifications.addresses import is_public
from asyncflow.notifications.channels import Channel

#: Webhooks by another name: where they go is checked as that of webhooks is.
_HOOKS = frozenset({"json", "jsons", "xml", "xmls", "form", "forms", "workflow", "workflows"})
#: What would call all members of a chat, or one of them.
_MENTION = re.compile(r"@(?=everyone|here|channel|all\b)|<(?=[!@#])", re.IGNORECASE)


def is_known(url: str, purpose: str) -> bool:
    """Whether Apprise can make something of a URL.

    Args:
        purpose: what needs it, for the error.

    Raises:
        MissingExtra: it is not installed.
    """
    return _service(url, purpose) is not None


@functools.cache
def _apprise() -> Any:
    with warnings.catch_warnings():
        # Of a module that it looks for; once, as this is not for several threads.
        warnings.simplefilter("ignore", DeprecationWarning)
        import apprise

        apprise.Apprise.instantiate("json://localhost")  # which loads all that it knows
    return apprise


def _service(url: str, purpose: str, **settings: Any) -> Any:
    try:
        apprise = _apprise()
    except ImportError:
        raise MissingExtra("apprise", "notifications", purpose) from None
    asset = apprise.AppriseAsset(async_mode=False)
    for name, value in settings.items():
        if hasattr(asset, name):  # which ones there are depends on its version
            setattr(asset, name, value)
    return apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)


def for_chat(text: str) -> str:
    """A text that wakes nobody: a mention gets a space without width, and is none."""
    return _MENTION.sub(lambda found: found.group() + "\u200b", text)


async def notify(channel: Channel, subject: str, body: str) -> str:
    """Send a message by Apprise, in a thread; what came of it.

    Raises:
        DeliveryFailed: the service did not take it.
        MissingExtra: Apprise is not installed.
    """
    url = channel.target
    guarded = url.partition(":")[0].lower() in _HOOKS and not channel.allow_private

    def work() -> bool:
        service = _service(
            url, f"the channel {channel.name!r}", **({"http_redirects": False} if guarded else {})
        )
        if service is None:
            raise DeliveryFailed("Apprise does not know its URL", final=True)
        if guarded:
            _check(service)
        text = _apprise().NotifyFormat.TEXT
        return bool(service.notify(for_chat(body), for_chat(subject), body_format=text))

    if not await asyncio.to_thread(work):
        raise DeliveryFailed("the service did not take it: the log of 'apprise' says why")
    return "sent"


def _check(service: Any) -> None:
    """Refuse a host that leads to an address that is not public.

    Apprise connects by itself and resolves once more, so that, other than with our own webhooks,
    a name server could still lead it elsewhere.
    """
    try:
        found = socket.getaddrinfo(service.host, service.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise DeliveryFailed("its host is not known") from None
    if not all(is_public(str(one[4][0])) for one in found):
        raise DeliveryFailed(
            f"{service.host} is not a public address: allow_private=True of the channel allows it"
        )
