"""From stored events to files and decisions: any order, any batches, any number of workers and any bad event end in the same books."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import worker.drain
import worker.judging
from handlers.customer import AnyFact, Charge, CustomerId, Dispute, Fact
from handlers.decisions import Judgement
from handlers.events import parse_event
from handlers.judgement import judge_person
from sandbox.webhooks import snapshot_body
from tests.handlers.history import DAY, MINUTE, History
from tests.stripe_sender import thin_event
from tests.worker.books import court
from tests.worker.merchant import Merchant, merchant, store
from worker.db import Pool, connect_pool, connection, queries, transaction
from worker.drain import MAX_ATTEMPTS, drain
from worker.errors import DatabaseUnavailable
from worker.jobs import WorkerProcess
from worker.settings import Settings
from worker.settle import settle

Obj = dict[str, Any]


@pytest.fixture
async def m(settings: Settings, pool: Pool) -> AsyncIterator[Merchant]:
    async with merchant(settings, pool) as made:
        yield made


async def tables(pool: Pool, realm: str) -> tuple[Any, ...]:
    """Everything that the order of events must not change: the facts, what is decided, what waits to be done."""
    objects = await pool.fetch("select id, kind, customer, body from objects where realm = $1 order by id", realm)
    decisions = await pool.fetch(
        "select distinct on (subject) subject, body from decisions where realm = $1 order by subject, revision desc",
        realm,
    )
    said = {row["subject"]: json.loads(row["body"]) for row in decisions}
    in_force = {s: d for s, d in said.items() if not d["reason"].startswith("Withdrawn")}
    actions = await pool.fetch(
        """select kind, subject, decision_subject, customer, amount_minor, currency, state from actions
           where realm = $1 and state <> 'withdrawn' order by kind, subject""",
        realm,
    )
    return [tuple(row) for row in objects], in_force, [tuple(row) for row in actions]


async def deliver(m: Merchant, account: str, events: list[Obj], rng: random.Random, *, drainers: int) -> None:
    """Into a realm of its own, in this order, in random parts, drained in random batches by some workers at once."""
    rest = [{**event, "id": f"{event['id']}{account}{n}", "account": account} for n, event in enumerate(events)]
    while rest:
        part = rng.randint(1, len(rest))
        now, rest = rest[:part], rest[part:]
        await store(m.pool, *(snapshot_body(event) for event in now))
        order = [event["id"] for event in now]
        await m.pool.execute(
            """update inbox set next_at = now() - interval '1 minute' + told.n * interval '1 ms'
               from unnest($1::text[]) with ordinality as told (id, n) where event_id = told.id""",
            order,
        )
        await asyncio.gather(*(drain(m.pool, m.court, batch=rng.randint(1, len(now))) for _ in range(drainers)))
    left = await m.pool.fetch("select event_id, state, error from inbox where state <> 'done'")
    assert [tuple(row) for row in left] == []


def pick(events: list[Obj], *types: str) -> list[Obj]:
    return [event for event in events if event["type"] in types]


async def sweep(m: Merchant) -> None:
    process = WorkerProcess(m.settings)
    process.pool = m.pool
    await process._sweep_once()
    await process.gateway.aclose()


# any order -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", ["paid twice", "bought twice, disputed and refunded"])
async def test_all_orders_of_five_linked_events_end_in_the_same_tables(m: Merchant, story: str) -> None:
    if story == "paid twice":
        m.paid_twice()
        events = m.news()
        five = [*pick(events, "charge.succeeded"), *pick(events, "invoice_payment.paid"), *pick(events, "invoice.paid")]
    else:
        _, second = m.double_click()
        charge = m.charge_of(second)
        m.books.set_dispute(m.books.open_dispute(charge, inquiry=True), "warning_closed")
        m.books.create_refund(charge, 900)
        events = m.news()
        five = [
            *pick(events, "charge.succeeded"),
            pick(events, "invoice.paid")[1],
            pick(events, "charge.dispute.closed")[0],
            pick(events, "refund.created")[0],
        ]
    assert len(five) == 5
    base = [event for event in events if event not in five]
    rng, ends = random.Random(5), []
    for number, order in enumerate(itertools.permutations(five)):
        account = f"acct_{number}"
        head = base if number % 2 else []
        tail = [] if number % 2 else base
        await deliver(m, account, [*head, *order, *tail], rng, drainers=1 + number % 2)
        ends.append(f"test:{account}")
    await sweep(m)
    first = await tables(m.pool, ends[0])
    assert first[1], "a story without a decision proves nothing"
    for realm in ends[1:]:
        assert await tables(m.pool, realm) == first, realm


@pytest.mark.parametrize("seed", range(3))
async def test_long_stories_shuffled_and_repeated_end_in_the_same_tables(m: Merchant, seed: int) -> None:
    rng = random.Random(seed)
    _, second = m.double_click("u1")
    _, charge = m.paid_twice(credit=True)
    one, other = m.customer(), m.customer()
    m.buy(one, "u7")
    m.buy(other, "u7")
    m.books.open_dispute(charge)
    m.books.fail_refund(m.books.create_refund(m.charge_of(second), 500))
    events = m.news()
    ends = []
    for number in range(7):
        order = list(events)
        if number:
            order += rng.choices(events, k=len(events) // 2)
            rng.shuffle(order)
        await deliver(m, f"acct_{number}", order, rng, drainers=1 + number % 2)
        ends.append(f"test:acct_{number}")
    await sweep(m)
    first = await tables(m.pool, ends[0])
    assert len(first[1]) >= 2
    for realm in ends[1:]:
        assert await tables(m.pool, realm) == first, realm


async def test_the_same_event_twice_has_one_effect(m: Merchant) -> None:
    m.double_click()
    events = m.news()
    await m.hear(events)
    before = await tables(m.pool, "test")
    assert await store(m.pool, *(snapshot_body(event) for event in events)) == 0
    await m.hear([{**event, "id": event["id"] + "again"} for event in events])
    assert await tables(m.pool, "test") == before
    assert await m.pool.fetchval("select max(revision) from decisions") == await m.pool.fetchval(
        "select count(*) from decisions where subject = (select subject from actions where kind = 'refund')"
    )


async def test_a_late_older_event_changes_nothing(m: Merchant) -> None:
    _, second = m.double_click()
    m.books.cancel(second)
    events = m.news()
    late = pick(events, "customer.subscription.created")
    await m.hear([event for event in events if event not in late])
    before = await tables(m.pool, "test")
    await m.hear(late)
    assert await tables(m.pool, "test") == before


async def test_two_customers_of_one_person_drained_at_the_same_instant_make_one_refund(m: Merchant) -> None:
    """D4, eight times: each worker brings one of the two customers, with a person's id that nobody has seen yet."""
    sides: list[list[list[Obj]]] = [[], []]
    laters = []
    for number in range(8):
        for side in sides:
            sub = m.buy(m.customer(), f"person{number}")
            side.append(m.news())
        laters.append(m.charge_of(sub)["id"])
    for pair in zip(*sides, strict=True):
        await asyncio.gather(*(one_worker(m, events) for events in pair))
    await m.perform(3)
    assert sorted(r["charge"] for r in m.refunds) == sorted(laters)


