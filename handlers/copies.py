"""Two paid invoices beside each other: which lines of the later repeat the earlier, what of it goes back, and what is in doubt (4.3, rules 2 and 3)."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import msgspec

from handlers.court import Court, contested, when
from handlers.customer import CustomerId, Invoice, Line, at
from handlers.decisions import ActionKind, Evidence, Money, Prepared
from handlers.payments import Contest, Payment, closes, overlap_s, service_lines

Key = Callable[[Line], str | None]
"""What makes two lines the same thing: their price, their product, or their subscription item."""


class Purchase(msgspec.Struct, frozen=True):
    """One paid invoice with service lines, under its earliest payment that still stands."""

    payment: Payment
    invoice: Invoice
    lines: tuple[Line, ...]
    shared: bool
    """More than one standing payment pays this invoice."""


class Repeat(msgspec.Struct, frozen=True):
    """A later purchase with the lines of it that repeat the purchase `of`, and what is unequal between the two."""

    purchase: Purchase
    of: Purchase
    lines: tuple[Line, ...]
    unequal: tuple[str, ...]

    @property
    def net_minor(self) -> int:
        """What the repeated lines cost: amounts less discounts plus exclusive taxes."""
        return sum(line.net_minor for line in self.lines)

    @property
    def refundable_minor(self) -> int:
        """The repeated lines, less what went back already, at most what is left on the charge (rules 2 and 3)."""
        payment = self.purchase.payment
        return max(min(self.net_minor - payment.refunded_minor, payment.left_minor), 0)

    @property
    def others(self) -> bool:
        """Whether the invoice carries something besides the repeated lines."""
        return self.purchase.invoice.total_minor != self.net_minor


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """A later purchase that covers the service period of an earlier one, and all that is said about the two."""

    rule: str
    how: str
    repeats: tuple[Repeat, ...]
    """The copy that is judged; found late, the further copies that stand with it (reading 21)."""
    doubts: tuple[str, ...]
    kin: bool
    """Surely the same thing for the same person, so the original of this copy is the original of its group."""
    unlike: str = ""
    """Why they are no copies after all."""
    ending: Prepared | None = None
    """The cancellation of the later subscription, so that it never renews."""
    evidence: tuple[Evidence, ...] = ()

    @property
    def original(self) -> Payment:
        return self.repeats[0].of.payment

    @property
    def duplicate(self) -> Payment:
        return self.repeats[0].purchase.payment


def purchases(court: Court) -> list[Purchase]:
    """Every paid invoice that buys a service period, earliest first. What goes back already buys nothing."""
    found = []
    for invoice_id, payments in court.by_invoice.items():
        invoice = court.file.invoices.get(invoice_id)
        if invoice is None:
            court.wanted.add(("invoice", invoice_id))
            continue
        usable = [p for p in payments if not p.acted and not court.goes_back(p)]
        lines = service_lines(court.file, invoice)
        if lines and usable:
            standing = [p for p in usable if p.stands]
            chosen = (standing or usable)[0]
            found.append(Purchase(chosen, invoice, tuple(lines), len(standing) > 1))
    return sorted(found, key=lambda purchase: (purchase.payment.order, purchase.invoice.id))


def overlapping(
    ours: Iterable[Purchase], theirs: Iterable[Purchase], key: Key
) -> Iterator[tuple[Purchase, Line, Purchase, Line]]:
    """Every two lines, one of ours and one of theirs, that buy the same thing for overlapping service periods."""
    shelves: dict[str, list[tuple[Line, Purchase]]] = defaultdict(list)
    for purchase in theirs:
        for line in purchase.lines:
            if thing := key(line):
                shelves[thing].append((line, purchase))
    ordered = {}
    for thing, rows in shelves.items():
        rows.sort(key=lambda row: row[0].period_start)
        longest_s = max(line.period_end - line.period_start for line, _ in rows)
        ordered[thing] = (rows, [line.period_start for line, _ in rows], longest_s)
    for purchase in ours:
        for line in purchase.lines:
            thing = key(line)
            if thing is None or thing not in ordered:
                continue
            rows, starts, longest_s = ordered[thing]
            for other, owner in rows[bisect_left(starts, line.period_start - longest_s) :]:
                if other.period_start >= line.period_end:
                    break
                if overlap_s(line, other):
                    yield purchase, line, owner, other


def repeat_of(original: Purchase, duplicate: Purchase, key: Key, *, identical: bool = False) -> Repeat:
    """The duplicate's lines that repeat the original's, and what is unequal between them (readings 2, 25 and 27).

    Lines of one thing are compared as a group: a tiered price has several. `identical`: the periods must be equal.
    """
    theirs, ours = _grouped(original.lines, key), _grouped(duplicate.lines, key)
    repeated: list[Line] = []
    unequal: set[str] = set()
    for thing, lines in ours.items():
        twins = theirs.get(thing, [])
        shared = [line for line in lines if any(_shares(line, twin, identical) for twin in twins)]
        if len(shared) < len(lines):
            unequal.add("they do not buy the same items for the same time")
        if shared:
            unequal.update(_differences(twins, shared))
        repeated += shared
    if theirs.keys() - ours.keys():
        unequal.add("they do not buy the same items for the same time")
    return Repeat(duplicate, original, tuple(repeated), tuple(sorted(unequal)))


def _grouped(lines: Iterable[Line], key: Key) -> dict[str | None, list[Line]]:
    found: dict[str | None, list[Line]] = defaultdict(list)
    for line in lines:
        found[key(line)].append(line)
    return found


def _shares(line: Line, twin: Line, identical: bool) -> bool:
    if identical and (line.period_start, line.period_end) != (twin.period_start, twin.period_end):
        return False
    return overlap_s(line, twin) > 0


def _differences(first: list[Line], second: list[Line]) -> Iterator[str]:
    quantities = [sorted(line.quantity or 1 for line in lines) for lines in (first, second)]
    nets = [sorted(line.net_minor for line in lines) for lines in (first, second)]
    if {line.currency for line in first} != {line.currency for line in second}:
        yield "the same thing was paid in two currencies"
    elif {line.price for line in first} != {line.price for line in second}:
        yield "the prices differ"
    elif quantities[0] != quantities[1]:
        yield f"the quantities differ ({sum(quantities[0])} and {sum(quantities[1])})"
    elif nets[0] != nets[1]:
        amounts = [Money(sum(net), second[0].currency) for net in nets]
        yield f"the amounts differ ({amounts[0]} and {amounts[1]})"


def settle(court: Court, copy: Copy) -> None:
    """From a copy to its decision: what is left to give back, and everything that makes it a person's matter."""
    first = copy.repeats[0]
    original, duplicate = copy.original, copy.duplicate
    prepared = [copy.ending] if copy.ending else []
    if copy.ending and (copy.ending.kind, copy.ending.subject) in court.acted:
        prepared = []
    doubts = [*copy.doubts, *first.unequal, *contested(original, duplicate)]
    unlike = copy.unlike
    if not unlike and not duplicate.stands:
        # reading 9: given back by hand; reading 8: taken back by the bank. What may remain is a subscription left running
        if prepared and copy.kin and duplicate.contest is not Contest.MONEY_BACK:
            doubts.insert(0, f"the money of {duplicate.id} went back already, but its subscription was left running")
        else:
            unlike = "that payment's money went back already"
    doubts += _arithmetic(court, first)
    line = first.lines[0] if first.lines else first.purchase.lines[0]
    period = f"{at(line.period_start):%Y-%m-%d} to {at(line.period_end):%Y-%m-%d}"
    decision = court.rule(
        copy.rule,
        original,
        duplicate,
        f"{duplicate.id} pays for a time that {original.id} paid for: {copy.how} ({line.price or line.product}, {period}).",
        doubts=doubts,
        unlike=unlike,
        amount_minor=first.refundable_minor if duplicate.stands else 0,
        evidence=[
            Evidence("invoice", first.of.invoice.id, first.purchase.invoice.id),
            Evidence("service period", _period(first.of.lines), _period(first.lines or first.purchase.lines)),
            *copy.evidence,
        ],
        prepared=[*_further_refunds(court, copy), *prepared],
    )
    if decision.prepared:
        court.listed |= {repeat.purchase.payment.id for repeat in copy.repeats[1:]}


