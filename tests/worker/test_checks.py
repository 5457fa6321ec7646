"""The books against Stripe's balance transactions, to the minor unit, and against our own rules: what is wrong is told, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers.customer import Charge, ChargeId, Fact, InvoiceId, InvoicePayment, PaymentIntent, Refund, encode
from handlers.projection import created_of, digest, moved
from reconcile.findings import Class, Finding, What
from reconcile.money import MoneyOfRun
from reconcile.report import Waiting
from reconcile.windows import DAY, Window, scan_plan
from tests.handlers.history import MINUTE, T0, History
from tests.worker.books import REALM, court, tell
from worker import checks, review
from worker.db import Connection, Pool, columns, transaction

RUN = "run_1"
UPPER = T0 + 90 * DAY
PLAN = scan_plan([Window(T0, UPPER)], UPPER)
NOW = datetime.now(UTC)

# books and bookings ------------------------------------------------------------------------------------------------------


def bought(*, charges: int = 1, **more: Any) -> History:
    history = History()
    history.customer(user_id="u1")
    for n in range(charges):
        history.subscribe(n * 40 * DAY, metadata={"user_id": "u1"}, **more)
    return history


async def a_run(conn: Connection) -> None:
    await conn.execute(
        "insert into runs (id, realm, kind, dry_run, asked, plan) values ($1, $2, 'asked', true, '90d', $3)",
        *(RUN, REALM, msgspec.json.encode(PLAN)),
    )


Move = tuple[str, str | None, int, str, int, float | None]
"""Type (also the category), source, amount, currency, created, rate."""


async def book(conn: Connection, *moves: Move, fee: int = 0, category: str | None = None) -> None:
    have = await conn.fetchval("select count(*) from balance_moves where run = $1", RUN)
    rows = [
        (RUN, f"txn_{have + n}", kind, category or kind, source, amount, fee, currency, created, rate)
        for n, (kind, source, amount, currency, created, rate) in enumerate(moves)
    ]
    await conn.execute(
        """insert into balance_moves select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[],
               $7::bigint[], $8::text[], $9::bigint[], $10::float8[])""",
        *columns(rows),
    )


async def stage(conn: Connection, fact: Fact) -> None:
    kind = str(type(fact).__struct_config__.tag)
    row = (RUN, fact.id, kind, fact.as_of, encode(fact))
    await conn.execute("insert into found (run, id, kind, as_of, listed, body) values ($1, $2, $3, $4, true, $5)", *row)


async def money(pool: Pool, *moves: Move, drift: dict[str, What] | None = None) -> MoneyOfRun:
    async with transaction(pool) as conn:
        await a_run(conn)
        if moves:
            await book(conn, *moves)
        return await checks.money_of(conn, RUN, REALM, PLAN, drift)


def sums(told: MoneyOfRun) -> dict[tuple[str, str], tuple[int, int, int, int]]:
    return {
        (r.currency, r.kind): (r.at_stripe_minor, r.ours_minor, r.residual_minor, r.explained_minor) for r in told.rows
    }


async def test_books_and_bookings_that_agree_leave_nothing_over(pool: Pool) -> None:
    history = bought()
    history.refund("ch_0001", DAY, 900)
    await tell(pool, history)
    [refund] = history.file().refunds
    told = await money(
        pool, ("charge", "ch_0001", 2900, "usd", T0, None), ("refund", refund, -900, "usd", T0 + DAY, None)
    )
    assert sums(told) == {("usd", "charge"): (2900, 2900, 0, 0), ("usd", "refund"): (-900, -900, 0, 0)}
    assert (told.residuals, told.residuals_total, told.findings) == ([], 0, [])
    assert [(d.day, d.kind, d.minor, d.count) for d in told.days] == [
        ("2026-01-01", "charge", 2900, 1),
        ("2026-01-02", "refund", -900, 1),
    ]


async def test_a_wrong_amount_is_left_over_with_its_object_and_asked_about(pool: Pool) -> None:
    await tell(pool, bought())
    await pool.execute("update objects set moved_minor = 2800 where id = 'ch_0001'")
    told = await money(pool, ("charge", "ch_0001", 2900, "usd", T0, None))
    assert sums(told) == {("usd", "charge"): (2900, 2800, 100, 0)}
    assert [(r.object, r.minor, r.explained) for r in told.residuals] == [("ch_0001", 100, False)]
    assert [(f.object, f.customer, f.class_) for f in told.findings] == [("ch_0001", "cus_A", Class.ASK)]
    assert told.to_read == ["ch_0001"]


async def test_what_the_books_lack_is_explained_by_the_finding_about_it(pool: Pool) -> None:
    told = await money(pool, ("refund", "re_9", -500, "usd", T0, None), drift={"re_9": What.MISSING_HERE})
    assert sums(told) == {("usd", "refund"): (-500, 0, -500, -500)}
    assert [r.why for r in told.residuals] == ["the books lack this refund: see missing_here re_9"]
    assert told.findings == []


async def test_what_the_run_itself_found_is_explained_without_leaving_the_database(pool: Pool) -> None:
    async with transaction(pool) as conn:
        await a_run(conn)
        for n in range(5):
            await stage(
                conn, Refund(id=f"re_{n}", as_of=T0, amount_minor=n, currency="usd", status="succeeded", created=T0)
            )
        await book(conn, *(("refund", f"re_{n}", -n, "usd", T0, None) for n in range(1, 5)))
        told = await checks.money_of(conn, RUN, REALM, PLAN)
    assert sums(told) == {("usd", "refund"): (-10, 0, -10, -10)}
    assert (told.residuals_total, told.findings) == (4, [])
    assert [r.object for r in told.residuals] == ["re_4", "re_3", "re_2", "re_1"]


async def test_a_charge_that_stripe_never_booked_is_left_over(pool: Pool) -> None:
    await tell(pool, bought())
    told = await money(pool)
    assert sums(told) == {("usd", "charge"): (0, 2900, -2900, 0)}
    assert [(r.object, r.minor, r.explained) for r in told.residuals] == [("ch_0001", -2900, False)]


async def test_a_charge_from_before_the_windows_is_not_expected_in_them(pool: Pool) -> None:
    await tell(pool, bought())
    async with transaction(pool) as conn:
        await a_run(conn)
        later = scan_plan([Window(T0 + 60 * DAY, UPPER)], UPPER)
        told = await checks.money_of(conn, RUN, REALM, later)
    assert (told.rows, told.residuals) == ([], [])


async def test_another_settlement_currency_is_compared_at_stripes_rate_and_rounding_is_told(pool: Pool) -> None:
    await tell(pool, bought(currency="eur"))
    told = await money(pool, ("charge", "ch_0001", 3133, "usd", T0, 1.080001))
    assert sums(told) == {("usd", "charge"): (3133, 3132, 1, 1)}
    [residual] = told.residuals
    assert (residual.object, residual.minor, residual.explained) == ("ch_0001", 1, True)
    assert "rounded" in residual.why


async def test_another_currency_without_a_rate_stands_on_both_sides_unexplained(pool: Pool) -> None:
    await tell(pool, bought(currency="eur"))
    told = await money(pool, ("charge", "ch_0001", 3133, "usd", T0, None))
    assert sums(told) == {("eur", "charge"): (0, 2900, -2900, 0), ("usd", "charge"): (3133, 0, 3133, 0)}
    assert {(r.currency, r.explained) for r in told.residuals} == {("eur", False), ("usd", False)}
    assert [f.object for f in told.findings] == ["ch_0001"]


async def test_a_failed_refund_whose_money_came_back_leaves_nothing_over(pool: Pool) -> None:
    history = bought()
    refund = history.refund("ch_0001", DAY, status="failed")
    await tell(pool, history)
    bookings: list[Move] = [
        ("charge", "ch_0001", 2900, "usd", T0, None),
        ("refund", refund, -2900, "usd", T0 + DAY, None),
        ("refund_failure", refund, 2900, "usd", T0 + 2 * DAY, None),
    ]
    told = await money(pool, *bookings)
    assert sums(told)["usd", "refund"] == (0, 0, 0, 0)
    assert told.residuals == []


async def test_a_dispute_is_matched_by_its_source_whenever_it_was_booked(pool: Pool) -> None:
    history = bought()
    dispute = history.dispute("ch_0001", "lost", DAY)
    history.change(dispute, when=DAY + MINUTE, withdrawn_minor=2900)
    await tell(pool, history)
    async with transaction(pool) as conn:
        await a_run(conn)
        await book(conn, ("charge", "ch_0001", 2900, "usd", T0, None))
        await book(conn, ("adjustment", dispute, -2900, "usd", T0 + 50 * DAY, None), category="dispute", fee=1500)
        told = await checks.money_of(conn, RUN, REALM, PLAN)
    assert sums(told)["usd", "dispute"] == (-2900, -2900, 0, 0)
    assert [(o.kind, o.at_stripe_minor, o.count) for o in told.other] == [("fees", -1500, 1)]


async def test_an_old_dispute_taken_and_given_back_in_the_windows_is_held_against_the_books_all_the_same(
    pool: Pool,
) -> None:
    history = bought()
    dispute = history.dispute("ch_0001", "lost", DAY)
    history.change(dispute, when=DAY + MINUTE, withdrawn_minor=2900)
    await tell(pool, history)
    async with transaction(pool) as conn:
        await a_run(conn)
        await book(
            conn,
            *(("adjustment", dispute, minor, "usd", T0 + 60 * DAY, None) for minor in (-2900, 2900)),
            category="dispute",
        )
        later = scan_plan([Window(T0 + 50 * DAY, UPPER)], UPPER)
        told = await checks.money_of(conn, RUN, REALM, later)
    assert sums(told)["usd", "dispute"][:3] == (0, -2900, 2900)
    assert [r.object for r in told.residuals] == [dispute]


async def test_fees_payouts_and_words_nobody_knows_yet_are_told_apart(pool: Pool) -> None:
    told = await money(
        pool,
        ("payout", "po_1", -5000, "usd", T0, None),
        ("stripe_fee", None, -35, "usd", T0, None),
        ("moon_tax", "mt_1", -7, "eur", T0, None),
        ("moon_tax", "mt_2", -8, "eur", T0, None),
    )
    assert [(o.currency, o.kind, o.at_stripe_minor, o.count) for o in told.other] == [
        ("eur", "moon_tax", -15, 2),
        ("usd", "payout", -5000, 1),
        ("usd", "stripe_fee", -35, 1),
    ]
    assert (told.rows, told.residuals) == ([], [])


async def test_sources_that_nobody_knows_are_named_to_be_read(pool: Pool) -> None:
    await tell(pool, bought())
    async with transaction(pool) as conn:
        await a_run(conn)
        await stage(conn, Refund(id="re_1", as_of=T0, amount_minor=1, currency="usd", status="succeeded", created=T0))
        known: list[Move] = [("charge", "ch_0001", 2900, "usd", T0, None), ("refund", "re_1", -1, "usd", T0, None)]
        await book(conn, *known, ("payment", "py_1", 10, "usd", T0, None), ("payout", "po_1", -10, "usd", T0, None))
        assert await checks.unknown_sources(conn, RUN, REALM, 10) == [("charge", "py_1")]


CURRENCIES = st.sampled_from(("usd", "eur", "jpy"))
IDS = st.integers(0, 9)


@st.composite
def random_books(draw: st.DrawFn) -> tuple[list[Fact], list[Move]]:
    """Objects that the books know and bookings that mostly are about them: right, wrong, twice, missing, in other currencies."""
    facts: list[Fact] = []
    for n in draw(st.sets(IDS)):
        amount, currency, created = draw(st.integers(1, 10**6)), draw(CURRENCIES), T0 + draw(st.integers(0, 120)) * DAY
        told: dict[str, Any] = {"as_of": created, "amount_minor": amount, "currency": currency, "created": created}
        status = draw(st.sampled_from(("succeeded", "pending", "failed")))
        if n % 2:
            facts.append(Refund(id=f"re_{n}", status=status, charge=ChargeId("ch_0"), **told))
        else:
            facts.append(
                Charge(id=f"ch_{n}", status=status, captured_minor=amount, captured=status == "succeeded", **told)
            )
    known = {fact.id: money for fact in facts if (money := moved(fact))}
    moves: list[Move] = []
    rates = st.none() | st.floats(0.001, 200) if draw(st.booleans()) else st.none()
    for n in draw(st.lists(IDS, max_size=14)):
        id_ = f"{'re' if n % 2 else 'ch'}_{n}"
        kind = draw(st.sampled_from(("refund", "payment_refund", "refund_failure") if n % 2 else ("charge", "payment")))
        currency, rate = draw(CURRENCIES), draw(rates)
        amount = draw(st.integers(-(10**6), 10**6))
        if id_ in known and draw(st.booleans()):
            amount, currency = known[id_].minor, known[id_].currency
        moves.append((kind, id_, amount, currency, T0 + draw(st.integers(0, 89)) * DAY, rate))
    moves += [("payout", None, draw(st.integers(-(10**6), 0)), "usd", T0, None)] * draw(st.integers(0, 2))
    return facts, moves


async def write(conn: Connection, facts: Iterable[Fact]) -> None:
    for fact in facts:
        minor = moved(fact)
        told = (
            REALM,
            fact.id,
            str(type(fact).__struct_config__.tag),
            fact.as_of,
            encode(fact),
            created_of(fact),
            digest(fact),
        )
        await conn.execute(
            """insert into objects (realm, id, kind, as_of, body, created, digest, moved_minor, currency)
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9)""",
            *(*told, minor.minor if minor else None, minor.currency if minor else None),
        )


class Undone(Exception):
    """Ends an example's transaction."""