async def test_a_worker_with_the_same_person_waits_for_the_other_and_sees_what_he_brought(m: Merchant) -> None:
    histories: list[list[Any]] = []
    for when, customer in ((0, "cus_A"), (42, "cus_B")):
        history = History()
        history._count = dict.fromkeys(("sub", "in", "ch", "pi", "inpay", "il"), when)
        history.customer(customer)
        history.subscribe(when, customer=customer, metadata={"user_id": "u1"})
        histories.append(list(history.tellings))

    async def second() -> None:
        async with transaction(m.pool) as conn:
            await settle(conn, m.court, "test", histories[1])

    async with connection(m.pool) as first:
        passing = first.transaction()
        await passing.start()
        await settle(first, m.court, "test", histories[0])
        task = asyncio.create_task(second())
        await asyncio.sleep(0.3)
        assert not task.done()
        await passing.commit()
        await task
    assert list((await m.verdicts()).values()) == ["refund"]


async def one_worker(m: Merchant, events: list[Obj]) -> None:
    bodies = [snapshot_body(event) for event in events]
    await store(m.pool, *bodies)
    await drain(m.pool, m.court)


# whose it is ---------------------------------------------------------------------------------------------------------------


async def test_what_comes_before_its_owner_waits_and_joins(m: Merchant) -> None:
    _, second = m.double_click()
    charge = m.charge_of(second)
    m.books.open_dispute(charge, inquiry=True)
    m.books.create_refund(charge, 100)
    events = m.news()
    early = pick(events, "invoice_payment.paid", "charge.dispute.created", "refund.created")
    await m.hear(early)
    assert await m.pool.fetchval("select count(*) from objects where customer is null") == 4
    await m.hear([event for event in events if event not in early])
    assert (
        await m.pool.fetchval("select count(*) from objects where customer is null and kind <> 'payment_intent'") == 0
    )
    assert (await m.verdicts())[charge["id"]] == "review"


