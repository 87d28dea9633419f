"""Which addresses the internet can reach: webhooks go to no others, unless they are allowed to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

#: What `ipaddress` calls global in some versions of Python, and no host of the internet has.
_NOT_V4 = [
    IPv4Network(text) for text in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24")
]
#: All that is handed out to hosts of the internet (RFC 4291), and what of it is not for them:
#: Teredo and other protocols, documentation.
_V6 = IPv6Network("2000::/3")
_NOT_V6 = [IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "3fff::/20")]
#: What a gateway turns into the IPv4 address in its last four bytes (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")
#: What comes before the IPv4 address that such a host has (RFC 5214).
_ISATAP = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")


def is_public(address: str) -> bool:
    """Whether the internet can reach an address; those inside of others count as what they are.

    Args:
        address: as sockets give it; what is no address is not public.
    """
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv4Address):
        return _is_public(found)
    if found.scope_id is not None:
        return False
    inner = found.ipv4_mapped or found.sixtofour
    if inner is None and found in _NAT64:
        inner = IPv4Address(int(found) & 0xFFFFFFFF)
    if inner is not None:
        return _is_public(inner)
    if found.packed[8:12] in _ISATAP and not _is_public(IPv4Address(found.packed[12:])):
        return False
    return found in _V6 and found.is_global and not any(found in net for net in _NOT_V6)


def _is_public(address: IPv4Address) -> bool:
    odd = any(address in net for net in _NOT_V4)
    return address.is_global and not address.is_multicast and not odd
