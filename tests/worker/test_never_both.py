"""What a person's yes cannot do: refund beside an open chargeback, or for anything but a duplicate; and what the queue says of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.handlers.history import DAY, MONTH, POLICY, T0, History
from tests.worker.books import REALMS, tell
from tests.worker.merchant import Merchant, merchant
from worker import review
from worker.db import Pool, connection, transaction
from worker.reading import Document
from worker.review import ActRefused
from worker.settings import Settings


@pytest.fixture
async def by_hand(settings: Settings, pool: Pool) -> AsyncIterator[Merchant]:
    """A merchant whose refunds wait for a person."""
    async with merchant(settings, pool, timeout_s=0.5, refunds="review") as made:
        yield made


async def approve(pool: Pool, id_: str, **more: Any) -> Document:
    async with transaction(pool) as conn:
        return await review.approve(conn, POLICY, REALMS, id_, by="Ann", **more)


async def waiting(pool: Pool) -> dict[str, Document]:
    async with connection(pool) as conn:
        return {item["subject"]: item for item in await review.waiting(conn, REALMS, POLICY)}


# no clause gives it back -------------------------------------------------------------------------------------------------


def after_the_end(history: History) -> str:
    """1.2: paid for a period after the end."""
    sub = history.subscribe()
    history.change(sub.id, when=MONTH, status="canceled", ended_at=T0 + MONTH, canceled_at=T0 + DAY)
    return history.renew(sub).invoice


def lost(history: History) -> str:
    """7: a chargeback was lost, and a person decides about the hold."""
    return history.dispute(history.subscribe().charge, "lost")


def refunded_in_doubt(history: History) -> str:
    """4.3 about a refund by hand: what it was of may have been a duplicate, and nothing more goes back for that."""
    history.subscribe()
    history.subscribe(3600)
    return history.refund("ch_0002", 2 * 3600, 2900)


@pytest.mark.parametrize("story", [after_the_end, lost, refunded_in_doubt])
@pytest.mark.parametrize("amount", [None, 100])
async def test_a_review_that_only_names_a_payment_gives_nothing_back(
    pool: Pool, story: Any, amount: int | None
) -> None:
    history = History()
    history.customer()
    subject = story(history)
    await tell(pool, history)
    item = (await waiting(pool))[subject]
    assert item["approve"].startswith("nothing to approve: no clause gives money back for it")
    with pytest.raises(ActRefused, match="no clause gives money back for it"):
        await approve(pool, subject, **({} if amount is None else {"amount_minor": amount}))
    assert await pool.fetchval("select count(*) from actions where decision_subject = $1", subject) == 0
    async with transaction(pool) as conn:
        await review.reject(conn, REALMS, subject, by="Ann", note="told the customer")
    assert subject not in await waiting(pool)


# refund and chargeback never both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", ["original", "later"])
async def test_a_yes_does_not_send_a_refund_while_a_chargeback_on_either_copy_is_open(
    by_hand: Merchant, copy: str
) -> None:
    first, second = by_hand.double_click()
    dispute = by_hand.books.open_dispute(by_hand.charge_of(first if copy == "original" else second))
    await by_hand.to_the_end()
    charge = by_hand.charge_of(second)["id"]
    await approve(by_hand.pool, charge)
    await by_hand.to_the_end()
    row = await by_hand.refund_row()
    assert (row["state"], by_hand.refunds, by_hand.calls("/refunds")) == ("review", [], [])
    assert f"the chargeback {dispute['id']} is open: refund and chargeback never both" in row["error"]
    assert by_hand.books.by_id[second["id"]]["status"] == "active", "nothing is ended without its refund"
    by_hand.books.set_dispute(dispute, "won")
    await by_hand.to_the_end()
    await approve(by_hand.pool, charge)
    await by_hand.to_the_end()
    assert [(r["amount"], r["charge"]) for r in by_hand.refunds] == [(2900, charge)]


async def test_a_yes_to_a_copy_under_inquiry_is_carried_out_and_ends_it(by_hand: Merchant) -> None:
    _, second = by_hand.double_click()
    by_hand.books.open_dispute(by_hand.charge_of(second), inquiry=True)
    await by_hand.to_the_end()
    await approve(by_hand.pool, by_hand.charge_of(second)["id"])
    await by_hand.to_the_end()
    assert len(by_hand.refunds) == 1
    assert await by_hand.pool.fetchval("select standing from accounts") == "good"


@pytest.mark.parametrize("end", ["lost", "won"])
async def test_a_refund_that_a_chargeback_stopped_is_never_called_owed_without_that_chargeback(
    settings: Settings, pool: Pool, end: str
) -> None:
    """A pending refund fails because of the dispute; if that is lost, the money went back, and a second time would be wrong."""
    async with merchant(settings, pool) as m:
        m.books.low_balance = True
        _, second = m.double_click()
        await m.to_the_end()
        dispute = m.books.open_dispute(m.charge_of(second))
        await m.to_the_end()
        m.books.set_dispute(dispute, end)
        await m.to_the_end()
        item = (await waiting(pool))[m.charge_of(second)["id"]]
        (problem,) = item["problems"]
        assert problem.endswith("owed again, by another way, unless a dispute gives it back")
        assert item["approve"].startswith("nothing to approve: what was carried out is not repeated")
        assert ("nothing is owed for it" in await m.reason(dispute["id"])) == (end == "lost")
        assert [r["status"] for r in m.refunds] == ["failed"]