def dispute_story() -> tuple[History, list[AnyFact], list[AnyFact]]:
    """A double click with a chargeback: everything but the chargeback, and the chargeback."""
    history = History()
    history.customer(user_id="u1")
    for when in (0, 42):
        history.subscribe(when, metadata={"user_id": "u1"})
    rest: list[Any] = list(history.tellings)
    history.dispute("ch_0002", "needs_response", when=DAY)
    return history, rest, [fact for fact in history.tellings if isinstance(fact, Dispute)]


async def test_two_workers_that_pass_each_other_are_joined_by_the_sweep(m: Merchant) -> None:
    _, rest, disputes = dispute_story()
    async with connection(m.pool) as one, connection(m.pool) as other:
        passing = one.transaction()
        await passing.start()
        await settle(one, m.court, "test", disputes)
        async with other.transaction():
            await settle(other, m.court, "test", rest)
        await passing.commit()
    assert (await m.verdicts())["ch_0002"] == "refund"
    await sweep(m)
    assert (await m.verdicts())["ch_0002"] == "review"
    assert set((await m.actions()).values()) == {"proposed"}


@pytest.mark.parametrize("newest_first", [False, True])
async def test_two_tellings_of_one_ownerless_object_at_once_lose_neither(m: Merchant, newest_first: bool) -> None:
    """Nobody knows the refund's customer yet, so no customer's lock keeps the two workers apart."""
    _, second = m.double_click()
    m.books.fail_refund(m.books.create_refund(m.charge_of(second), 100))
    tellings = [e for e in m.news() if e["type"] in ("refund.created", "refund.failed")]
    if newest_first:
        tellings.reverse()
    facts = [parse_event(snapshot_body(event)).fact for event in tellings]
    assert facts[0] is not None
    async with connection(m.pool) as first:
        passing = first.transaction()
        await passing.start()
        await settle(first, m.court, "test", [facts[0]])
        await store(m.pool, snapshot_body(tellings[1]))
        task = asyncio.create_task(m.drain())
        await asyncio.sleep(0.3)
        assert not task.done()
        await passing.commit()
        assert await task == 1
    body = await m.pool.fetchval("select body from objects where kind = 'refund'")
    assert json.loads(body)["status"] == "failed"


async def test_an_ownerless_object_that_is_joined_and_told_again_at_once_loses_nothing(m: Merchant) -> None:
    """One worker brings the charge and takes its waiting refund along; another just heard that the refund failed."""
    _, second = m.double_click()
    m.books.fail_refund(m.books.create_refund(m.charge_of(second), 100))
    events = m.news()
    created, failed = pick(events, "refund.created"), pick(events, "refund.failed")
    await m.hear(created)
    fact = parse_event(snapshot_body(failed[0])).fact
    assert fact is not None
    async with connection(m.pool) as first:
        passing = first.transaction()
        await passing.start()
        await settle(first, m.court, "test", [fact])
        others = [e for e in events if not e["type"].startswith(("refund", "charge.refund"))]
        task = asyncio.create_task(m.hear(others))
        await asyncio.sleep(0.4)
        await passing.commit()
        await task
    await sweep(m)
    (row,) = await m.pool.fetch("select customer, body from objects where kind = 'refund'")
    assert (row["customer"], json.loads(row["body"])["status"]) == (second["customer"], "failed")