async def every_minor_unit_is_listed(conn: asyncpg.Connection, facts: list[Fact], moves: list[Move]) -> None:
    with contextlib.suppress(Undone):
        async with conn.transaction():
            await a_run(conn)
            await write(conn, facts)
            if moves:
                await book(conn, *moves)
            told = await checks.money_of(conn, RUN, REALM, PLAN)
            left: Counter[tuple[str, str]] = Counter()
            explained: Counter[tuple[str, str]] = Counter()
            for residual in told.residuals:
                left[residual.currency, residual.kind] += residual.minor
                explained[residual.currency, residual.kind] += residual.minor * residual.explained
                assert residual.minor
                assert residual.object
                assert residual.why
            for row in told.rows:
                assert row.at_stripe_minor - row.ours_minor == row.residual_minor == left[row.currency, row.kind]
                assert row.explained_minor == explained[row.currency, row.kind]
            assert told.residuals_total == len(told.residuals)
            booked = sum(amount for kind, _, amount, *_ in moves if kind != "payout")
            assert sum(row.at_stripe_minor for row in told.rows) == booked
            if not any(rate for *_, rate in moves):  # without rates the books' side is plainly what the objects moved
                about = {id_ for _, id_, *_ in moves} | {
                    fact.id for fact in facts if T0 <= (created_of(fact) or 0) < UPPER
                }
                here = [amount for fact in facts if fact.id in about and (amount := moved(fact))]
                assert sum(row.ours_minor for row in told.rows) == sum(amount.minor for amount in here)
            assert {f.object for f in told.findings} == {r.object for r in told.residuals if not r.explained}
            raise Undone


