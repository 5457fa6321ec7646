"""The words of a run: how its result, its window, its findings and their consequences are called, in every view of the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from handlers.customer import Seconds
from handlers.decisions import Money
from reconcile.findings import Class, Consequence, Finding, What
from reconcile.report import Report

HEADLINES = {"clean": "CLEAN", "needs_person": "A PERSON MUST ACT", "incomplete": "INCOMPLETE", "failed": "FAILED"}

CLASSES = {
    Class.ASK: "A person must act",
    Class.AUTO: "Heals by itself",
    Class.NEVER: "Shown, and left as it is",
}
"""In the order in which people want them."""

FOLLOWS = {Class.ASK: "A person decides", Class.AUTO: "By itself", Class.NEVER: "Only told"}
"""The same of what follows by the policy."""

WHATS = {
    What.MISSING_HERE: "At Stripe, not in the books",
    What.MISSING_THERE: "In the books, unknown to Stripe",
    What.DIFFERENT: "Different here and there",
    What.EVENT_UNHEARD: "Events that never arrived",
    What.FROM_THE_FUTURE: "Newer than Stripe's own clock",
    What.EVENT_DEAD: "Events that could not be worked on",
    What.COPY_UNJUDGED: "Copies without a decision (4.3)",
    What.NOBODYS: "Objects that belong to nobody",
    What.ACTION_IN_DOUBT: "Actions in doubt",
    What.REFUND_UNCONFIRMED: "Refunds sent, not confirmed",
    What.REFUND_DIFFERS: "Refunds other than decided",
    What.TRIAL_OVERDUE: "Trials that ended unheard (3.3)",
    What.CREDITS_OVERDUE: "Credits of ended subscriptions (3.1)",
    What.CHARGED_AFTER_END: "Charges after cancellation (1.2)",
    What.OUT_OF_POLICY: "Refunds outside the policy (2, 6)",
    What.MONEY: "Money that nothing explains",
    What.ENDPOINT: "The webhook endpoint",
}

_DECISIONS = {
    "refund": ("would return {what} to {customer}", "returns {what} to {customer}"),
    "review": ("would ask a person about {what} of {customer}", "asks a person about {what} of {customer}"),
    "deny": ("would say that no clause allows {what} of {customer}", "says that no clause allows {what} of {customer}"),
}
_OTHERWISE = ("would judge {what} of {customer} anew", "judges {what} of {customer} anew")


class Looked(NamedTuple):
    """What the rules say about a stretch of history, sorted by what a merchant asks about."""

    duplicates: list[Consequence]
    """Proved: the money goes back (4.3)."""
    doubtful: list[Consequence]
    """Perhaps duplicates: a person decides (4.3)."""
    after_end: list[Consequence]
    out_of_policy: list[Consequence]
    standing: list[Consequence]
    credits: list[Consequence]
    other: list[Consequence]


def looked(consequences: Iterable[Consequence]) -> Looked:
    """Consequences by what they are about; the clause of the policy tells."""
    sorted_ = Looked([], [], [], [], [], [], [])
    for one in consequences:
        _place(sorted_, one).append(one)
    return sorted_


def _place(among: Looked, one: Consequence) -> list[Consequence]:
    if one.about != "decision":
        return {"standing": among.standing, "credits": among.credits}.get(one.about, among.other)
    if one.clause == "4.3" and one.verdict in ("refund", "review"):
        return among.duplicates if one.verdict == "refund" else among.doubtful
    if one.clause in ("1.2", "1.3") and one.verdict == "review":
        return among.after_end
    return among.out_of_policy if one.clause in ("2", "6", "2, 6") and one.verdict != "none" else among.other


def headline(report: Report) -> str:
    """`CLEAN`, `A PERSON MUST ACT` or `INCOMPLETE`."""
    return HEADLINES.get(report.result, report.result.replace("_", " ").upper())


def effect(one: Consequence, *, dry_run: bool) -> str:
    """`would return 29.00 USD to cus_A (ch_2, duplicate of ch_1, D3, clause 4.3)`; without `would` where it happens."""
    rests_on = [one.subject] if one.amount or one.about != "decision" else []
    rests_on += [f"duplicate of {one.original}"] if one.original else []
    rests_on += [*([one.rule] if one.rule else []), f"clause {one.clause}"]
    tense = 0 if dry_run else 1
    if one.about == "decision":
        form = _DECISIONS.get(one.verdict, _OTHERWISE)[tense]
        said = form.format(what=str(one.amount) if one.amount else one.subject, customer=one.customer)
    elif one.about == "standing":
        said = f"{('would move', 'moves')[tense]} {one.customer} from {one.was} to {one.becomes}"
    else:
        said = f"{('would change', 'changes')[tense]} {one.about} of {one.customer} from {one.was} to {one.becomes}"
    return f"{said} ({', '.join(rests_on)})"


def explained(one: Finding) -> str:
    """Why a finding is so and what is done about it, in one line."""
    return "; ".join(part for part in (one.cause, one.do) if part)


def titled(what: What) -> str:
    """What a kind of finding is called."""
    return WHATS.get(what, what.replace("_", " "))


def sums(by_currency: Mapping[str, int], nothing: str = "nothing") -> str:
    """`261.00 USD, 2900 JPY`, by currency."""
    return ", ".join(str(Money(minor, currency)) for currency, minor in sorted(by_currency.items())) or nothing


def moment(seconds: Seconds) -> str:
    """`2026-11-22 03:00`, UTC; the year 1970 is the beginning of everything."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}" if seconds > 0 else "the beginning"


