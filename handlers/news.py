"""News for the merchant's app: what it is told by signed notice when one customer's account changes.

    standing.changed    the standing, or what its holds do, is another one
    access.ending       a subscription was cancelled and still serves until `access_until`; told anew when that date moves
    access.ended        that moment has come, or the subscription was ended at once
    credits.expired     what was left of a lot is gone (3.3, or the end of service credits)
    credits.forfeited   the same at the effective end of a subscription (3.1)
    refund.made         a duplicate charge went back (4.3), and which of two subscriptions stays

A cancellation that was withdrawn, or an end that moved because access was extended, has no type of its own: the end that
was announced simply does not come. The app can ask at any time (`GET /api/v1/customers/{id}`); that answer is the truth.
An announced loss of credits that a later telling undid is told with the same type, negative `credits` and `reversed`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from handlers.account import Access, Account, Entry, EntryKind, Hold, Standing, Way
from handlers.customer import CustomerId, Refund, Seconds, at
from handlers.decisions import ActionKind, Decision

NoticeType = Literal[
    "standing.changed", "access.ending", "access.ended", "credits.expired", "credits.forfeited", "refund.made"
]

_ENDING = (Way.ENDING, Way.ENDING_BY_SCHEDULE)
_ENDED = (Way.ENDED, Way.ENDED_AT_ONCE, Way.ENDED_BY_SCHEDULE)
_TOLD_OF_LOSS: dict[EntryKind, NoticeType] = {
    EntryKind.EXPIRED: "credits.expired",
    EntryKind.FORFEITED: "credits.forfeited",
}


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell the merchant's app. Equal keys are one notice: what was told once is not told again."""

    key: str
    type: NoticeType
    customer: CustomerId
    timestamp: Seconds
    """When it became true, which may lie before the moment it was learned."""
    data: dict[str, Any]
    """Plain JSON values: ids, whole credits, minor units, times in ISO 8601. Nothing personal."""


def account_news(was: Account | None, is_: Account, was_at: Seconds, now: Seconds) -> list[Notice]:
    """What is new in an account since it was judged at `was_at`, in the order in which it is told.

    `was` is None where the customer had no account yet: then a good standing is no news.
    """
    known = {notice.key for notice in _access_news(was, None, was_at)} if was is not None else set()
    fresh = [notice for notice in _access_news(is_, was, now) if notice.key not in known]
    return [*_standing_news(was, is_, now), *fresh]


def _standing_news(was: Account | None, is_: Account, now: Seconds) -> list[Notice]:
    """A change of standing is made by judging, so it is true from `now`; at first sight, since its newest hold.

    Its key has the moment in it, because the same holds may come and go more than once.
    """
    before = was.standing if was is not None else Standing.GOOD
    if (before, _holding(was)) == (is_.standing, _holding(is_)):
        return []
    moment = max((hold.since for hold in is_.holds), default=now) if was is None else now
    subjects = ",".join(f"{subject}:{int(suspends)}" for subject, suspends in sorted(_holding(is_)))
    return [
        Notice(
            key=f"standing.changed:{is_.customer}:{moment}:{before}:{is_.standing}:{subjects}",
            type="standing.changed",
            customer=is_.customer,
            timestamp=moment,
            data={
                "standing": str(is_.standing),
                "was": str(before),
                "holds": [_hold_document(hold) for hold in is_.holds],
            },
        )
    ]


def _holding(account: Account | None) -> frozenset[tuple[str, bool]]:
    return frozenset((hold.subject, hold.suspends) for hold in account.holds) if account is not None else frozenset()


def _hold_document(hold: Hold) -> dict[str, Any]:
    return {
        "subject": hold.subject,
        "since": _iso(hold.since),
        "status": hold.status,
        "suspends": hold.suspends,
        "due_by": _iso(hold.due_by),
        "cause": hold.outward_cause,
    }


