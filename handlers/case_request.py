"""Clause 5.1: what a support request says, and the values of a case: what is known, what follows, what was answered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from handlers.account import Account, LotKind, Outage
from handlers.customer import CustomerFile, CustomerId, Seconds
from handlers.decisions import Decision, Money, Verdict

Kind = Literal["refund", "duplicate", "technical", "cancellation", "chargeback", "other"]
KINDS: tuple[Kind, ...] = ("refund", "duplicate", "technical", "cancellation", "chargeback", "other")

_EMAIL = r"^[^\x00-\x20\x7f@<>\"',;:()\[\]\\]{1,64}@[^\x00-\x20\x7f@<>\"',;:()\[\]\\.]+(\.[^\x00-\x20\x7f@<>\"',;:()\[\]\\.]+)+$(?!\n)"
_DATE = (
    r"^(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])?)?$(?!\n)"
)
_TRANSACTION = r"^((ch|py|pi|in|sub|re|pyr|dp|du|cs|cus)_[A-Za-z0-9_]{1,200}|[A-Z0-9]{1,20}-[0-9]{4,6})$(?!\n)"


# the request -------------------------------------------------------------------------------------------------------------


class RequestInvalid(ValueError):
    """A request that clause 5.1 does not let us open a case for; the message says which field, and how to write it."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(f"{field}: {sentence}" if field else sentence)
        self.field = field


class CaseRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a customer sends to support (clause 5.1): who, when, what, and the transaction if there is one."""

    email: Annotated[str, Meta(max_length=254, pattern=_EMAIL, description="Where the answer goes.")]
    date: Annotated[
        str, Meta(pattern=_DATE, description="Day or moment of the purchase, ISO 8601; UTC without a zone.")
    ]
    description: Annotated[str, Meta(min_length=10, max_length=5000, pattern=r"\S")]
    transaction: (
        Annotated[
            str, Meta(pattern=_TRANSACTION, description="ch_ pi_ in_ sub_ re_ dp_ cs_ cus_, or a receipt's number.")
        ]
        | None
    ) = None
    customer: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:-]{1,200}$(?!\n)", description="cus_...")] | None = None
    kind: Kind | None = None
    request_key: (
        Annotated[str, Meta(pattern=r"^[!-~]{1,200}$(?!\n)", description="The same key again opens no second case.")]
        | None
    ) = None

    def __post_init__(self) -> None:
        _ = self.dated  # a day that no calendar has, such as 30 February

    @property
    def dated(self) -> datetime:
        """The moment, or the beginning of the day, that `date` names."""
        told = datetime.fromisoformat(self.date)
        return told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC)

    @property
    def about(self) -> Kind:
        """What it is about: nothing is guessed from the words."""
        return self.kind or "other"


_HOW = {
    "email": "write the customer's e-mail address, for example ada@example.com",
    "date": "write the day or moment of the purchase, for example 2026-01-31 or 2026-01-31T12:00:00Z",
    "description": "say in 10 to 5000 characters what happened",
    "transaction": "write a Stripe id (ch_ pi_ in_ sub_ re_ dp_ cs_ cus_) or the number on the receipt, or leave it out",
    "customer": "write the Stripe customer's id (cus_...), or leave it out",
    "kind": f"one of {', '.join(KINDS)}, or leave it out",
    "request_key": "up to 200 visible ASCII characters without spaces, or leave it out",
}


def read_request(told: Mapping[str, Any] | bytes | str) -> CaseRequest:
    """A request from JSON or its fields. Raises RequestInvalid with the field and how to write it."""
    try:
        request = (
            msgspec.json.decode(told, type=CaseRequest)
            if isinstance(told, (bytes, str))
            else msgspec.convert(dict(told), CaseRequest)
        )
        msgspec.json.encode(request)  # lone surrogates from a command line
    except msgspec.ValidationError as error:
        missing = re.search(r"required field `(\w+)`", str(error))
        unknown = re.search(r"unknown field `([^`]{0,100})", str(error))
        if unknown:
            raise RequestInvalid("", f"unknown field {unknown[1]!r}; there are {', '.join(_HOW)}") from None
        place = re.search(r"`\$\.(\w+)", str(error))
        field = missing[1] if missing else place[1] if place else "date" if "$" not in str(error) else ""
        raise RequestInvalid(field, _HOW.get(field, "write one JSON object")) from None
    except (msgspec.DecodeError, UnicodeError):
        raise RequestInvalid("", "the request is not valid JSON in UTF-8") from None
    return request


# what is known, and what follows -----------------------------------------------------------------------------------------


class Refunding(msgspec.Struct, frozen=True, kw_only=True):
    """Our own refund of one charge: the state of its action, how much, and when it was sent."""

    state: str
    amount: Money
    sent_at: datetime | None = None


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """One lot of credits in the ledger."""

    id: str
    kind: LotKind
    clause: str
    granted: int
    remaining: int
    lapsed: int
    """Expired and forfeited."""
    ends_at: Seconds | None = None


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the books hold about the person that a request is about."""

    customer: CustomerId
    file: CustomerFile
    """The whole person's facts."""
    decisions: Mapping[str, Decision] = {}
    """In force, by subject."""
    account: Account | None = None
    refunds: Mapping[str, Refunding] = {}
    """By charge."""
    rejected: frozenset[str] = frozenset()
    """Subjects of decisions that a person said no to."""
    lots: tuple[Granted, ...] = ()
    outages: tuple[Outage, ...] = ()


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the policy says to a request: for whoever answers (`summary`, `suggestions`) and to the customer (`draft_answer`)."""

    clause: str
    verdict: Verdict
    policy_version: str
    summary: str
    draft_answer: str
    customer: CustomerId | None = None
    payments: tuple[str, ...] = ()
    """Charges it is about."""
    suggestions: tuple[str, ...] = ()
    """Commands that may follow."""


class Case(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A support request with its evaluation, and what was answered in the end."""

    request: CaseRequest
    evaluation: Evaluation
    answer: str | None = None
