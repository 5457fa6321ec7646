"""Which lists of Stripe are read, over which half-open windows of `created`, and how a dense slice is split. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from handlers.customer import Seconds

DAY = 86_400
RECENT = 3 * DAY
"""Every night reads what was created in the last 72 hours (Stripe retries deliveries for so long)."""
ROUND = 30
"""Nights in which all of history is seen once."""
GRACE = 60
"""Objects younger than this are still on their way here, and no gap."""
EVENTS_KEPT = 30 * DAY
"""How long Stripe lists events (docs.stripe.com/api/events)."""

SLICES = 6
"""Into so many slices a list is cut before anything is known of it: one for each chain that reads side by side."""
SHORTEST = 900
"""Seconds; shorter first slices would mostly be empty pages."""
STRIPE_BEGAN = 1_262_304_000
"""2010-01-01: nothing at Stripe is older, so all of time is cut from here."""


class Listing(msgspec.Struct, frozen=True):
    """One list of the API: its path, what it is filtered by besides `created`, and the kind of its objects."""

    path: str
    kind: str
    filters: tuple[tuple[str, str], ...] = ()


LISTS: dict[str, Listing] = {
    "events": Listing("/v1/events", "event"),
    "customers": Listing("/v1/customers", "customer"),
    "charges": Listing("/v1/charges", "charge"),
    "payment_intents": Listing("/v1/payment_intents", "payment_intent"),
    "invoices": Listing("/v1/invoices", "invoice"),
    "invoice_payments": Listing("/v1/invoice_payments", "invoice_payment"),
    "subscriptions": Listing("/v1/subscriptions", "subscription", (("status", "all"),)),
    "subscription_schedules": Listing("/v1/subscription_schedules", "subscription_schedule"),
    "refunds": Listing("/v1/refunds", "refund"),
    "disputes": Listing("/v1/disputes", "dispute"),
    "early_fraud_warnings": Listing("/v1/radar/early_fraud_warnings", "early_fraud_warning"),
    "checkout_sessions": Listing("/v1/checkout/sessions", "checkout_session"),
    "balance_transactions": Listing("/v1/balance_transactions", "balance_transaction"),
    # what has not come to its end, whatever its age: listed, since asking for each one by id would take hours
    "subscriptions_alive": Listing("/v1/subscriptions", "subscription"),
    "invoices_open": Listing("/v1/invoices", "invoice", (("status", "open"),)),
    "invoices_draft": Listing("/v1/invoices", "invoice", (("status", "draft"),)),
}
"""Every list a run reads, by the name it has in the certificate. `kind` is that of our facts."""

ALIVE = ("subscriptions_alive", "invoices_open", "invoices_draft")
"""Lists that are read over all of time, not over the run's windows: without a status Stripe leaves out what was canceled."""


class Window(msgspec.Struct, frozen=True, order=True):
    """Seconds [lo, hi) of `created`."""

    lo: Seconds
    hi: Seconds


class ScanPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one run reads: windows for each list. `upper` is the fixed edge: nothing created from then on is looked at."""

    upper: Seconds
    windows: tuple[Window, ...]
    """Disjoint and sorted; over these both sides must agree about what exists."""
    lists: dict[str, tuple[Window, ...]]
    """By name in LISTS."""


def scan_plan(windows: Iterable[Window], upper: Seconds, *, alive: bool = True) -> ScanPlan:
    """Every list over the windows, events no further back than Stripe keeps them, what is alive over all of time."""
    united = merged(Window(w.lo, min(w.hi, upper)) for w in windows)
    kept = upper - EVENTS_KEPT
    lists: dict[str, tuple[Window, ...]] = {}
    for name in LISTS:
        if name in ALIVE:
            lists[name] = (Window(0, upper),) if alive else ()
        elif name == "events":
            lists[name] = merged(Window(max(w.lo, kept), w.hi) for w in united)
        else:
            lists[name] = united
    return ScanPlan(upper=upper, windows=united, lists=lists)


def nightly(upper: Seconds, history_since: Seconds | None, nights: Collection[int]) -> tuple[Window, ...]:
    """The last 72 hours, and of the history before them each day whose turn it is on one of `nights` (days since 1970).

    A day of history has its turn when its number and the night's leave the same rest by 30: no day is left out as
    history grows, and a night that was missed is made up for by naming it too: the last hours then reach back as much
    longer, or what was created after the last run would wait for its day's turn.
    """
    missed = max(len(set(nights)) - 1, 0)
    recent = Window(upper - RECENT - missed * DAY, upper)
    if history_since is None:
        return (recent,)
    turns = {night % ROUND for night in nights}
    first, last = history_since // DAY, recent.lo // DAY
    days = [Window(day * DAY, (day + 1) * DAY) for day in range(first, last + 1) if day % ROUND in turns]
    return merged((*days, recent))


def merged(windows: Iterable[Window]) -> tuple[Window, ...]:
    """The same seconds as disjoint, sorted windows; empty ones are left out."""
    found: list[Window] = []
    for window in sorted(w for w in windows if w.lo < w.hi):
        if found and window.lo <= found[-1].hi:
            found[-1] = Window(found[-1].lo, max(found[-1].hi, window.hi))
        else:
            found.append(window)
    return tuple(found)


def halves(lo: Seconds, hi: Seconds) -> tuple[Window, Window] | None:
    """A window as two of about the same length, the younger first; None where it is one second and cannot be split."""
    if hi - lo < 2:
        return None
    middle = (lo + hi) // 2
    return Window(middle, hi), Window(lo, middle)


def initial_slices(windows: Iterable[Window]) -> list[Window]:
    """Windows cut into about `SLICES` slices in all, the youngest first; they cover the same seconds."""
    known = sorted(windows, reverse=True)
    seconds = sum(w.hi - min(max(w.lo, STRIPE_BEGAN), w.hi) for w in known)
    length = max(SHORTEST, -(-seconds // SLICES))
    found: list[Window] = []
    for window in known:
        hi = window.hi
        begin = max(window.lo, STRIPE_BEGAN)
        while hi - begin > length:
            found.append(Window(hi - length, hi))
            hi -= length
        found.append(Window(window.lo, hi))
    return found
