"""What a run leaves behind: the completeness certificate, what was found and done, the money, and what waits for people.

The report is one JSON document; tables, CSV and the HTML page are views of it. Times are unix seconds, UTC; money is in minor
units of lower-case currencies.
"""

from __future__ import annotations

import msgspec

from handlers.customer import Seconds
from reconcile.findings import Consequence, Finding

SHOWN = 1000
"""At most so many findings, consequences and residuals stand in the report itself; their numbers are always whole."""


class ListRead(msgspec.Struct, kw_only=True):
    """One line of the certificate: how much of one of Stripe's lists was read."""

    list: str
    slices: int
    pages: int
    objects: int
    first_id: str | None
    """The newest object read; lists run backwards."""
    last_id: str | None
    retries: int
    unread: int
    """Slices and objects that could not be read; 0 on a complete list."""


class Unread(msgspec.Struct, frozen=True):
    """One thing that could not be read, and why, in our own words."""

    list: str
    what: str
    why: str


class MoneyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One currency and kind of movement (`charge`, `refund`, `dispute`): Stripe's sum, ours, and what is left over.

    residual_minor = at_stripe_minor - ours_minor; explained_minor is the part of it that `Residual`s with `explained` account for.
    """

    currency: str
    kind: str
    at_stripe_minor: int
    ours_minor: int
    residual_minor: int
    explained_minor: int


class Other(msgspec.Struct, frozen=True, kw_only=True):
    """Balance transactions that are no business of the books: Stripe's fees, payouts, transfers; told for the total."""

    currency: str
    kind: str
    at_stripe_minor: int
    count: int


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """Minor units by which one object's money differs, and why: no residual is left without an object."""

    currency: str
    kind: str
    object: str
    minor: int
    why: str
    explained: bool


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """What moved on one UTC day (`2026-11-22`), by Stripe's balance transactions; for the plot."""

    day: str
    currency: str
    kind: str
    minor: int
    count: int


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for people when the run ends."""

    reviews: int = 0
    reviews_1h: int = 0
    """Of these, waiting longer than one hour; so on."""
    reviews_4h: int = 0
    reviews_24h: int = 0
    reviews_older: int = 0
    """Longer than seven days."""
    planned: int = 0
    """Actions that a worker sends by itself."""
    in_doubt: int = 0
    oldest_review_at: Seconds | None = None


class Report(msgspec.Struct, kw_only=True):
    """One run. `result`: clean (exit 0), needs_person (1), incomplete or failed (2)."""

    run: str
    realm: str
    kind: str
    """`nightly` (by itself, every night) or `asked`."""
    dry_run: bool
    asked: str
    since: Seconds
    until: Seconds
    """The upper edge: nothing younger was looked at."""
    windows: list[tuple[Seconds, Seconds]]
    started_at: Seconds
    finished_at: Seconds
    result: str
    exit: int
    why: list[str]
    """Sentences: why the result is what it is."""
    certificate: list[ListRead]
    unread: list[Unread]
    unread_total: int
    reread: int
    """Objects read again by id because they had not come to their end, or because a list did not show them."""
    requests: int
    rate_limited: int
    """Answers 429 on the way."""
    imported: dict[str, int]
    """Objects from before the books began, by kind: new, and no drift."""
    enriched: int
    """Objects of which Stripe told more than any event does; no drift."""
    in_flight: int
    """Objects that changed after the upper edge and are left to the webhooks."""
    found: dict[str, int]
    """Numbers of findings by kind (`What`), those with none left out."""
    drift: int
    """Findings about facts: 0 says that the books and Stripe agreed."""
    by_class: dict[str, int]
    findings: list[Finding]
    consequences: list[Consequence]
    consequences_total: int
    to_return: dict[str, int]
    """By currency: what the consequences would return to customers, proved (`refund`)."""
    to_review: dict[str, int]
    """By currency: what they put before a person."""
    would_hold: int
    """Accounts that become flagged or suspended."""
    credits_due: int
    """Credits that expire, are forfeited or taken back."""
    healed: int
    unhealed: int
    """Findings of class auto that are still there afterwards; 0 unless something is badly wrong."""
    money: list[MoneyRow]
    other: list[Other]
    residuals: list[Residual]
    residuals_total: int
    days: list[Day]
    causes: dict[str, int]
    """Drift by cause, for the plot: `event never arrived`, `event dead`, `changed here`, `no event in 30 days`."""
    waiting: Waiting


def result_of(report: Report) -> tuple[str, int]:
    """The result and the exit code, by the only rule: what was not read cannot be clean (promise 4)."""
    if report.unread_total or report.unhealed or any(line.unread for line in report.certificate):
        return "incomplete", 2
    if report.by_class.get("ask", 0) or report.waiting.reviews or report.waiting.in_doubt:
        return "needs_person", 1
    if report.dry_run and (report.by_class.get("auto", 0) or report.consequences_total):
        return "needs_person", 1
    return "clean", 0