def test_whatever_was_booked_every_minor_unit_that_is_left_over_has_an_object(database_url: str) -> None:
    with asyncio.Runner() as runner:
        conn = runner.run(asyncpg.connect(database_url))

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(random_books())
        def holds(example: tuple[list[Fact], list[Move]]) -> None:
            runner.run(every_minor_unit_is_listed(conn, *example))

        try:
            holds()
        finally:
            runner.run(conn.close())


# the books' own checks ---------------------------------------------------------------------------------------------------


async def look(pool: Pool, now: datetime = NOW) -> tuple[dict[What, list[Finding]], Waiting]:
    async with transaction(pool) as conn:
        findings, waiting = await checks.check_books(conn, REALM, now)
    assert len({f.id for f in findings}) == len(findings)
    assert all(f.sentence and f.do for f in findings)
    return {what: [f for f in findings if f.what is what] for what in {f.what for f in findings}}, waiting


async def found(pool: Pool, now: datetime = NOW) -> dict[What, list[tuple[str, Class]]]:
    told, _ = await look(pool, now)
    return {what: [(f.object, f.class_) for f in findings] for what, findings in told.items()}


def twice() -> History:
    """D3: ch_0002 repeats ch_0001 and goes back."""
    history = History()
    history.customer(user_id="u1")
    for when in (0, 42):
        history.subscribe(when, metadata={"user_id": "u1"})
    return history


