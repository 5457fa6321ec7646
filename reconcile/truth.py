"""Stripe's refunds against ours: every refund once, to the cent, of the right charge, and no original touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One sentence about the books, whether it holds, and the figure it rests on."""

    name: str
    ok: bool
    figure: str


class RefundAtStripe(msgspec.Struct, frozen=True, kw_only=True):
    """A refund as Stripe has it. `action` is ours, from its metadata; None where somebody else made it. Minor units."""

    id: str
    charge: str | None
    amount_minor: int
    currency: str
    status: str
    action: str | None


class RefundDecided(msgspec.Struct, frozen=True, kw_only=True):
    """A refund that we decided and sent. Minor units."""

    action: str
    charge: str
    original: str | None
    amount_minor: int
    currency: str
    stripe_id: str | None


def compare_refunds(decided: Iterable[RefundDecided], at_stripe: Iterable[RefundAtStripe]) -> list[Check]:
    """Both ways, amount by amount. Refunds that people made at Stripe themselves are counted apart."""
    ours = {row.action: row for row in decided}
    live = [row for row in at_stripe if row.status not in ("failed", "canceled")]
    theirs = [row for row in live if row.action is not None]
    same = [
        row
        for row in theirs
        if row.action in ours
        and (row.charge, row.amount_minor, row.currency, row.id)
        == (
            ours[row.action].charge,
            ours[row.action].amount_minor,
            ours[row.action].currency,
            ours[row.action].stripe_id,
        )
    ]
    twice = [charge for charge, times in Counter(row.charge for row in theirs).items() if times > 1]
    originals = {row.original for row in ours.values()}
    touched = [row.charge for row in theirs if row.charge in originals]
    return [
        Check(
            name="refunds at Stripe = refunds decided",
            ok=len(same) == len(theirs) == len(ours),
            figure=f"{len(theirs)} at Stripe, {len(ours)} decided, {len(same)} equal; {_sums(theirs)}",
        ),
        Check(name="nothing refunded twice", ok=not twice, figure=_some(twice, f"{len(theirs)} charges, once each")),
        Check(name="no original touched", ok=not touched, figure=_some(touched, f"{len(originals)} originals stand")),
    ]


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What must come of one seeded case (`refund`, `review`, `none`), by its later payment. Minor units."""

    case: str
    rule: str
    expect: str
    original: str | None
    duplicate: str | None
    amount_minor: int
    currency: str
    cancels: str | None = None
    reverses: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one charge: the verdict in force and what was sent for it."""

    verdict: str
    original: str | None = None
    refunded_minor: int = 0
    canceled: str | None = None
    reversed: bool = False


def compare_truth(truth: Sequence[Expected], outcomes: dict[str, Outcome]) -> list[Check]:
    """The seeded cases against what was done, one check per kind of expectation."""
    wrong: dict[str, list[str]] = {"refund": [], "review": [], "none": []}
    counts = Counter(row.expect for row in truth)
    for row in truth:
        outcome = outcomes.get(row.duplicate or "", Outcome(verdict="none"))
        if fault := _fault(row, outcome):
            wrong[row.expect].append(f"{row.case}: {fault}")
    expected = {row.duplicate for row in truth if row.expect == "refund"}
    beyond = sorted(charge for charge, outcome in outcomes.items() if outcome.refunded_minor and charge not in expected)
    return [
        Check(
            name="every proved duplicate refunded to the cent",
            ok=not wrong["refund"],
            figure=_some(wrong["refund"], f"{counts['refund']} of {counts['refund']}"),
        ),
        Check(
            name="every doubtful one waits for a person",
            ok=not wrong["review"],
            figure=_some(wrong["review"], f"{counts['review']} of {counts['review']}"),
        ),
        Check(
            name="no look-alike touched",
            ok=not wrong["none"],
            figure=_some(wrong["none"], f"{counts['none']} left alone"),
        ),
        Check(name="nothing else refunded", ok=not beyond, figure=_some(beyond, "0 beyond the seeded duplicates")),
    ]


def _fault(row: Expected, outcome: Outcome) -> str | None:
    if row.expect != outcome.verdict:
        return f"{row.duplicate} has the verdict {outcome.verdict}, not {row.expect}"
    if row.expect != "refund":
        return f"{row.duplicate} was refunded" if outcome.refunded_minor else None
    if outcome.refunded_minor != row.amount_minor:
        return f"{row.duplicate} gave back {outcome.refunded_minor} instead of {row.amount_minor} ({row.currency}, minor units)"
    if outcome.original != row.original:
        return f"{row.duplicate} names {outcome.original} as its original, not {row.original}"
    if row.cancels != outcome.canceled:
        return f"{row.duplicate}: subscription {outcome.canceled} was ended, not {row.cancels}"
    if row.reverses != outcome.reversed:
        return f"{row.duplicate}: balance credit reversed: {outcome.reversed}, not {row.reverses}"
    return None


def _sums(rows: Iterable[RefundAtStripe]) -> str:
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row.currency] += row.amount_minor
    return ", ".join(f"{minor} {currency}" for currency, minor in sorted(sums.items())) or "nothing"


def _some(faults: Sequence[object], otherwise: str) -> str:
    if not faults:
        return otherwise
    return f"{len(faults)} wrong: " + "; ".join(str(fault) for fault in faults[:5])
