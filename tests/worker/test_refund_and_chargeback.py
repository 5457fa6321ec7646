"""Refund and chargeback never both (7): a dispute that arrives while our refund is planned, sending, pending, sent or failed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from tests.worker.merchant import Merchant, merchant
from tests.worker.rehearsal import SHAPES
from worker.db import Pool
from worker.settings import Settings

Obj = dict[str, Any]


@pytest.fixture(params=SHAPES)
async def m(request: pytest.FixtureRequest, settings: Settings, pool: Pool) -> AsyncIterator[Merchant]:
    async with merchant(settings, pool, api_version=SHAPES[request.param]) as made:
        yield made


async def bought_twice(m: Merchant, card: str = "succeeds") -> Obj:
    """A double click on a card whose refunds behave so; the refund of the second payment is planned. Returns that charge."""
    customer = m.customer()
    m.books.new_method(customer, fingerprint="their card", refund=card)
    m.buy(customer)
    charge = m.charge_of(m.buy(customer))
    await m.hear()
    assert (await m.actions())["refund"] == "planned"
    return charge


async def planned(m: Merchant) -> Obj:
    """Decided, and its turn has not come."""
    return await bought_twice(m)


async def sending_done(m: Merchant) -> Obj:
    """Stripe carried it out, and its answer was lost."""
    charge = await bought_twice(m)
    m.fault({"kind": "reset", "path": "*/refunds", "method": "POST", "times": 1})
    await m.perform()
    assert (await m.actions())["refund"] == "sending"
    return charge


async def sending_undone(m: Merchant) -> Obj:
    """It never reached Stripe, which we cannot know."""
    charge = await bought_twice(m)
    m.fault({"kind": "502_before", "path": "*/refunds", "method": "POST", "times": 1})
    await m.perform()
    assert (await m.actions())["refund"] == "sending"
    return charge


async def pending(m: Merchant) -> Obj:
    """On its way to the bank; the dispute makes it fail."""
    charge = await bought_twice(m, "pending")
    await m.perform(2)
    assert [r["status"] for r in m.refunds] == ["pending"]
    return charge


async def sent(m: Merchant) -> Obj:
    charge = await bought_twice(m)
    await m.perform(2)
    assert [r["status"] for r in m.refunds] == ["succeeded"]
    return charge


async def failed(m: Merchant) -> Obj:
    charge = await sent(m)
    m.books.fail_refund(m.refunds[0])
    await m.hear()
    assert (await m.actions())["refund"] == "review"
    return charge


class End(NamedTuple):
    """What is so about the duplicate at one moment."""

    action: str
    """State of our refund's action."""
    verdict: str
    """Of the decision in force about the duplicate."""
    refunds: list[str]
    """Status of each refund at Stripe."""
    owed: str
    """What the dispute's own decision says about a refund of the charge."""


GIVEN_BACK = "gave back 29.00 USD of this charge"
OPEN_IF_WON = "the duplicate is owed again only if the dispute is won"
OWED = "the duplicate is owed again"
NOT_OWED = "nothing is owed for it"
ENDS: dict[str, tuple[Callable[[Merchant], Awaitable[Obj]], dict[str, End]]] = {
    "planned": (
        planned,
        {
            "open": End("proposed", "review", [], ""),
            "won": End("proposed", "review", [], ""),
            "lost": End("withdrawn", "none", [], ""),
        },
    ),
    "sending, and Stripe had done it": (
        sending_done,
        {
            "open": End("sent", "refund", ["succeeded"], f"{GIVEN_BACK}: the evidence must say so"),
            "won": End("sent", "refund", ["succeeded"], GIVEN_BACK),
            "lost": End("sent", "refund", ["succeeded"], GIVEN_BACK),
        },
    ),
    "sending, and Stripe had not heard of it": (
        sending_undone,
        {
            "open": End("review", "review", [], ""),
            "won": End("review", "review", [], ""),
            "lost": End("review", "none", [], ""),
        },
    ),
    "pending": (
        pending,
        {
            "open": End("review", "refund", ["failed"], OPEN_IF_WON),
            "won": End("review", "refund", ["failed"], OWED),
            "lost": End("review", "refund", ["failed"], NOT_OWED),
        },
    ),
    "sent": (
        sent,
        {
            "open": End("sent", "refund", ["succeeded"], f"{GIVEN_BACK}: the evidence must say so"),
            "won": End("sent", "refund", ["succeeded"], GIVEN_BACK),
            "lost": End("sent", "refund", ["succeeded"], GIVEN_BACK),
        },
    ),
    "failed": (
        failed,
        {
            "open": End("review", "refund", ["failed"], OPEN_IF_WON),
            "won": End("review", "refund", ["failed"], OWED),
            "lost": End("review", "refund", ["failed"], NOT_OWED),
        },
    ),
}


async def stands(m: Merchant, charge: Obj, dispute: Obj, expected: End) -> None:
    found = End(
        action=(await m.actions())["refund"],
        verdict=(await m.verdicts())[charge["id"]],
        refunds=[refund["status"] for refund in m.books.all("refund")],
        owed=expected.owed,
    )
    assert found == expected
    said = await m.reason(dispute["id"])
    assert expected.owed in said
    assert expected.owed or "refund re_" not in said, "there is none to speak of"


@pytest.mark.parametrize("way", [["won"], ["lost"], ["lost", "won"]], ids="-".join)
@pytest.mark.parametrize("state", ENDS)
async def test_a_dispute_meets_our_refund(m: Merchant, state: str, way: list[str]) -> None:
    reach, ends = ENDS[state]
    charge = await reach(m)
    asked = len(m.calls("/refunds"))
    dispute = m.books.open_dispute(charge)
    await m.to_the_end()
    await stands(m, charge, dispute, ends["open"])
    assert await m.pool.fetchval("select standing from accounts") == "flagged"
    for status in way:
        m.books.set_dispute(dispute, status)
        await m.to_the_end()
        await stands(m, charge, dispute, ends[status])
    standing = await m.pool.fetchval("select standing from accounts")
    assert standing == ("flagged" if way[-1] == "lost" else "good")
    assert len(m.calls("/refunds")) == asked, "a refund was asked for after the chargeback"


@pytest.mark.parametrize("state", [planned, sending_undone], ids=lambda reach: reach.__name__)
async def test_a_dispute_that_nobody_told_us_of_stops_the_refund_at_the_last_look(
    m: Merchant, state: Callable[[Merchant], Awaitable[Obj]]
) -> None:
    charge = await state(m)
    dispute = m.books.open_dispute(charge)
    m.lose()
    await m.perform(4)
    assert m.refunds == []
    assert (await m.verdicts())[charge["id"]] == "review"
    assert await m.pool.fetchval("select standing from accounts") == "flagged", dispute["id"]


async def test_an_inquiry_on_a_refunded_copy_closes_and_leaves_no_trace_in_the_standing(m: Merchant) -> None:
    charge = await bought_twice(m)
    m.books.open_dispute(charge, inquiry=True)
    await m.hear()
    assert (await m.verdicts())[charge["id"]] == "review"
    m.books.create_refund(charge)
    await m.to_the_end()
    assert [d["status"] for d in m.books.all("dispute")] == ["warning_closed"]
    assert await m.pool.fetchval("select standing from accounts") == "good"
    assert m.refunds == [], "what a person gave back is not given back again"
