"""Payloads go after the retention, and one customer's personal data on request; books, verdicts and the chain stay what they were."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from handlers.account import ActKind
from handlers.cases import read_request
from handlers.customer import Charge, decode
from handlers.decisions import Decision, Evidence
from handlers.events import parse_event, read_object
from handlers.projection import digest
from handlers.wire import email_hash
from sandbox.webhooks import snapshot_body
from tests.worker.merchant import POLICY, Merchant, Obj, merchant, store
from tests.worker.test_nightly import night
from worker import acts, audit, cases, inbox, privacy, reading, review, story
from worker.acts import Wish
from worker.db import Pool, connection, queries, transaction
from worker.privacy import Erasure
from worker.reading import NotFound
from worker.review import ActRefused
from worker.settings import Settings
from worker.settle import settle

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


async def test_alerts_messages_and_sessions_go_with_the_payloads_of_their_time_and_what_is_open_stays(
    pool: Pool,
) -> None:
    await pool.execute(
        """
        insert into alerts (realm, cause, kind, severity, customer, subject, sentence, resolved_at)
        values ('test', 'over', 'k', 'note', '', '', 's', now()), ('test', 'open', 'k', 'note', '', '', 's', null);
        insert into alert_messages (id, mode, route, severity, title, body, state, created_at)
        select name, 'test', 'r', 'note', 't', 'b', state, now() - age from (values
            ('old', 'sent', interval '91 days'), ('young', 'sent', interval '89 days'), ('waits', 'waiting', interval '91 days'),
            ('of an open one', 'sent', interval '91 days')) as m (name, state, age);
        insert into alert_tellings (realm, cause, raising, step, route, kind, severity, customer, subject, sentence, since, flaps, made_at, message)
        select 'test', cause, 1, step, 'r', 'k', 'note', '', '', 's', now(), 0, now() - interval '91 days', message from (values
            ('over', 'raised', 'old'), ('over', 'resolved', 'young'), ('over', 'again', null), ('open', 'raised', 'of an open one'))
            as t (cause, step, message);
        insert into operators (name, folded, role, created_by) values ('Ann', 'ann', 'read', 't');
        insert into operator_tokens (id, operator, hash, sieve, created_by) values ('t', 'Ann', 'h', 's', 't');
        insert into console_sessions (hash, operator, token, csrf, ends_at)
        values ('over', 'Ann', 't', 'c', now() - interval '1 second'), ('on', 'Ann', 't', 'c', now() + interval '1 hour')
        """
    )
    await privacy.prune(pool, 90)
    ids = await pool.fetch("select id from alert_messages order by id")
    assert [row["id"] for row in ids] == ["of an open one", "waits", "young"]
    told = await pool.fetch("select cause, step from alert_tellings order by cause, step")
    assert [tuple(row) for row in told] == [("open", "raised"), ("over", "again")], "what nobody was told yet stays"
    assert await pool.fetchval("select array_agg(hash) from console_sessions") == [b"on"]


# what hides in corners ---------------------------------------------------------------------------------------------------


async def test_what_operators_wrote_goes_with_the_notes_and_what_they_did_stays(m: Merchant) -> None:
    customer = await over(m)
    decision = await m.pool.fetchval("select id from decisions where verdict = 'refund' order by revision desc limit 1")
    wrote = f"{NAME} phoned"
    async with transaction(m.pool) as conn:
        await review.note(conn, REALMS, decision, by="ann", text=wrote)
        for kind, granted in ((ActKind.GRANT, 5), (ActKind.SUSPEND, 0)):
            wish = Wish(kind=kind, customer=customer, by="ann", reason=wrote, credits=granted)
            await acts.carry_out(conn, REALMS, wish, via="console")
        await settle(conn, m.court, "test", [], wake=[customer])
    before, standing = await books(m.pool), await accounts(m.pool)
    assert standing[0]["standing"] == "suspended"
    await erase(m, customer)
    assert wrote.encode() in await everything(m.pool), "notes stay unless they are asked for"
    await erase(m, customer, notes=True)
    assert wrote.encode() not in await everything(m.pool)
    assert await m.pool.fetchval("select reason from operator_acts where act = 'customers.erase'") != privacy.GONE_TEXT
    now = await accounts(m.pool)
    async with transaction(m.pool) as conn:
        await settle(conn, m.court, "test", [], wake=[customer])
    assert await accounts(m.pool) == now, "judged anew nothing changes"
    assert [dict(row) | {"body": 0} for row in now] == [dict(row) | {"body": 0} for row in standing]
    assert await books(m.pool) == before
    await chained(m.pool)


async def accounts(pool: Pool) -> list[Any]:
    return await pool.fetch("select customer, standing, holds, access_until, body from accounts order by customer")


async def test_dead_and_quarantined_events_lose_their_payload_and_need_nobody_any_more(m: Merchant) -> None:
    customer = await over(m)
    for mail in ("dead@example.com", "odd@example.com"):
        m.books.change(m.books.by_id[customer], "customer.updated", email=mail)
    await store(m.pool, *(snapshot_body(told) for told in m.news()))
    waiting = await m.pool.fetch("select event_id from inbox where state = 'waiting' order by event_id")
    for row, state in zip(waiting, ("dead", "quarantined"), strict=True):
        await m.pool.execute("update inbox set state = $2 where event_id = $1", row["event_id"], state)
    await erase(m, customer)
    left = await everything(m.pool)
    assert b"dead@example.com" not in left
    assert b"odd@example.com" not in left
    found = await m.pool.fetch("select state, error from inbox where state not in ('done')")
    assert [tuple(row) for row in found] == [("ignored", privacy.GONE_EVENT)] * 2


async def test_nothing_is_erased_while_an_event_that_tells_of_it_waits(m: Merchant) -> None:
    customer = await over(m)
    m.books.change(m.books.by_id[customer], "customer.updated", email="late@example.com")
    told = m.news()
    await store(m.pool, *(snapshot_body(one) for one in told))
    with pytest.raises(ActRefused, match=rf"{told[-1]['id']} tells of it and waits"):
        await erase(m, customer)
    await m.drain()
    assert (await erase(m, customer)).done


async def test_a_telling_of_an_erased_customer_leaves_no_payload(m: Merchant) -> None:
    customer = await over(m)
    await erase(m, customer)
    other = m.customer()
    m.books.change(m.books.by_id[customer], "customer.updated", email="again@example.com")
    await m.hear(m.news())
    assert b"again@example.com" not in await everything(m.pool)
    kept = await m.pool.fetch("select payload from inbox where payload <> '' and type = 'customer.created'")
    assert [other["id"].encode() in inbox.unpack(row["payload"]) for row in kept] == [True], "others keep theirs"


async def test_a_night_stages_nothing_personal_of_the_erased_and_the_next_one_nothing_at_all(m: Merchant) -> None:
    customer = await over(m)
    await erase(m, customer)
    m.books.change(m.books.by_id[customer], "customer.updated", metadata={"note": NAME}, email="again@example.com")
    m.lose()
    for repeated in (False, True):
        for report in await night(m.settings, m.pool, m.sandbox):
            assert report.exit != 2
        hashed = email_hash("again@example.com").encode()
        left = await everything(m.pool)
        assert NAME.encode() not in left
        assert hashed not in left
        staged = await m.pool.fetchval("select count(*) from found where id = $1", customer)
        assert not (repeated and staged)
        (fact,) = [read_object(msgspec.json.encode(m.books.by_id[customer]), 0)]
        assert await m.pool.fetchval("select digest from objects where id = $1", customer) == digest(fact)
        await m.pool.execute("update schedule_runs set due_at = due_at - interval '1 day'")


async def test_a_guests_charge_that_turns_out_to_be_an_erased_customers_is_kept_without_anything_personal(
    m: Merchant,
) -> None:
    customer = await over(m)
    sold = next(iter(m.books.all("charge")))
    guest = sold | {"id": "ch_guest", "customer": None, "invoice": None, "payment_intent": None}
    guest["billing_details"] = {"email": "guest@example.com"}
    guest["payment_method_details"] = {"type": "card", "card": {"fingerprint": "cardguest"}}
    await hear_charge(m, "evt_guest", guest)
    assert await m.pool.fetchval("select count(*) from links where customer = 'ch_guest'") == 2
    await erase(m, customer)
    await hear_charge(m, "evt_adopted", guest | {"customer": customer})
    row = await m.pool.fetchrow("select customer, body from objects where id = 'ch_guest'")
    assert row is not None
    fact = decode(row["body"])
    assert isinstance(fact, Charge)
    assert (row["customer"], fact.email_hash, fact.card_fingerprint, fact.metadata) == (customer, None, None, {})
    assert not await m.pool.fetchval("select count(*) from links where customer = 'ch_guest'")


async def hear_charge(m: Merchant, id_: str, charge: Obj) -> None:
    created = int(time.time()) + (id_ == "evt_adopted")
    told = {
        "id": id_,
        "object": "event",
        "type": "charge.updated",
        "api_version": next(iter(m.books.all("event")))["api_version"],
    }
    await store(m.pool, msgspec.json.encode(told | {"created": created, "livemode": False, "data": {"object": charge}}))
    await m.drain()
    assert await m.pool.fetchval("select state from inbox where event_id = $1", id_) == "done"


async def test_an_address_that_an_app_uses_as_a_persons_id_is_in_no_decision(m: Merchant) -> None:
    address = "ada.lovelace@example.com"
    customer = m.books.new_customer(email=MAIL, metadata={"user_id": address})
    subs = [m.buy(customer, address), m.buy(customer, address)]
    await m.to_the_end()
    end(m, *subs)
    await m.to_the_end()
    await erase(m, customer["id"])
    assert address.encode() not in await everything(m.pool)


async def test_an_earlier_releases_evidence_is_shown_without_addresses() -> None:
    evidence = Evidence("person", "ada@example.com", "u_1")
    decision = msgspec.convert(
        {"subject": "ch_1", "customer": "cus_1", "clause": "4.3", "rule": "D4", "verdict": "review", "policy_version": "1", "reason": "r"},
        Decision,
    )  # fmt: skip
    shown = reading.evidence_of(msgspec.structs.replace(decision, evidence=(evidence,)))
    assert shown == [{"fact": "person", "original": "[email]", "duplicate": "u_1"}]


async def test_a_case_of_nobody_with_the_persons_address_goes_too_and_holds_up_while_it_is_open(m: Merchant) -> None:
    customer = await over(m)
    ids = []
    async with transaction(m.pool) as conn:
        for mail in (MAIL.upper(), "other@example.com"):
            request = {"email": mail, "date": "2026-01-31", "description": f"{NAME} of {mail} was charged twice"}
            case = await cases.open_case(conn, POLICY, "test", read_request(request), by="app")
            assert case["customer"] is None
            ids.append(case["id"])
    with pytest.raises(ActRefused, match=f"{ids[0]} is open"):
        await erase(m, customer)
    async with transaction(m.pool) as conn:
        await cases.close(conn, REALMS, ids[0], by="ann", text=f"{NAME} was told on the phone")
    assert (await erase(m, customer)).cases == ids[:1]
    left = await everything(m.pool)
    assert f"{NAME} of other@example.com".encode() in left
    assert f"{NAME} was told".encode() not in left
    assert MAIL.upper().encode() not in left


async def test_a_removed_payload_is_told_as_removed_and_offers_no_replay(m: Merchant) -> None:
    await over(m)
    await m.pool.execute("update inbox set payload = ''")
    id_ = await m.pool.fetchval("select event_id from inbox where state = 'done' limit 1")
    async with connection(m.pool) as conn:
        told, subject = await story.event_story(conn, id_)
        explained = await story.explain(conn, m.court, REALMS, id_)
    assert subject is None
    assert told["payload_removed"]
    assert explained["reason"] == told["story"]
    assert told["story"].endswith("Its payload was removed, after the retention or on request.")


def test_a_payload_is_shown_without_anything_that_names_reaches_or_describes_a_person() -> None:
    invoice = {
        "id": "in_1", "object": "invoice", "customer": "cus_1", "status": "paid", "amount_due": 2900, "currency": "usd", "number": "AB-1",
        "customer_name": "Ada", "customer_phone": "+44", "customer_email": "a@b.co", "customer_address": {"city": "London"},
        "customer_shipping": {"phone": "+44"}, "customer_tax_ids": [{"value": "GB123"}], "hosted_invoice_url": "https://x/y",
        "invoice_pdf": "https://x/pdf", "description": "for Ada", "footer": None, "livemode": False, "customer_tax_exempt": "none",
        "metadata": {"user_id": "Ada"}, "custom_fields": [], "lines": {"object": "list", "url": "/v1/invoices/in_1/lines", "data": []},
    }  # fmt: skip
    shown = reading.without_personal_data(invoice)
    hidden = {name for name, value in shown.items() if value == "[private]"}
    assert hidden == {
        *("customer_name", "customer_phone", "customer_email", "customer_address", "customer_shipping", "customer_tax_ids"),
        *("hosted_invoice_url", "invoice_pdf", "description"),
    }  # fmt: skip
    assert shown["metadata"] == {"user_id": "[private]"}
    assert all(shown[name] == value for name, value in invoice.items() if name not in hidden | {"metadata"})
    others = {
        "dispute": {"evidence": {"customer_purchase_ip": "203.0.113.7"}},
        "session": {"url": "https://checkout", "client_secret": "pi_1_secret_x", "custom_fields": [{"text": {"value": "Ada"}}]},
        "charge": {"receipt_url": "https://r", "payment_method_details": {"sofort": {"verified_name": "Ada", "iban_last4": "3000"}}},
        "subscription": {"cancellation_details": {"comment": "Ada moves", "feedback": "other", "reason": "cancellation_requested"}},
        "previous_attributes": {"individual_name": "Ada", "status": "open"},
    }  # fmt: skip
    text = msgspec.json.encode(reading.without_personal_data(others)).decode()
    for personal in ("Ada", "203.", "https:", "secret_x", "3000"):
        assert personal not in text
    for plain in ("cancellation_requested", "feedback", "open"):
        assert plain in text