def _access_news(account: Account, was: Account | None, now: Seconds) -> list[Notice]:
    """Everything that is to be told of an account's ends as they stand at `now`, whether or not it was told before."""
    announced = {a.subscription for a in was.access if a.way in (*_ENDING, *_ENDED)} if was is not None else set()
    return [
        notice
        for access in account.access
        if (notice := _end_of(account.customer, access, access.subscription in announced, now)) is not None
    ]


def _end_of(customer: CustomerId, access: Access, announced: bool, now: Seconds) -> Notice | None:
    """The notice of one subscription's end, coming or past. None where it renews, waits for a payment, or never began."""
    ended = access.way in _ENDED
    if not ended and (access.way not in _ENDING or access.until is None):
        return None
    if not ended and access.ends_at is not None and access.ends_at > (access.until or 0):
        return None  # it renews before it ends, and that is told with the last renewal
    document = {
        "subscription": access.subscription,
        "access_until": _iso(access.until),
        "reason": access.reason,
        "cause": access.cause,
    }
    if access.until is not None and access.until > now:  # also where it ended at Stripe, and the merchant extended it
        asked = access.requested_at
        return Notice(
            key=f"access.ending:{access.subscription}:{asked}:{access.until}",
            type="access.ending",
            customer=customer,
            timestamp=now if asked is None or announced else asked,
            data=document,
        )
    moment = access.until if access.until is not None else access.ended_at
    return Notice(
        key=f"access.ended:{access.subscription}:{moment}",
        type="access.ended",
        customer=customer,
        timestamp=max((t for t in (moment, access.ended_at) if t is not None), default=now),
        data={**document, "at_once": access.way is Way.ENDED_AT_ONCE},
    )


def entry_news(entries: Iterable[Entry], customer: CustomerId, posted_at: Seconds = 0) -> list[Notice]:
    """What the entries of one posting took from a customer's lots by expiry and forfeiture, summed by lot.

    `posted_at`: the moment of the posting. A lot may lose, get back and lose the same credits again, for the same
    reason; only the moment tells the two losses apart.
    """
    sums: dict[tuple[str, EntryKind], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.kind in _TOLD_OF_LOSS:
            sums[entry.lot, entry.kind].append(entry)
    notices = []
    for (lot, kind), moved in sums.items():
        lost = -sum(entry.amount for entry in moved)
        if lost == 0:
            continue
        effective = max(entry.effective_at for entry in moved)
        notices.append(
            Notice(
                key=f"{_TOLD_OF_LOSS[kind]}:{lot}:{effective}:{lost}:{posted_at}",
                type=_TOLD_OF_LOSS[kind],
                customer=customer,
                timestamp=effective,
                data={
                    "lot": lot,
                    "credits": lost,
                    "reversed": lost < 0,
                    "clause": moved[-1].clause,
                    "cause": moved[-1].cause,
                },
            )
        )
    return notices


def refund_news(refund: Refund, decision: Decision, *, ended: str | None = None, kept: str | None = None) -> Notice:
    """That our refund of a duplicate was made (4.3). `ended`, `kept`: the two subscriptions, where there are two.

    The copy's subscription is cancelled after its refund; where that is still to come, the decision names it already.
    """
    cancelled = next((s.subject for s in decision.prepared if s.kind is ActionKind.CANCEL_SUBSCRIPTION), None)
    return Notice(
        key=f"refund.made:{refund.id}",
        type="refund.made",
        customer=decision.customer,
        timestamp=refund.created,
        data={
            "refund": refund.id,
            "charge": refund.charge or decision.duplicate,
            "amount": refund.amount_minor,
            "currency": refund.currency,
            "original": decision.original,
            "subscription_ended": ended or cancelled,
            "subscription_kept": kept,
        },
    )


def _iso(seconds: Seconds | None) -> str | None:
    """Unix seconds as `2026-01-31T12:00:00Z`."""
    return None if seconds is None else f"{at(seconds):%Y-%m-%dT%H:%M:%SZ}"
