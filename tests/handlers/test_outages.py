"""Clause 4.2 as a table: what a declared outage gives. A month of 30 days and 500 credits: 1 credit for 5184 seconds."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.account import Outage
from handlers.customer import CustomerId, InvoiceId, Line, PriceId, SubscriptionId, SubscriptionItemId
from handlers.outages import PaidLine, service_lots
from tests.handlers.history import DAY, HOUR, MONTH, T0, Sold
from tests.handlers.test_credits import Story, day

CREDIT_S = MONTH // 500

Row = tuple[str, tuple[str, ...], Callable[[Story], None]]
ROWS: list[Row] = []


def row(sentence: str, *lots: str) -> Callable[[Callable[[Story], None]], Callable[[Story], None]]:
    """One row: lots as `out_1 sub_0001 16 from day 5`."""

    def told(tell: Callable[[Story], None]) -> Callable[[Story], None]:
        ROWS.append((sentence, lots, tell))
        return tell

    return told


@row("A day out of thirty gives a thirtieth of 500, rounded down.", "out_1 sub_0001 16 from day 6")
def _(s: Story) -> None:
    s.subscribe()
    s.outage(5 * DAY, 6 * DAY, declared=6 * DAY)


@row("Less than one credit gives nothing.")
def _(s: Story) -> None:
    s.subscribe()
    s.outage(5 * DAY, 5 * DAY + CREDIT_S - 1)


@row("Exactly one credit's time gives one.", "out_1 sub_0001 1 from day 6")
def _(s: Story) -> None:
    s.subscribe()
    s.outage(5 * DAY, 5 * DAY + CREDIT_S, declared=6 * DAY)


@row("Across a renewal both periods count, rounded down once: 8.33 and 8.33 give 16.", "out_1 sub_0001 16 from day 31")
def _(s: Story) -> None:
    s.renew(s.subscribe())
    s.outage(29 * DAY + 12 * HOUR, 30 * DAY + 12 * HOUR, declared=31 * DAY)


@row(
    "Two lines of one subscription add up before they are rounded: 16.67 and 83.33 give 100.",
    "out_1 sub_0001 100 from day 6",
)
def _(s: Story) -> None:
    s.subscribe(0, Sold(), Sold("price_pro", 5900))
    s.outage(5 * DAY, 6 * DAY, declared=6 * DAY)


@row("Only the plans that were out.", "out_1 sub_0001 83 from day 6")
def _(s: Story) -> None:
    s.subscribe(0, Sold(), Sold("price_pro", 5900))
    s.outage(5 * DAY, 6 * DAY, "price_pro", declared=6 * DAY)


@row("Each subscription by itself.", "out_1 sub_0001 16 from day 6", "out_1 sub_0002 83 from day 6")
def _(s: Story) -> None:
    s.subscribe()
    s.subscribe(0, Sold("price_pro", 5900))
    s.outage(5 * DAY, 6 * DAY, declared=6 * DAY)


@row("Before the service began, nothing; from then on, the rest.", "out_1 sub_0001 16 from day 7")
def _(s: Story) -> None:
    s.subscribe(5 * DAY)
    s.outage(3 * DAY, 6 * DAY, declared=7 * DAY)


@row("The end of the subscription ends what is given.", "out_1 sub_0001 8 from day 8")
def _(s: Story) -> None:
    s.end(s.subscribe(), 5 * DAY + 12 * HOUR)
    s.outage(5 * DAY, 7 * DAY, declared=8 * DAY)


@row("Ended before: nothing.")
def _(s: Story) -> None:
    s.end(s.subscribe(), 4 * DAY)
    s.outage(5 * DAY, 7 * DAY)


@row("A trial has no included credits, so it gets none.")
def _(s: Story) -> None:
    s.trial(14)
    s.outage(5 * DAY, 7 * DAY)


@row("An unpaid period gives nothing.")
def _(s: Story) -> None:
    s.change(s.subscribe().first.invoice, status="open")
    s.outage(5 * DAY, 7 * DAY)


@row("Paid late, after the outage was declared: given from then on.", "out_1 sub_0001 16 from day 9")
def _(s: Story) -> None:
    s.subscribe(paid_when=9 * DAY)
    s.outage(5 * DAY, 6 * DAY)


@row("Of a period paid after the grant nothing is added: a grant is made once.", "out_1 sub_0001 8 from day 31")
def _(s: Story) -> None:
    s.renew(s.subscribe(), paid_when=34 * DAY)
    s.outage(29 * DAY + 12 * HOUR, 30 * DAY + 12 * HOUR, declared=31 * DAY)


@row("Too little for one credit is no grant yet: a period paid later completes it.", "out_1 sub_0001 8 from day 34")
def _(s: Story) -> None:
    s.renew(s.subscribe(), paid_when=34 * DAY)
    s.outage(30 * DAY - 60, 30 * DAY + 12 * HOUR, declared=31 * DAY)


@row("The same hours declared twice, under another name, give once.", "out_1 sub_0001 16 from day 7")
def _(s: Story) -> None:
    s.subscribe()
    s.outage(5 * DAY, 6 * DAY, declared=7 * DAY)
    s.outage(5 * DAY, 6 * DAY, declared=8 * DAY)


@row(
    "A longer one declared later gives the difference.", "out_1 sub_0001 16 from day 7", "out_2 sub_0001 33 from day 8"
)
def _(s: Story) -> None:
    s.subscribe()
    s.outage(5 * DAY, 6 * DAY, declared=7 * DAY)
    s.outage(4 * DAY, 7 * DAY, declared=8 * DAY)


@row("What was declared first gives, whatever it is called.", "out_2 sub_0001 16 from day 7")
def _(s: Story) -> None:
    s.subscribe()
    s.outage(5 * DAY, 6 * DAY, declared=8 * DAY)
    s.outage(5 * DAY, 6 * DAY, declared=7 * DAY)


@row("An outage of another plan takes nothing away.", "out_1 sub_0001 83 from day 7", "out_2 sub_0001 16 from day 8")
def _(s: Story) -> None:
    s.subscribe(0, Sold(), Sold("price_pro", 5900))
    s.outage(5 * DAY, 6 * DAY, "price_pro", declared=7 * DAY)
    s.outage(5 * DAY, 6 * DAY, declared=8 * DAY)


@row(
    "One period invoiced twice by mistake counts once, before and after the money went back.",
    "out_1 sub_0001 16 from day 36",
)
def _(s: Story) -> None:
    sub = s.subscribe()
    s.renew(sub)
    s.bill(sub, 30 * DAY, Sold(), reason="subscription_cycle", paid_when=30 * DAY + HOUR)
    s.outage(35 * DAY, 36 * DAY, declared=36 * DAY)


@row("A duplicate subscription whose money went back gets nothing.", "out_1 sub_0001 16 from day 6")
def _(s: Story) -> None:
    s.subscribe()
    s.give_back(s.subscribe(4).first.charge, DAY)
    s.outage(5 * DAY, 6 * DAY, declared=6 * DAY)


@row("A new period that begins before the last is over takes its place.", "out_1 sub_0001 16 from day 13")
def _(s: Story) -> None:
    sub = s.subscribe()
    s.bill(sub, 10 * DAY, Sold(), reason="subscription_update", paid_when=10 * DAY)
    s.outage(12 * DAY, 13 * DAY, declared=13 * DAY)


@pytest.mark.parametrize(("sentence", "lots", "tell"), ROWS, ids=[r[0] for r in ROWS])
def test_an_outage_gives_its_part(sentence: str, lots: tuple[str, ...], tell: Callable[[Story], None]) -> None:
    """Every row holds; each lot says which line it comes from, and the order of declarations is by time, not by telling."""
    story = Story()
    tell(story)
    found = story.credits().lots
    services = {id_: lot for id_, lot in found.items() if lot.clause == "4.2"}
    said = [f"{' '.join(i.split(':')[1:])} {lot.credits} from {day(lot.granted_at)}" for i, lot in services.items()]
    assert sorted(said) == sorted(lots)
    assert all(lot.closing is None and lot.ends_at is None and "il_in_" in lot.cause for lot in services.values())
    story.outages.reverse()
    story.tellings.reverse()
    assert story.credits().lots == found


def test_the_lines_of_a_tiered_price_all_count() -> None:
    """Tiers are several lines for one item and one period on one invoice: no mistake, unlike two invoices."""
    lines = [_line(0, 30, credits_=300, line=1), _line(0, 30, credits_=200, line=2)]
    lots = service_lots(CustomerId("cus_A"), lines, [_outage(1, 5, 6)])
    assert [lot.credits for lot in lots] == [16]


def _line(
    begins: int, ends: int, *, credits_: int = 500, line: int = 1, price: str = "p", item: str = "si"
) -> PaidLine:
    return PaidLine(
        invoice=InvoiceId(f"in_{item}_{begins}"),
        line=Line(
            id=f"il_{line}",
            amount_minor=2900,
            currency="usd",
            period_start=T0 + begins * DAY,
            period_end=T0 + ends * DAY,
            price=PriceId(price),
            subscription_item=SubscriptionItemId(item),
        ),
        subscription=SubscriptionId("sub_1"),
        credits=credits_,
        paid_at=T0 + begins * DAY,
        ended_at=None,
    )


def _outage(n: int, begins: int, ends: int, plans: tuple[str, ...] = ()) -> Outage:
    return Outage(
        id=f"out_{n}",
        begins=T0 + begins * DAY,
        ends=T0 + ends * DAY,
        plans=tuple(map(PriceId, plans)),
        declared_at=T0 + 100 * DAY + n,
        by="ada",
        reason="r",
    )


_spans = st.tuples(st.integers(0, 60), st.integers(1, 20))


@given(
    st.lists(st.tuples(_spans, st.sampled_from([(), ("p",), ("q",), ("p", "q")])), max_size=5),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from("pq"), st.integers(0, 900)), max_size=5),
)
def test_all_outages_together_give_at_most_the_union_of_their_time(
    outages: list[tuple[tuple[int, int], tuple[str, ...]]], lines: list[tuple[int, str, int]]
) -> None:
    """However outages overlap, each day of a line is given once: the sum is within one credit per lot of the exact part."""
    declared = [_outage(n, begin, begin + length, plans) for n, ((begin, length), plans) in enumerate(outages)]
    paid = list({(m, p): _line(30 * m, 30 * m + 30, credits_=c, price=p, item=p) for m, p, c in lines}.values())
    lots = service_lots(CustomerId("cus_A"), paid, declared)
    exact = Fraction(0)
    for line in paid:
        first = (line.line.period_start - T0) // DAY
        out = {
            d
            for (begin, length), plans in outages
            for d in range(begin, begin + length)
            if (not plans or line.line.price in plans) and first <= d < first + 30
        }
        exact += Fraction(line.credits * len(out), 30)
    assert exact - len(declared) < sum(lot.credits for lot in lots) + (0 if declared else 1)
    assert sum(lot.credits for lot in lots) <= exact