async def refund_in(pool: Pool, state: str, *, ago: timedelta, stripe_id: str | None = None, **more: Any) -> str:
    """The refund of `twice`, as the performer would have left it so long ago."""
    id_: str = await pool.fetchval("select id from actions where kind = 'refund'")
    settled = NOW - ago if state != "sending" else None
    await pool.execute(
        """update actions set state = $2, first_sent_at = $3, key_since = $3, idempotency_key = 'k', generation = 1,
               stripe_id = $4, settled_at = $5, stripe_status = $6, error = $7 where id = $1""",
        *(id_, state, NOW - ago, stripe_id, settled, more.get("status"), more.get("error")),
    )
    return id_


async def test_books_in_order_hold_no_finding(pool: Pool) -> None:
    await tell(pool, bought())
    told, waiting = await look(pool)
    assert told.keys() <= {What.CREDITS_OVERDUE}  # the test's history lies months back: its credits have ended
    assert waiting == Waiting()


async def test_events_that_could_not_be_worked_on_are_asked_about_with_the_command_that_acts(pool: Pool) -> None:
    for state in ("dead", "quarantined", "done", "ignored"):
        await pool.execute(
            """insert into inbox (event_id, realm, type, created_at, payload, state, attempts, error)
               values ($1, $2, 'charge.succeeded', now(), '', $3, 9, 'it broke')""",
            *(f"evt_{state}", REALM, state),
        )
    told, _ = await look(pool)
    assert [(f.object, f.class_) for f in told[What.EVENT_DEAD]] == [
        ("evt_dead", Class.ASK),
        ("evt_quarantined", Class.ASK),
    ]
    assert "finalsale events replay evt_dead" in told[What.EVENT_DEAD][0].do
    assert "9 attempts: it broke" in told[What.EVENT_DEAD][0].sentence


