"""Clause 4.2: what a declared outage gives each subscription that it met, in credits, never in money. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction

import msgspec

from handlers.account import Lot, LotKind, Outage
from handlers.customer import CustomerId, InvoiceId, Line, PriceId, Seconds, SubscriptionId, at

CLAUSE = "4.2"

Interval = tuple[Seconds, Seconds]
"""Half-open: [from, to)."""


class PaidLine(msgspec.Struct, frozen=True, kw_only=True):
    """One paid line of a subscription whose included credits were not given back with a duplicate."""

    invoice: InvoiceId
    line: Line
    subscription: SubscriptionId
    credits: int
    """Included credits of the whole service period."""
    paid_at: Seconds
    ended_at: Seconds | None
    """When its subscription ended."""


class _Service(msgspec.Struct, frozen=True):
    """A paid line, and the part of its service period in which it alone served its item."""

    paid: PaidLine
    begins: Seconds
    ends: Seconds


def service_lots(customer: CustomerId, lines: Iterable[PaidLine], outages: Iterable[Outage]) -> list[Lot]:
    """One lot for each outage and subscription: included credits x overlap / service period, rounded down once (4.2).

    An outage gives nothing for time after the subscription's end, nor for time that an outage declared earlier gave
    already for that price. The sum over the lines is exact; only the lot is whole.
    """
    declared = sorted(outages, key=lambda o: (o.declared_at, o.id))
    by_subscription: dict[SubscriptionId, list[_Service]] = defaultdict(list)
    for service in _in_service(lines) if declared else ():
        by_subscription[service.paid.subscription].append(service)
    lots: list[Lot] = []
    earlier: list[Outage] = []
    for outage in declared:
        for subscription, services in sorted(by_subscription.items()):
            lot = _lot(customer, subscription, services, outage, earlier)
            if lot is not None:
                lots.append(lot)
        earlier.append(outage)
    return lots


def _in_service(lines: Iterable[PaidLine]) -> list[_Service]:
    """Each line with its own part of time: an item can be out only once, however often its period was invoiced.

    Of two invoices for one period of one item the one paid first serves (D5); where another period begins before the
    last is over, the later serves from then on. Lines of one invoice are tiers of one price, and all of them serve.
    """
    by_item: dict[tuple[str, str | None], dict[Interval, list[PaidLine]]] = defaultdict(lambda: defaultdict(list))
    for paid in lines:
        line = paid.line
        if line.period_end > line.period_start:
            period = (line.period_start, line.period_end)
            by_item[paid.subscription, line.subscription_item][period].append(paid)
    found = []
    for periods in by_item.values():
        ordered = sorted(periods)
        for n, (begins, ends) in enumerate(ordered):
            if n + 1 < len(ordered):
                ends = min(ends, ordered[n + 1][0])
            group = periods[ordered[n]]
            first = min((paid.paid_at, paid.invoice) for paid in group)[1]
            found += [_Service(paid, begins, ends) for paid in group if paid.invoice == first]
    return sorted(found, key=lambda s: (s.begins, s.paid.invoice, s.paid.line.id))


def _lot(
    customer: CustomerId,
    subscription: SubscriptionId,
    services: Iterable[_Service],
    outage: Outage,
    earlier: Iterable[Outage],
) -> Lot | None:
    """What one outage gives one subscription; None where that is less than one credit.

    A grant is made once: what is paid for the same time after the grant adds nothing, whenever we learn of it.
    """
    parts: list[tuple[Seconds, str, Fraction]] = []
    for service in services:
        paid, line = service.paid, service.paid.line
        if not _meets(outage, line.price):
            continue
        until = service.ends if paid.ended_at is None else min(service.ends, paid.ended_at)
        met: Interval = (max(outage.begins, service.begins), min(outage.ends, until))
        if met[0] >= met[1]:
            continue
        met_s = _length_s(met, ((o.begins, o.ends) for o in earlier if _meets(o, line.price)))
        if met_s > 0:
            period_s = line.period_end - line.period_start
            said = f"{met_s} s of {period_s} s of {paid.credits} credits ({line.id} of {paid.invoice})"
            parts.append((max(outage.declared_at, paid.paid_at), said, Fraction(paid.credits * met_s, period_s)))
    for granted_at in sorted({part[0] for part in parts}):
        counted = [part for part in parts if part[0] <= granted_at]
        if credits_ := int(sum(part[2] for part in counted)):
            break
    else:
        return None
    span = f"{at(outage.begins):%Y-%m-%dT%H:%M:%SZ} to {at(outage.ends):%Y-%m-%dT%H:%M:%SZ}"
    return Lot(
        id=f"service:{outage.id}:{subscription}",
        customer=customer,
        kind=LotKind.SERVICE,
        clause=CLAUSE,
        credits=credits_,
        granted_at=granted_at,
        cause=f"outage {outage.id} from {span} met {subscription}: {'; '.join(part[1] for part in counted)}",
    )


def _meets(outage: Outage, price: PriceId | None) -> bool:
    return not outage.plans or price in outage.plans


def _length_s(whole: Interval, covered: Iterable[Interval]) -> Seconds:
    """Seconds of an interval that no covered one holds."""
    reached, end = whole
    length_s = 0
    for begins, ends in sorted(covered):
        if begins >= end:
            break
        length_s += max(0, begins - reached)
        reached = max(reached, ends)
    return length_s + max(0, end - reached)
