"""What the rules say: a verdict with its clause, its evidence and a sentence a person can read, and what should follow."""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from handlers.account import Account, Alert, Lot
from handlers.customer import ChargeId, CustomerId


class Money(msgspec.Struct, frozen=True):
    """An amount in minor units (JPY has none, KWD has three) and its lower-case currency."""

    minor: int
    currency: str

    def __str__(self) -> str:
        digits = {
            **dict.fromkeys(
                [
                    "bif",
                    "clp",
                    "djf",
                    "gnf",
                    "jpy",
                    "kmf",
                    "krw",
                    "mga",
                    "pyg",
                    "rwf",
                    "ugx",
                    "vnd",
                    "vuv",
                    "xaf",
                    "xof",
                    "xpf",
                ],
                0,
            ),
            **dict.fromkeys(["bhd", "jod", "kwd", "omr", "tnd"], 3),
        }.get(self.currency, 2)
        sign, whole = ("-" if self.minor < 0 else ""), str(abs(self.minor)).rjust(digits + 1, "0")
        number = whole if digits == 0 else f"{whole[:-digits]}.{whole[-digits:]}"
        return f"{sign}{number} {self.currency.upper()}"


class Verdict(StrEnum):
    """`refund`: proved, money goes back. `review`: a person decides. `deny`: the policy refuses. `none`: not a duplicate."""

    REFUND = "refund"
    REVIEW = "review"
    DENY = "deny"
    NONE = "none"


class ActionKind(StrEnum):
    """What a decision can make happen at Stripe."""

    REFUND = "refund"
    CANCEL_SUBSCRIPTION = "cancel_subscription"
    REVERSE_BALANCE_CREDIT = "reverse_balance_credit"


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """An action that follows from a decision: at once where the verdict is `refund`, after a person's word for `review`.

    `subject` is the charge, the subscription, or the invoice whose balance credit is reversed.
    """

    kind: ActionKind
    subject: str
    customer: CustomerId
    amount: Money | None = None


class Evidence(msgspec.Struct, frozen=True):
    """One fact a decision rests on: what was compared, and both values as a person reads them."""

    fact: str
    original: str
    duplicate: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict about one subject. Equal facts give an equal decision.

    Subjects: a charge (4.3), a subscription whose trial would be charged twice (4.3), an invoice (1.2, 1.3), a refund (2, 6),
    a dispute or an early fraud warning (7).
    """

    subject: str
    customer: CustomerId
    clause: str
    rule: str
    """`D1` to `D10`, or the name of another clause's rule, such as `chargeback`."""
    verdict: Verdict
    policy_version: str
    reason: str
    amount: Money | None = None
    original: ChargeId | None = None
    duplicate: ChargeId | None = None
    evidence: tuple[Evidence, ...] = ()
    prepared: tuple[Prepared, ...] = ()
    due_at: datetime | None = None
    """Earliest moment at which a prepared refund may be sent (the policy's settle delay)."""

    def fingerprint(self) -> str:
        """Equal for equal decisions; a new revision is written only when it changes."""
        return hashlib.sha256(_encoder.encode(self)).hexdigest()[:32]


class Acted(msgspec.Struct, frozen=True, kw_only=True):
    """An action that was already begun for a subject: its decision stands and is not made again."""

    kind: ActionKind
    subject: str
    state: str


class PaidPeriod(msgspec.Struct, frozen=True, kw_only=True):
    """A service period that a payment paid: [start, end) in unix seconds, of one thing. Two that overlap may be copies (4.3)."""

    charge: ChargeId
    customer: CustomerId
    thing: str
    """The product or price of the lines; `bare` and the amount where no invoice says what was paid."""
    amount_minor: int
    currency: str
    paid_at: int
    start: int
    end: int


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the rules say about one file: the decisions, by subject, and what they would still like to know."""

    decisions: dict[str, Decision]
    wanted: frozenset[tuple[str, str]] = frozenset()
    """Facts that would sharpen a decision and that no event brought: (`balance` | `invoice` | `subscription`, id)."""
    judge_again_at: datetime | None = None
    """When the passing of time alone may change the answer."""
    accounts: dict[CustomerId, Account] = {}
    """Standing and access, by customer."""
    lots: dict[CustomerId, dict[str, Lot]] = {}
    """The lots of credits that each customer should have."""
    unproved: frozenset[str] = frozenset()
    """Lots in the ledger of which nothing can be said until a look-up is back: they stay as they are."""
    alerts: dict[str, Alert] = {}
    """What people should hear of now, by cause."""
    paid: tuple[PaidPeriod, ...] = ()
    """What the payments paid for."""


_encoder = msgspec.json.Encoder(order="deterministic")


def as_json(value: Any) -> bytes:
    """Any of these values as deterministic JSON bytes."""
    return _encoder.encode(value)