async def test_an_action_in_doubt_for_five_minutes_is_told_and_the_worker_asks(pool: Pool) -> None:
    await tell(pool, twice(), court(refunds="auto"))
    id_ = await refund_in(pool, "sending", ago=timedelta(minutes=4))
    assert What.ACTION_IN_DOUBT not in await found(pool)
    told, waiting = await look(pool, NOW + timedelta(minutes=2))
    assert [(f.object, f.class_) for f in told[What.ACTION_IN_DOUBT]] == [(id_, Class.AUTO)]
    assert waiting.in_doubt == 1


async def test_an_action_in_doubt_before_a_person_is_asked_about_but_not_what_stripe_refused(pool: Pool) -> None:
    await tell(pool, twice(), court(refunds="auto"))
    id_ = await refund_in(pool, "review", ago=timedelta(hours=1), error="its outcome was unknown")
    assert (await found(pool))[What.ACTION_IN_DOUBT] == [(id_, Class.ASK)]
    await pool.execute("update actions set error = 'Stripe refused: no such charge' where id = $1", id_)
    assert What.ACTION_IN_DOUBT not in await found(pool)


async def test_a_sent_refund_that_stripe_never_told_of_is_asked_about_after_an_hour(pool: Pool) -> None:
    await tell(pool, twice(), court(refunds="auto"))
    id_ = await refund_in(pool, "sent", ago=timedelta(minutes=50), stripe_id="re_9")
    assert What.REFUND_UNCONFIRMED not in await found(pool)
    assert (await found(pool, NOW + timedelta(minutes=11)))[What.REFUND_UNCONFIRMED] == [(id_, Class.ASK)]


async def told_refund(pool: Pool, id_: str, **fields: Any) -> None:
    at = int(NOW.timestamp())
    told: dict[str, Any] = {
        "id": "re_9",
        "charge": ChargeId("ch_0002"),
        "amount_minor": 2900,
        "currency": "usd",
        "action": id_,
    }
    told |= {"status": "succeeded", "created": at, "as_of": at} | fields
    history = History()
    history.tell(Refund(**told))
    await tell(pool, history, court(refunds="auto"))


async def test_a_sent_refund_that_stays_pending_is_asked_about_after_ten_days(pool: Pool) -> None:
    await tell(pool, twice(), court(refunds="auto"))
    id_ = await refund_in(pool, "sent", ago=timedelta(days=9), stripe_id="re_9", status="pending")
    await told_refund(pool, id_, status="pending")
    assert What.REFUND_UNCONFIRMED not in await found(pool)
    assert (await found(pool, NOW + timedelta(days=2)))[What.REFUND_UNCONFIRMED] == [(id_, Class.ASK)]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, None),
        ({"amount_minor": 2800}, "amount 28.00 USD instead of 29.00 USD"),
        ({"currency": "eur"}, "amount 29.00 EUR instead of 29.00 USD"),
        ({"charge": ChargeId("ch_0001")}, "charge ch_0001 instead of ch_0002"),
        ({"charge": None}, None),
    ],
)
async def test_a_refund_that_is_not_what_was_decided_is_asked_about(
    pool: Pool, fields: dict[str, Any], named: str | None
) -> None:
    await tell(pool, twice(), court(refunds="auto"))
    id_ = await refund_in(pool, "sent", ago=timedelta(hours=2), stripe_id="re_9")
    await told_refund(pool, id_, **fields)
    told, _ = await look(pool)
    assert [f.object for f in told.get(What.REFUND_DIFFERS, [])] == ([id_] if named else [])
    if named:
        assert named in told[What.REFUND_DIFFERS][0].sentence