def guests_charge(as_of: int, customer: str | None) -> Charge:
    return Charge(
        id="ch_guest",
        as_of=as_of,
        customer=customer,  # type: ignore[arg-type]  # a plain id
        payment_intent="pi_1",  # type: ignore[arg-type]  # a plain id
        amount_minor=100,
        captured_minor=100,
        currency="usd",
        status="succeeded",
        captured=True,
        created=1_767_225_600,
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_a_guests_charge_that_gets_a_customer_takes_its_disputes_along(
    pool: Pool, order: tuple[int, ...]
) -> None:
    dispute = msgspec.structs.replace(dispute_story()[2][0], charge="ch_guest", payment_intent="pi_1")
    told: list[AnyFact] = [guests_charge(10, None), guests_charge(20, "cus_A"), dispute]
    for number in order:
        async with transaction(pool) as conn:
            await settle(conn, court(), "test", [told[number]])
    owners = await pool.fetch("select kind, customer from objects order by kind")
    assert [tuple(row) for row in owners] == [("charge", "cus_A"), ("dispute", "cus_A")]


async def test_realms_never_mix(m: Merchant) -> None:
    """One half of a double click in the account's own realm, the other in a connected account's, with equal ids."""
    customer = m.customer()
    m.buy(customer)
    shared = [e for e in m.news() if e["type"] == "customer.created"]
    first = [*shared, *m.books.all("event")]
    m.buy(customer)
    second = [{**event, "account": "acct_1"} for event in m.news()]
    await m.hear(first)
    await m.hear([*({**e, "id": e["id"] + "x", "account": "acct_1"} for e in shared), *second])
    assert await m.pool.fetchval("select count(distinct realm) from objects") == 2
    assert await m.pool.fetchval("select count(*) from decisions") == 0


# bad events ----------------------------------------------------------------------------------------------------------------


def charge_event(event_id: str, **fields: Any) -> bytes:
    charge = {
        "id": "ch_1",
        "object": "charge",
        "amount": 100,
        "amount_captured": 100,
        "amount_refunded": 0,
        "captured": True,
        "currency": "usd",
        "status": "succeeded",
        "created": 1_767_225_600,
        "customer": "cus_1",
        "disputed": False,
        **fields,
    }
    envelope = {
        "id": event_id,
        "object": "event",
        "type": "charge.succeeded",
        "created": 1_767_225_600,
        "livemode": False,
        "data": {"object": {name: value for name, value in charge.items() if value != "left out"}},
    }
    return json.dumps(envelope).encode()


async def inbox(pool: Pool) -> dict[str, tuple[str, int, str | None]]:
    rows = await pool.fetch("select event_id, state, attempts, error from inbox order by event_id")
    return {row["event_id"]: (row["state"], row["attempts"], row["error"]) for row in rows}


async def test_an_event_that_lacks_a_field_is_quarantined_with_its_name_and_stops_nobody(pool: Pool) -> None:
    await store(pool, charge_event("evt_1"), charge_event("evt_2", id="ch_2", currency="left out"))
    await drain(pool, court())
    found = await inbox(pool)
    assert found["evt_1"][0] == "done"
    assert found["evt_2"][0] == "quarantined"
    assert "charge.currency" in str(found["evt_2"][2])
    assert [row["id"] for row in await pool.fetch("select id from objects")] == ["ch_1"]


async def test_an_event_that_breaks_the_judge_is_found_by_halving_tried_eight_times_and_then_dead(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:

    def breaks(facts: dict[CustomerId, list[Fact]], *args: Any, **named: Any) -> Judgement:
        if "cus_bad" in facts:
            raise ZeroDivisionError("secret words of a customer")
        return judge_person(facts, *args, **named)

    monkeypatch.setattr(worker.judging, "judge_person", breaks)
    good = [charge_event(f"evt_{n}", id=f"ch_{n}", customer=f"cus_{n}") for n in range(12)]
    await store(pool, *good[:5], charge_event("evt_bad", id="ch_bad", customer="cus_bad"), *good[5:])
    assert await drain(pool, court()) == 13
    found = await inbox(pool)
    assert {state for id_, (state, _, _) in found.items() if id_ != "evt_bad"} == {"done"}
    assert found["evt_bad"] == ("waiting", 1, "ZeroDivisionError; `finalsale events replay` tries again")
    for _ in range(MAX_ATTEMPTS + 2):
        await pool.execute("update inbox set next_at = now() where state = 'waiting'")
        await drain(pool, court())
    assert (await inbox(pool))["evt_bad"][:2] == ("dead", MAX_ATTEMPTS)


@pytest.mark.parametrize(
    "harm",
    ["raise exception 'no'", "perform pg_sleep(5)"],
    ids=["Postgres refuses it", "Postgres is too long at it"],
)
async def test_an_event_that_postgres_cannot_take_is_found_by_halving(pool: Pool, database_url: str, harm: str) -> None:
    await harmful(pool, harm)
    hasty = await connect_pool(database_url, role="test", statement_timeout_s=0.3)
    bodies = [charge_event(f"evt_{n}", id=f"ch_{n}", customer=f"cus_{n}") for n in range(5)]
    await store(pool, *bodies, charge_event("evt_bad", id="ch_bad", customer="cus_bad"))
    await drain(hasty, court())
    found = await inbox(pool)
    assert {state for id_, (state, _, _) in found.items() if id_ != "evt_bad"} == {"done"}
    assert found["evt_bad"][:2] == ("waiting", 1)
    hasty.terminate()


async def test_a_postgres_that_goes_away_says_nothing_against_the_events(pool: Pool) -> None:
    await harmful(pool, "perform pg_terminate_backend(pg_backend_pid())")
    await store(pool, charge_event("evt_1"), charge_event("evt_bad", id="ch_bad", customer="cus_bad"))
    with pytest.raises(DatabaseUnavailable):
        await drain(pool, court())
    assert {id_: row[:2] for id_, row in (await inbox(pool)).items()} == {
        "evt_1": ("waiting", 0),
        "evt_bad": ("waiting", 0),
    }


async def harmful(pool: Pool, harm: str) -> None:
    """Let Postgres itself do harm when the object ch_bad is stored."""
    await pool.execute(
        f"""create function harm() returns trigger language plpgsql as $$ begin
              if new.id = 'ch_bad' then {harm}; end if; return new; end $$;
            create trigger harm before insert on objects for each row execute function harm()"""
    )


async def test_a_value_that_the_driver_refuses_is_no_outage(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncpg reports a value it cannot send as an error of its interface, which is also how it reports a lost connection."""
    bad = msgspec.structs.replace(guests_charge(10, "cus_bad"), as_of=2**70)

    def poisoned(payload: bytes) -> Any:
        told = parse_event(payload)
        return msgspec.structs.replace(told, fact=bad) if told.event_id == "evt_bad" else told

    monkeypatch.setattr(worker.drain, "parse_event", poisoned)
    await store(pool, charge_event("evt_1"), charge_event("evt_bad"))
    await drain(pool, court())
    assert {id_: row[:2] for id_, row in (await inbox(pool)).items()} == {
        "evt_1": ("done", 1),
        "evt_bad": ("waiting", 1),
    }


async def test_ten_thousand_events_that_are_not_due_do_not_hide_one_that_is(pool: Pool) -> None:
    await pool.execute(
        """insert into inbox (event_id, realm, type, created_at, payload, next_at)
           select 'evt_later' || n, 'test', 'charge.succeeded', now(), '{}', now() + interval '1 hour' from generate_series(1, 10000) n"""
    )
    await pool.execute("analyze inbox")
    await store(pool, charge_event("evt_1"))
    assert await drain(pool, court()) == 1
    plan = await pool.fetch(f"explain {queries.claim_events.sql.replace('$1', '200')}")
    assert "inbox_waiting" in "".join(row[0] for row in plan)


async def test_a_file_that_cannot_be_judged_stops_no_other_wake_up(
    m: Merchant, monkeypatch: pytest.MonkeyPatch
) -> None:
    m.double_click("u1")
    m.double_click("u2")
    await m.hear()
    bad, good = [row["id"] for row in await m.pool.fetch("select id from objects where kind = 'customer' order by id")]

    def breaks(facts: dict[CustomerId, list[Fact]], *args: Any, **named: Any) -> Judgement:
        if bad in facts:
            raise ZeroDivisionError
        return judge_person(facts, *args, **named)

    monkeypatch.setattr(worker.judging, "judge_person", breaks)
    await m.pool.execute(
        """insert into wakeups (realm, customer, due_at) values ('test', $1, now()), ('test', $2, now())
           on conflict (realm, customer) do update set due_at = now()""",
        bad,
        good,
    )
    await sweep(m)
    rows = await m.pool.fetch(
        "select customer, due_at > now() + interval '9 minutes' from wakeups where due_at < now() + interval '11 minutes'"
    )
    assert [tuple(row) for row in rows] == [(bad, True)]


# thin events ---------------------------------------------------------------------------------------------------------------


async def test_thin_events_alone_lead_to_the_same_refund(m: Merchant) -> None:
    _, second = m.double_click()
    await m.hear_thin()
    assert await m.pool.fetchval("select count(*) from objects") == 0
    await m.look_up(12)
    await m.perform(3)
    assert [(r["amount"], r["charge"]) for r in m.refunds] == [(2900, m.charge_of(second)["id"])]


async def test_a_thin_events_object_is_read_by_its_type_and_id_and_not_by_the_events_address(m: Merchant) -> None:
    first, second = m.double_click()
    mine, other = m.charge_of(first)["id"], m.charge_of(second)["id"]
    related = {"id": mine, "type": "charge", "url": f"/v1/charges/{other}"}
    await store(m.pool, thin_event(type="v1.charge.succeeded", related_object=related))
    await m.drain()
    await m.look_up()
    assert [row["id"] for row in await m.pool.fetch("select id from objects where kind = 'charge'")] == [mine]


@pytest.mark.parametrize("id_", ["../refunds/re_1", "..", "ch_1?expand[]=customer", "ch 1"])
async def test_a_thin_events_id_that_would_lead_elsewhere_is_quarantined(pool: Pool, id_: str) -> None:
    related = {"id": id_, "type": "charge", "url": "/v1/charges/ch_1"}
    await store(pool, thin_event(type="v1.charge.succeeded", related_object=related))
    await drain(pool, court())
    assert (await inbox(pool))["evt_thin_1"][0] == "quarantined"
    assert await pool.fetchval("select count(*) from lookups") == 0


# after a death -------------------------------------------------------------------------------------------------------------


async def test_after_deaths_each_suspect_is_counted_and_tried_alone(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store(pool, *(charge_event(f"evt_{n}", id=f"ch_{n}") for n in range(3)))
    await pool.execute("update inbox set attempts = 2")
    monkeypatch.setenv("FINALSALE_FAILPOINT", "after_commit:raise")
    with pytest.raises(RuntimeError):
        await drain(pool, court(), careful=True)
    assert sorted(state for state, _, _ in (await inbox(pool)).values()) == ["done", "waiting", "waiting"]
    assert await drain(pool, court(), careful=True) == 2
    assert {state for state, _, _ in (await inbox(pool)).values()} == {"done"}


async def test_an_event_that_kills_its_workers_is_dead_in_the_end(pool: Pool) -> None:
    await store(pool, charge_event("evt_1"), charge_event("evt_2", id="ch_2"))
    await pool.execute("update inbox set attempts = $1 where event_id = 'evt_1'", MAX_ATTEMPTS - 1)
    assert await drain(pool, court(), careful=True) == 1
    assert (await inbox(pool))["evt_1"] == ("dead", MAX_ATTEMPTS, "its workers died while working on it")
    assert (await inbox(pool))["evt_2"][0] == "done"


async def test_a_history_told_one_fact_at_a_time_is_the_history_told_at_once(pool: Pool) -> None:
    history, rest, disputes = dispute_story()
    history.refund("ch_0001", DAY + MINUTE, 100)
    facts: list[Any] = list(history.tellings)
    assert rest
    assert disputes
    ends = []
    for realm, parts in (
        ("a", [[fact] for fact in facts]),
        ("b", [facts]),
        ("c", [[fact] for fact in reversed(facts)]),
    ):
        for part in parts:
            async with transaction(pool) as conn:
                await settle(conn, court(), realm, part)
        ends.append(await tables(pool, realm))
    assert ends[0] == ends[1] == ends[2]


async def test_a_kind_of_object_that_only_a_newer_release_knows_stops_nobody_and_stays(pool: Pool) -> None:
    history = History()
    customer = history.customer()
    history.subscribe(0)
    history.subscribe(MINUTE)
    body = b'{"kind":"invention","id":"xx_1","as_of":1,"spark":true}'
    await pool.execute(
        "insert into objects (realm, id, kind, customer, as_of, body) values ('test', 'xx_1', 'invention', $1, 1, $2)",
        customer,
        body,
    )
    facts: list[AnyFact] = list(history.tellings)  # type: ignore[arg-type]  # a History tells only facts of this union
    async with transaction(pool) as conn:
        await settle(conn, court(), "test", facts)
    assert await pool.fetchval("select count(*) from decisions where verdict = 'refund'") == 1
    assert await pool.fetchval("select body from objects where id = 'xx_1'") == body
