"""Which addresses an endpoint may have: http or https, no credentials inside, and never a link-local or cloud metadata
address, so that a run file from elsewhere cannot make this machine hand out its own keys. Private and loopback
addresses stay allowed: that is where self-hosted teachers live."""

import ipaddress
from urllib.parse import urlsplit

# Names and addresses by which clouds hand out credentials to whoever asks from inside a machine.
METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
METADATA_ADDRESSES = frozenset({"100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"})


def forbidden_address(address: str) -> bool:
    """Whether a numeric IPv4 or IPv6 address is link-local, unspecified-multicast or a metadata service."""
    try:
        ip = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return ip.is_link_local or ip.is_multicast or str(ip) in METADATA_ADDRESSES


def check_base_url(url: str) -> str:
    """The server's root without a trailing `/` or `/v1`; raises ValueError with one sentence when it may not be used.

    Only the text is judged here. Names are judged again by what they resolve to when a connection is made.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// address, such as http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold credentials: name their environment variable in api_key_env")
    if parts.query or parts.fragment:
        raise ValueError("must not hold a query or a fragment: keys belong into api_key_env")
    if parts.hostname.rstrip(".").lower() in METADATA_NAMES or forbidden_address(parts.hostname):
        raise ValueError("is a link-local or cloud metadata address, which no teacher is asked at")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")