async def lot(pool: Pool, id_: str, kind: str, ends_at: datetime | None, left: int = 10) -> None:
    await pool.execute(
        """insert into lots (realm, id, customer, kind, clause, granted_at, ends_at, cause) values ($1, $2, 'cus_Z', $3, '3.1', $4, $5, 'x')""",
        *(REALM, id_, kind, NOW - timedelta(days=40), ends_at),
    )
    for what, amount in (("granted", 10), ("expired", left - 10)):
        if amount:
            await pool.execute(
                """insert into entries (realm, lot, customer, kind, amount, clause, cause, effective_at)
                   values ($1, $2, 'cus_Z', $3, $4, '3.1', 'x', now())""",
                *(REALM, id_, what, amount),
            )


async def test_credits_that_outlived_their_end_are_told_by_kind_and_healed_by_waking_the_customer(pool: Pool) -> None:
    past = NOW - timedelta(minutes=6)
    await lot(pool, "trial:1", "trial", past)
    await lot(pool, "included:1", "included", past)
    await lot(pool, "included:closed", "included", past, left=0)
    await lot(pool, "included:fresh", "included", NOW - timedelta(minutes=4))
    await lot(pool, "purchased:1", "purchased", None)
    told, _ = await look(pool)
    assert {what: [(f.object, f.class_, f.customer) for f in findings] for what, findings in told.items()} == {
        What.TRIAL_OVERDUE: [("trial:1", Class.AUTO, "cus_Z")],
        What.CREDITS_OVERDUE: [("included:1", Class.AUTO, "cus_Z")],
    }


async def test_a_charge_after_the_end_is_asked_about_until_a_person_closes_it(pool: Pool) -> None:
    history = History()
    history.customer()
    sub = history.subscribe()
    history.end(sub, DAY)
    late = history.renew(sub)
    await tell(pool, history)
    told, waiting = await look(pool)
    assert [(f.object, f.clause, f.class_) for f in told[What.CHARGED_AFTER_END]] == [(late.invoice, "1.2", Class.ASK)]
    assert waiting.reviews == 1
    async with transaction(pool) as conn:
        await review.reject(conn, [REALM], late.invoice, by="Ann", note="written to the customer")
    assert What.CHARGED_AFTER_END not in await found(pool)


async def test_a_refund_out_of_policy_is_asked_about_until_somebody_said_what_it_was(pool: Pool) -> None:
    history = bought()
    refund = history.refund("ch_0001", DAY)
    await tell(pool, history)
    told, _ = await look(pool)
    [finding] = told[What.OUT_OF_POLICY]
    assert (finding.object, finding.class_, finding.customer) == (refund, Class.ASK, "cus_A")
    async with transaction(pool) as conn:
        await review.note(conn, [REALM], refund, by="Ann", text="the CEO's promise")
    assert What.OUT_OF_POLICY not in await found(pool)


async def test_an_object_whose_link_never_came_is_nobodys_and_a_guests_intent_is_none(pool: Pool) -> None:
    history = History()
    history.tell(
        InvoicePayment(id="inpay_9", as_of=T0, invoice=InvoiceId("in_9"), status="paid", currency="usd", created=T0)
    )
    history.tell(PaymentIntent(id="pi_9", as_of=T0, amount_minor=5, currency="usd", status="succeeded", created=T0))
    await tell(pool, history)
    told, _ = await look(pool)
    assert [(f.object, f.class_) for f in told[What.NOBODYS]] == [("inpay_9", Class.AUTO)]
    assert "in_9" in told[What.NOBODYS][0].do
    early = datetime.fromtimestamp(T0, UTC) + timedelta(hours=72)
    assert What.NOBODYS not in await found(pool, early)


async def test_reviews_are_counted_by_how_long_they_wait(pool: Pool) -> None:
    await tell(pool, twice())
    _, waiting = await look(pool, NOW + timedelta(hours=5))
    assert (waiting.reviews, waiting.reviews_1h, waiting.reviews_4h, waiting.reviews_24h) == (1, 1, 1, 0)
    assert waiting.oldest_review_at is not None
    assert (await look(pool, NOW + timedelta(days=8)))[1].reviews_older == 1


async def test_nothing_of_another_realm_is_told(pool: Pool) -> None:
    await tell(pool, twice(), court(refunds="auto"))
    await refund_in(pool, "sending", ago=timedelta(hours=1))
    async with transaction(pool) as conn:
        findings, waiting = await checks.check_books(conn, "test:acct_1", NOW)
    assert (findings, waiting) == ([], Waiting())