def window(report: Report) -> str:
    """`2026-11-19 03:00 to 2026-11-22 03:00 UTC`, and whether older days were read as well."""
    first, *_ = windows = sorted(report.windows) or [(report.since, report.until)]
    if len(windows) == 1:
        return f"{moment(first[0])} to {moment(first[1])} UTC"
    last, older = windows[-1], sum(hi - lo for lo, hi in windows[:-1])
    days = f"{older / 86_400:.0f} older days" if older >= 1.5 * 86_400 else "an older day"
    return f"{moment(last[0])} to {moment(last[1])} UTC and {days} from {moment(first[0])} on"


def days_of(report: Report) -> int:
    """How many days the run looked back, at least 1."""
    return max(1, round((report.until - report.since) / 86_400))


def length(seconds: float) -> str:
    """`4 min 12 s`; a run that took no time took a second."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def pace(report: Report) -> str:
    """`102,345 objects in 1,034 requests, 4 min 12 s (406 a second)`, and how often Stripe said: too fast."""
    seconds, objects = report.finished_at - report.started_at, sum(line.objects for line in report.certificate)
    told = f"{objects:,} objects in {report.requests:,} requests, {length(seconds)} ({objects / max(1, seconds):,.0f} a second)"
    told += f", {report.reread:,} more read again by id" if report.reread else ""
    return told + (f"; {report.rate_limited:,} answers 429 waited out" if report.rate_limited else "")


def waits(report: Report) -> list[str]:
    """What waits for people or workers when the run ends, a sentence each."""
    waiting = report.waiting
    oldest = f", the oldest since {moment(waiting.oldest_review_at)} UTC" if waiting.oldest_review_at else ""
    counted = (
        (waiting.reviews, f"{counted_noun(waiting.reviews, 'review')} for a person{oldest}: finalsale review list"),
        (waiting.planned, f"{counted_noun(waiting.planned, 'action')} that a worker sends by itself"),
        (waiting.in_doubt, f"{counted_noun(waiting.in_doubt, 'action')} in doubt: sent, and no answer yet"),
    )
    return [sentence for count, sentence in counted if count]


def backlog(report: Report) -> list[tuple[str, int]]:
    """How many reviews wait, by age: shares that add up to all of them."""
    w = report.waiting
    steps = (w.reviews, w.reviews_1h, w.reviews_4h, w.reviews_24h, w.reviews_older, 0)
    names = ("up to 1 hour", "1 to 4 hours", "4 to 24 hours", "1 to 7 days", "over 7 days")
    return [(name, more - fewer) for name, more, fewer in zip(names, steps, steps[1:], strict=False)]


def notes(report: Report) -> list[str]:
    """What is no drift and yet ought to be known."""
    kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in sorted(report.imported.items()) if count)
    counted = (
        (kinds, f"Imported from before the books began: {kinds}."),
        (report.enriched, f"{counted_noun(report.enriched, 'object')} of which Stripe told more than any event does."),
        (
            report.in_flight,
            f"{counted_noun(report.in_flight, 'object')} changed after the upper edge, left to the webhooks.",
        ),
    )
    return [sentence for count, sentence in counted if count]


def counted_noun(count: int, noun: str) -> str:
    """`1 review`, `2 reviews`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
