"""Two policies over one history: which decisions, standings and credits would come out differently (clause 9). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from handlers.account import Lot
from handlers.customer import Charge, CustomerId, Fact, Refund, Subscription
from handlers.decisions import Decision, Judgement
from handlers.terms import Policy, Version, as_written


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that the other policy would do differently, in words, with the customer it touches."""

    customer: CustomerId
    about: str
    """`decision`, `standing` or `credits`."""
    subject: str
    clause: str
    was: str
    would_be: str


def throughout(policy: Policy) -> Policy:
    """The newest version of a policy as if it had always been in force; agreements stay as they are."""
    newest = policy.version[-1]
    always = msgspec.structs.replace(newest, in_force_from=datetime(1970, 1, 1, tzinfo=UTC))
    return msgspec.structs.replace(policy, version=(always,))


def terms_changed(was: Version, would_be: Version) -> list[tuple[str, str, str]]:
    """The terms that differ, as dotted name, old value, new value."""
    found = []
    for rule in ("duplicates", "refunds", "chargebacks", "credits", "cases"):
        ours, theirs = getattr(was, rule), getattr(would_be, rule)
        for name in ours.__struct_fields__:
            old, new = getattr(ours, name), getattr(theirs, name)
            if isinstance(old, dict):
                for key in sorted({*old, *new}):
                    if old.get(key) != new.get(key):
                        found.append((f"{rule}.{name}.{key}", _value(old.get(key)), _value(new.get(key))))
            elif old != new:
                found.append((f"{rule}.{name}", _value(old), _value(new)))
    return found


def _value(value: Any) -> str:
    if value is None:
        return "not named"
    plain = as_written(value)
    return plain if isinstance(plain, str) else msgspec.json.encode(plain).decode()


def without_refunds(facts: Iterable[Fact], ours: Callable[[Refund], bool]) -> list[Fact]:
    """A person's history as it was before some refunds: their charges whole again, so that it can be judged anew."""
    kept: list[Fact] = []
    dropped: dict[str, int] = {}
    for fact in facts:
        if isinstance(fact, Refund) and fact.charge and fact.live and ours(fact):
            dropped[fact.charge] = dropped.get(fact.charge, 0) + fact.amount_minor
        else:
            kept.append(fact)
    return [
        msgspec.structs.replace(fact, refunded_minor=max(fact.refunded_minor - dropped[fact.id], 0))
        if isinstance(fact, Charge) and fact.id in dropped
        else fact
        for fact in kept
    ]


def changes(was: Judgement, would_be: Judgement) -> list[Change]:
    """Everything that differs between two judgements of one person."""
    return [*_decisions(was, would_be), *_standings(was, would_be), *_credits(was, would_be)]


def _decisions(was: Judgement, would_be: Judgement) -> list[Change]:
    found = []
    for subject in sorted({*was.decisions, *would_be.decisions}):
        old, new = was.decisions.get(subject), would_be.decisions.get(subject)
        known = new or old
        assert known is not None
        if _outcome(old) != _outcome(new):
            found.append(
                Change(
                    customer=known.customer,
                    about="decision",
                    subject=subject,
                    clause=known.clause,
                    was=_said(old),
                    would_be=_said(new),
                )
            )
    return found


def _outcome(decision: Decision | None) -> Any:
    return ("none", None, ()) if decision is None else (str(decision.verdict), decision.amount, decision.prepared)


def _said(decision: Decision | None) -> str:
    if decision is None:
        return "none"
    return f"{decision.verdict} {decision.amount}" if decision.amount else str(decision.verdict)


def _standings(was: Judgement, would_be: Judgement) -> list[Change]:
    return [
        Change(
            customer=customer,
            about="standing",
            subject=customer,
            clause="7",
            was=str(was.accounts[customer].standing),
            would_be=str(account.standing),
        )
        for customer, account in sorted(would_be.accounts.items())
        if customer in was.accounts and was.accounts[customer].standing is not account.standing
    ]


def _credits(was: Judgement, would_be: Judgement) -> list[Change]:
    found = []
    for customer in sorted({*was.lots, *would_be.lots}):
        ours: Mapping[str, Lot] = was.lots.get(customer, {})
        theirs: Mapping[str, Lot] = would_be.lots.get(customer, {})
        for lot in sorted({*ours, *theirs}):
            old, new = ours.get(lot), theirs.get(lot)
            known = new or old
            assert known is not None
            if _lot(old) != _lot(new):
                found.append(
                    Change(
                        customer=customer,
                        about="credits",
                        subject=lot,
                        clause=known.clause,
                        was=_lot(old),
                        would_be=_lot(new),
                    )
                )
    return found


def _lot(lot: Lot | None) -> str:
    if lot is None:
        return "no lot"
    return f"{lot.credits} credits" + (f", {lot.closing.kind}" if lot.closing else "")


def to_be_told(facts: Mapping[CustomerId, Iterable[Fact]], *, test_clocks: bool = False) -> list[CustomerId]:
    """Existing customers in the sense of clause 9: those with a subscription that still runs, rehearsals aside."""
    return [
        customer
        for customer, theirs in sorted(facts.items())
        if any(isinstance(f, Subscription) and f.alive and (test_clocks or not f.test_clock) for f in theirs)
    ]
