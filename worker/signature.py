"""Stripe's webhook signature, checked over the raw bytes: https://docs.stripe.com/webhooks#verify-manually.

The check never raises, whatever was sent: an unknown sender must not be able to cause an error of ours. The MAC comes before
every other judgement, so that only somebody who knows the secret learns more than "does not match".
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

MAX_HEADER_BYTES = 4096  # Stripe sends about 150 bytes for each active secret
MAX_CANDIDATES = 10  # one v1 per active secret; Stripe allows two at a time
_TIME = re.compile(rb"[0-9]{1,12}").fullmatch  # seconds; twelve digits reach the year 33658


class Reason(Enum):
    """Why a request was not believed; the value is the sentence for the sender."""

    MISSING = "The Stripe-Signature header is missing."
    MALFORMED = "The Stripe-Signature header is not of the form t=<seconds>,v1=<hex>."
    MISMATCH = "The signature does not match: compare the endpoint's signing secret with the one that is set here."
    TIME = "The signature is right, but its time is too far from this server's clock."


class VerifiedBy(NamedTuple):
    """The request was signed with the secret at `place` of those given."""

    place: int


class Refused(NamedTuple):
    """The request was not signed by anyone who knows a secret, or too long ago."""

    reason: Reason


def verify(
    header: bytes, body: bytes, secrets: Sequence[bytes], now_s: float, tolerance_s: float
) -> VerifiedBy | Refused:
    """Check `header` (Stripe-Signature) against `body` for several secrets, of which any one may have signed.

    Every candidate is compared with every secret's MAC without early exit, in constant time. The time may differ from `now_s`
    by `tolerance_s` seconds both ways: a signature from the future is as useful to a replay as an old one.
    """
    if not header:
        return Refused(Reason.MISSING)
    if len(header) > MAX_HEADER_BYTES:
        return Refused(Reason.MALFORMED)
    signed_at = b""
    candidates: list[bytes] = []
    for part in header.split(b","):
        scheme, _, value = part.partition(b"=")
        if scheme == b"v1":
            candidates.append(value)
        elif scheme == b"t":
            if signed_at:
                return Refused(Reason.MALFORMED)  # two times: whichever was signed, the other one lies
            signed_at = value
    if not _TIME(signed_at) or not 0 < len(candidates) <= MAX_CANDIDATES:
        return Refused(Reason.MALFORMED)

    message = signed_at + b"." + body
    matched = -1
    for place, secret in enumerate(secrets):
        expected = hmac.digest(secret, message, "sha256").hex().encode()
        for candidate in candidates:
            # compare_digest tells lengths apart in no time, and nothing else; upper-case hex does not match, as with Stripe's own
            if hmac.compare_digest(expected, candidate):
                matched = place
    if matched < 0:
        return Refused(Reason.MISMATCH)
    if not abs(now_s - int(signed_at)) <= tolerance_s:  # in this form also for a clock that is not a number
        return Refused(Reason.TIME)
    return VerifiedBy(matched)
