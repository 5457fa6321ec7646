"""Which network addresses are public: everything but the ranges that RFC 6890 and its successors set apart."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SET_APART = {
    "0.0.0.0/8": "this network",  # RFC 791
    "10.0.0.0/8": "private",  # RFC 1918
    "100.64.0.0/10": "carrier",  # RFC 6598: between a provider and its customers, and the inside of some clouds
    "127.0.0.0/8": "loopback",  # RFC 1122
    "169.254.0.0/16": "link-local",  # RFC 3927: where clouds answer with credentials
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocols",  # RFC 6890
    "192.0.2.0/24": "documentation",  # RFC 5737
    "192.88.99.0/24": "relay",  # RFC 7526
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "benchmarks",  # RFC 2544
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",  # RFC 5771
    "240.0.0.0/4": "reserved",  # RFC 1112; broadcast is its last address
    "::/128": "unspecified",  # RFC 4291
    "::1/128": "loopback",
    "::ffff:0:0/96": "mapped",  # RFC 4291: an IPv4 address in other clothes
    "::/96": "compatible",  # RFC 4291, the older clothes
    "64:ff9b::/96": "translated",  # RFC 6052: reaches any IPv4 address
    "64:ff9b:1::/48": "translated",  # RFC 8215
    "100::/64": "discard",  # RFC 6666
    "2001::/32": "teredo",  # RFC 4380
    "2001:db8::/32": "documentation",  # RFC 3849
    "2002::/16": "6to4",  # RFC 3056: reaches any IPv4 address
    "3fff::/20": "documentation",  # RFC 9637
    "5f00::/16": "segments",  # RFC 9602
    "fc00::/7": "private",  # RFC 4193
    "fe80::/10": "link-local",  # RFC 4291
    "fec0::/10": "site-local",  # RFC 3879
    "ff00::/8": "multicast",  # RFC 4291
}
_NETWORKS = [(ipaddress.ip_network(network), reason) for network, reason in _SET_APART.items()]
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA hands out of IPv6


def why_not_public(address: Address) -> str | None:
    """One word for the range that an address lies in and that nobody on the Internet has, or None where it is public."""
    for network, reason in _NETWORKS:
        if address.version == network.version and address in network:
            return reason
    return "unassigned" if address.version == 6 and address not in _GLOBAL_UNICAST else None


class Near:
    """The addresses and host names of this deployment's own network that may be spoken to, although they are not public."""

    def __init__(self, written: Iterable[str]) -> None:
        """Of addresses, networks and host names. Raises ValueError with the place (from 1) of an entry that is none of them."""
        self.networks: list[Network] = []
        self.names: set[str] = set()
        for place, entry in enumerate(written, start=1):
            text = entry.strip().strip("[]").lower().rstrip(".")
            try:
                self.networks.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                if not text or "/" in text or ":" in text or any(c.isspace() for c in text):
                    raise ValueError(place) from None
                self.names.add(text)

    def has_address(self, address: Address) -> bool:
        """Whether an address lies in one of the networks."""
        return any(address.version == network.version and address in network for network in self.networks)

    def has_host(self, host: str) -> bool:
        """Whether a host, as a URL names it, is one of these: by its name, or as an address."""
        text = host.strip("[]").lower().rstrip(".")
        try:
            return self.has_address(ipaddress.ip_address(text))
        except ValueError:
            return text in self.names

    def written(self) -> Collection[str]:
        """These again as text, one an entry."""
        return [*map(str, self.networks), *sorted(self.names)]