def _arithmetic(court: Court, repeat: Repeat) -> list[str]:
    """What keeps the repeated lines from being proved to the cent."""
    first, second, found = repeat.of, repeat.purchase, []
    if first.shared or second.shared:
        found.append("one of the invoices was paid by more than one payment")
    if any(payment.acted for payment in court.by_invoice[second.invoice.id]):
        found.append(f"a refund was begun that keeps {second.payment.id} as its original")
    if second.payment.stands and second.payment.refunded_minor and repeat.others:
        found.append("a part was refunded by hand, and the invoice carries other lines too")
    if second.payment.stands and (open_sum := closes(second.invoice, second.payment)):
        found.append(open_sum)
    if first.invoice.credit_notes_minor:
        found.append(f"a credit note was written for the original's invoice {first.invoice.id}")
    if not first.invoice.lines_complete or first.invoice.status != "paid":
        found.append(f"the original's invoice {first.invoice.id} is not known yet as paid and with all its lines")
    for invoice in (first.invoice, second.invoice):
        if not invoice.lines_complete or invoice.status != "paid":
            court.wanted.add(("invoice", invoice.id))
    return found


def _further_refunds(court: Court, copy: Copy) -> list[Prepared]:
    """Reading 21: the later copies' refunds, prepared for the one review that lists them all; only what is proved."""
    return [
        Prepared(
            kind=ActionKind.REFUND,
            subject=repeat.purchase.payment.id,
            customer=repeat.purchase.payment.charge.customer or CustomerId(repeat.purchase.payment.id),
            amount=Money(repeat.refundable_minor, repeat.purchase.payment.currency),
        )
        for repeat in copy.repeats[1:]
        if repeat.refundable_minor
        and not repeat.unequal
        and not court.decided(repeat.purchase.payment)
        and not contested(None, repeat.purchase.payment)
        and closes(repeat.purchase.invoice, repeat.purchase.payment) is None
    ]


def _period(lines: Iterable[Line]) -> str:
    line = min(lines, key=lambda each: (each.period_start, each.period_end))
    return f"{when(line.period_start)} to {when(line.period_end)}"
