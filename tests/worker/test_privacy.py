"""Payloads go after the retention, and one customer's personal data on request; books, verdicts and the chain stay what they were."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from handlers.cases import read_request
from handlers.events import parse_event
from handlers.projection import digest
from sandbox.webhooks import snapshot_body
from tests.worker.merchant import POLICY, Merchant, Obj, merchant
from worker import audit, cases, inbox, privacy
from worker.db import Pool, connection, queries, transaction
from worker.privacy import Erasure
from worker.reading import NotFound
from worker.review import ActRefused
from worker.settings import Settings

REALMS = ["test"]
NAME, MAIL = "Ada Lovelace", "0@example.com"


@pytest.fixture
async def m(settings: Settings, pool: Pool) -> AsyncIterator[Merchant]:
    async with merchant(settings, pool) as made:
        yield made


async def over(m: Merchant) -> str:
    """A customer with a duplicate that was refunded, whose subscriptions have ended. Returns the id."""
    kept, doubled = m.double_click("u_ada")
    await m.to_the_end()
    end(m, kept, doubled)
    await m.to_the_end()
    assert [r["status"] for r in m.refunds] == ["succeeded"]
    return str(kept["customer"])


def end(m: Merchant, *subs: Obj) -> None:
    for sub in subs:
        if m.books.by_id[sub["id"]]["status"] != "canceled":
            m.books.cancel(m.books.by_id[sub["id"]])


async def erase(m: Merchant, customer: str, **more: Any) -> Erasure:
    async with transaction(m.pool) as conn:
        found = await privacy.erase(conn, m.court, REALMS, customer, by="ann", reason="asked by the customer", **more)
    await privacy.erase_payloads(m.pool, found)
    return found


async def books(pool: Pool) -> list[Any]:
    """What an erasure must not change."""
    decisions = await pool.fetch(
        """select distinct on (subject) subject, verdict, clause, rule, fingerprint from decisions order by subject, revision desc"""
    )
    actions = await pool.fetch("select id, kind, subject, state, amount_minor, stripe_id from actions order by id")
    entries = await pool.fetch("select id, lot, kind, amount from entries order by id")
    return [decisions, actions, entries]


async def everything(pool: Pool) -> bytes:
    """All that is stored in any table, payloads unpacked, as one text to look for personal data in."""
    names = await pool.fetch("select tablename from pg_tables where schemaname = 'public' order by tablename")
    parts = []
    for row in names:
        for record in await pool.fetch(f"select * from {row['tablename']}"):
            for value in record.values():
                raw = value if isinstance(value, bytes) else str(value).encode()
                parts.append(inbox.unpack(raw) if row["tablename"] == "inbox" else raw)
    return b"\n".join(parts)


async def chained(pool: Pool) -> None:
    """The chain is whole, and holds everything."""
    while await audit.append_pending(pool):
        pass
    async with connection(pool) as conn, conn.transaction(isolation="repeatable_read"):
        found = await audit.verify(conn)
    assert found["ok"], found["problems"]


async def test_erasing_leaves_nothing_personal_and_keeps_books_and_chain(m: Merchant) -> None:
    customer = await over(m)
    request = {"email": MAIL, "date": "2026-01-31", "description": f"{NAME} was charged twice", "customer": customer}
    async with transaction(m.pool) as conn:
        case = await cases.open_case(conn, POLICY, "test", read_request(request), by="app")
        await cases.note(conn, REALMS, case["id"], by="ann", text=f"{NAME} phoned")
        await cases.close(conn, REALMS, case["id"], by="ann", text="done on the phone")
    before, hashed = await books(m.pool), await m.pool.fetch("select key from links")
    assert hashed
    found = await erase(m, customer)
    assert found.done
    assert found.payloads > 5
    assert await books(m.pool) == before
    left = await everything(m.pool)
    for personal in (NAME.encode(), MAIL.encode(), b"card0", *(row["key"].encode() for row in hashed)):
        assert personal not in left, personal
    # the merchant's own id of a person stays where a decision rests on it, and nowhere else
    assert not await m.pool.fetchval("select count(*) from objects where convert_from(body, 'UTF8') like '%u_ada%'")
    assert await m.pool.fetchval("select count(*) from inbox where payload = '' and state = 'done'") == found.payloads
    await chained(m.pool)


async def test_what_stripe_tells_later_is_kept_without_anything_personal_and_is_no_drift(m: Merchant) -> None:
    customer = await over(m)
    await erase(m, customer)
    before = await books(m.pool)
    known = m.books.by_id[customer]
    m.books.change(known, "customer.updated", metadata={"user_id": "u_ada"}, email="again@example.com")
    told = m.news()
    await m.hear(told)
    await m.pool.execute("update inbox set payload = ''")
    assert b"again@example.com" not in await everything(m.pool)
    assert await m.pool.fetchval("select count(*) from links where key like 'email:%'") == 1, (
        "the pseudonym's, not the mail's"
    )
    assert await books(m.pool) == before
    fact = parse_event(snapshot_body(told[-1])).fact
    assert fact is not None
    assert await m.pool.fetchval("select digest from objects where id = $1", customer) == digest(fact)


async def test_an_erasure_that_commits_while_a_telling_waits_for_the_lock_is_seen_by_it(m: Merchant) -> None:
    customer = await over(m)
    m.books.change(m.books.by_id[customer], "customer.updated", email="late@example.com")
    told = m.news()
    async with transaction(m.pool) as conn:
        await privacy.erase(conn, m.court, REALMS, customer, by="ann", reason="asked")
        hearing = asyncio.create_task(m.hear(told))
        await asyncio.sleep(0.3)
        assert not hearing.done()
    await hearing
    assert (
        await m.pool.fetchval(
            "select count(*) from objects where convert_from(body, 'UTF8') like '%erased:%' and id = $1", customer
        )
        == 1
    )


async def test_nothing_is_erased_while_something_is_not_over_or_rests_on_another_customer(m: Merchant) -> None:
    kept, _ = m.double_click()
    await m.hear()
    with pytest.raises(ActRefused, match="may still renew"):
        await erase(m, kept["customer"])
    with pytest.raises(NotFound):
        await erase(m, "cus_nobody")
    assert await m.pool.fetchval("select count(*) from erasures") == 0


async def test_a_person_with_two_customers_is_erased_whole_or_not_at_all(m: Merchant) -> None:
    first, second = m.customer(user_id="u9"), m.customer(user_id="u9")
    subs = [m.buy(one, "u9") for one in (first, second)]
    await m.to_the_end()
    end(m, *subs)
    await m.to_the_end()
    with pytest.raises(ActRefused, match=second["id"]):
        await erase(m, first["id"])
    before = await books(m.pool)
    found = await erase(m, first["id"], linked=True)
    assert found.customers == sorted([first["id"], second["id"]])
    async with transaction(m.pool) as conn:
        kin = await conn.fetch(queries.kin.sql, [first["id"]], "test")
    assert {row["customer"] for row in kin} == set(found.customers), "still one person, under a pseudonym"
    assert await books(m.pool) == before


# retention ---------------------------------------------------------------------------------------------------------------


async def test_settled_payloads_older_than_the_retention_go_and_unsettled_ones_stay_until_they_are_settled(
    m: Merchant,
) -> None:
    await over(m)
    await m.pool.execute("update inbox set received_at = now() - interval '91 days'")
    ids = [row["event_id"] for row in await m.pool.fetch("select event_id from inbox order by event_id")]
    dead, young = ids[:2]
    await m.pool.execute("update inbox set state = 'dead' where event_id = $1", dead)
    await m.pool.execute("update inbox set received_at = now() - interval '89 days' where event_id = $1", young)
    facts = await m.pool.fetch("select id, body from objects order by id")
    assert await privacy.prune(m.pool, 90) == len(ids) - 2
    left = {row["event_id"] for row in await m.pool.fetch("select event_id from inbox where payload <> ''")}
    assert left == {dead, young}
    assert await m.pool.fetch("select id, body from objects order by id") == facts
    await m.pool.execute("update inbox set state = 'done' where event_id = $1", dead)
    assert await privacy.prune(m.pool, 90) == 1
    assert await privacy.prune(m.pool, 90) == 0


async def test_pruning_goes_on_in_slices_whatever_their_size(m: Merchant, monkeypatch: pytest.MonkeyPatch) -> None:
    await over(m)
    await m.pool.execute(
        "update inbox set received_at = now() - interval '200 days' - (random() * 1000)::int * interval '1 hour'"
    )
    monkeypatch.setattr(privacy, "SLICE", 3)
    everything_ = await m.pool.fetchval("select count(*) from inbox")
    pruned = 0
    while more := await privacy.prune(m.pool, 90):
        pruned += more
    assert pruned == everything_


async def test_an_event_without_its_payload_is_never_worked_on_again(m: Merchant) -> None:
    await over(m)
    await m.pool.execute("update inbox set payload = ''")
    async with transaction(m.pool) as conn:
        ids = [row["event_id"] for row in await conn.fetch("select event_id from inbox limit 3")]
        assert [row async for row in queries.replay_events(conn, ids=ids)] == []
