"""Actions carried out at Stripe exactly once: last look, `sending` committed, the call, the result committed.

    planned ──last look agrees──▶ sending ──2xx──▶ sent
       │ another answer              │ outcome unknown: ask Stripe, then the same key and parameters again
       ▼                             │ key older than 23 h, or its stored answer is an error: ask, then a new key
    proposed | withdrawn             ▼ refused
                                   review (a person)

A step is held by a session lock on its row's number, which ends with the process that holds it; the row itself,
frozen parameters under a frozen idempotency key, is what makes a repetition harmless (stripe.com/docs/api/idempotent_requests).
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import structlog

from handlers.customer import (
    AnyFact,
    BalanceRead,
    CustomerFile,
    CustomerId,
    InvoicePayment,
    Refund,
    Subscription,
    decode,
)
from handlers.decisions import ActionKind, Decision, Money, Verdict
from handlers.events import Unreadable
from handlers.refunds import Reads, last_look, parameters, refunded_minor_of, survivor_of
from worker.db import Connection, Pool, connection, queries
from worker.drain import Court, settle
from worker.errors import OutcomeUnknown, StripeRefused, StripeUnavailable
from worker.failpoint import failpoint
from worker.stripe_gateway import Reply, StripeGateway

KEY_LIFE = timedelta(hours=23)
"""Stripe may forget an idempotency key after 24 hours; an hour less leaves room for clocks."""
SIDE_BY_SIDE = 6
READS_SIDE_BY_SIDE = 6

log = structlog.get_logger()


class Stopped(Exception):
    """The step is not to be sent now; the row says why."""


class Performer:
    """Carries out due actions and reads what was looked up. One per worker process."""

    def __init__(self, pool: Pool, court: Court, gateway: StripeGateway, realms: str) -> None:
        self.pool, self.court, self.gateway = pool, court, gateway
        self.realms = f"^{realms}(:|$)"
        self._reading = asyncio.Semaphore(READS_SIDE_BY_SIDE)

    async def perform_due(self) -> int:
        """Every action that is due now. Returns how many were touched. Raises DatabaseUnavailable."""
        if not self.gateway.connected:
            return 0
        async with connection(self.pool) as conn:
            rows = await conn.fetch(queries.due_actions.sql, self.realms, SIDE_BY_SIDE * 4)
        gate = asyncio.Semaphore(SIDE_BY_SIDE)

        async def one(id_: str) -> bool:
            async with gate:
                return await self.perform(id_)

        return sum(await asyncio.gather(*(one(row["id"]) for row in rows)))

    async def perform(self, id_: str) -> bool:
        """One step, unless another worker holds it. Returns whether it was tried."""
        number = _lock_number(f"action {id_}")
        started = time.perf_counter()
        async with connection(self.pool) as conn:
            if not await conn.fetchval("select pg_try_advisory_lock($1)", number):
                return False
            try:
                outcome = await self._step(conn, id_)
            finally:
                if not conn.is_closed():
                    await conn.execute("select pg_advisory_unlock($1)", number)
        log.info(
            "action.performed", action_id=id_, outcome=outcome, ms=round((time.perf_counter() - started) * 1000, 1)
        )
        return True

    async def _step(self, conn: Connection, id_: str) -> str:
        row = await queries.action(conn, id=id_)
        if row is None or not row["is_due"]:
            return "not due any more"
        try:
            ready = await self._ready(conn, row)
            failpoint("after_sending_commit")
            reply = await self._call(ready)
            failpoint("after_http")
            await self._sent(conn, ready, reply)
        except Stopped as stopped:
            return str(stopped)
        except OutcomeUnknown as unknown:
            await queries.postpone_action(conn, id=id_, error=f"outcome unknown, Stripe will be asked: {unknown}")
            if unknown.replayed:
                # this key answers with its stored error for ever; age it, so that the next try asks and takes a new one
                await conn.execute(
                    "update actions set key_since = now() - interval '24 hours' where id = $1 and state = 'sending'",
                    id_,
                )
            return "outcome unknown"
        except StripeUnavailable as unavailable:
            await queries.postpone_action(conn, id=id_, error=str(unavailable))
            return "stripe unavailable"
        except (StripeRefused, Unreadable) as refused:
            return await self._refused(conn, row, refused)
        return "sent"

    async def _ready(self, conn: Connection, row: Any) -> Any:
        """The last look: read anew, judge anew, and in the same transaction commit that this is sent. Raises Stopped."""
        account = _account(row["realm"])
        before = await self._decision(conn, row)
        file = await self._file(conn, row["realm"], before)
        facts = await self._read(last_look(file, before), account)
        failpoint("after_last_look")
        if found := _ours(row, facts):
            await self._adopt(conn, row, facts, found)
        async with conn.transaction():
            undecided = row["id"] if row["kind"] == "refund" else None
            await settle(conn, self.court, row["realm"], facts, undecided=undecided)
            now_row = await queries.action_for_update(conn, id=row["id"])
            decision = await self._decision(conn, now_row)
            file = await self._file(conn, row["realm"], decision)
            why_not = await self._why_not(conn, now_row, decision, file)
            if why_not is None and now_row["state"] == "sending" and not _key_is_old(now_row):
                return await queries.retry_sending(conn, id=row["id"])
            if why_not is None:
                return await self._begin(conn, now_row, file)
        raise Stopped(why_not)

    async def _begin(self, conn: Connection, row: Any, file: CustomerFile) -> Any:
        frozen = parameters(
            ActionKind(row["kind"]),
            row["id"],
            row["decision_id"],
            row["subject"],
            row["amount_minor"] or 0,
            row["currency"] or "",
        )
        refunded = refunded_minor_of(file, row["subject"]) if row["kind"] == "refund" else None
        return await queries.begin_sending(
            conn, id=row["id"], parameters=msgspec.json.encode(frozen), refunded_before_minor=refunded
        )

    async def _why_not(self, conn: Connection, row: Any, decision: Decision, file: CustomerFile) -> str | None:
        """Why this must not be sent after the last look; where a person is needed, the row is changed to say so."""
        if row["state"] not in ("planned", "sending"):
            return f"the last look changed it: {row['state']}"
        if await queries.is_paused(conn):
            return "refunds are paused"
        match ActionKind(row["kind"]):
            case ActionKind.CANCEL_SUBSCRIPTION:
                return await self._why_not_cancel(conn, row, decision, file)
            case ActionKind.REFUND if row["state"] == "sending":
                return await self._why_not_again(conn, row, decision, file)
            case ActionKind.REFUND if not row["approved_by"]:
                return await self._why_not_today(conn, row)
            case _:
                return None

    async def _why_not_again(self, conn: Connection, row: Any, decision: Decision, file: CustomerFile) -> str | None:
        """A refund in doubt, which Stripe does not know: is it still owed, and was nothing given back meanwhile?"""
        step = next((s for s in decision.prepared if s.kind is ActionKind.REFUND and s.subject == row["subject"]), None)
        same = step is not None and step.amount == Money(row["amount_minor"], row["currency"])
        agreed = decision.verdict is Verdict.REFUND or bool(row["approved_by"])
        if same and agreed and refunded_minor_of(file, row["subject"]) == row["refunded_before_minor"]:
            return None
        return await self._to_person(
            conn, row, f"its outcome was unknown, and the facts changed meanwhile: {decision.reason}"
        )

    async def _why_not_today(self, conn: Connection, row: Any) -> str | None:
        """Rule 6: no more per day and currency than the policy allows. Serialized, so that two workers cannot pass together."""
        await conn.execute("select pg_advisory_xact_lock($1)", _lock_number(f"day {row['realm']} {row['currency']}"))
        spent = await queries.refunded_today(conn, realm=row["realm"], currency=row["currency"], id=row["id"])
        terms = self.court.policy.terms_for(CustomerId(row["customer"]), int(datetime.now(UTC).timestamp()))
        limit = terms.refunds.per_day.get(row["currency"], 0) if terms else 0
        if spent + row["amount_minor"] <= limit:
            return None
        return await self._to_person(conn, row, f"the day's limit of {Money(limit, row['currency'])} is reached")

    async def _why_not_cancel(self, conn: Connection, row: Any, decision: Decision, file: CustomerFile) -> str | None:
        subscription = file.subscriptions.get(row["subject"])
        if subscription is not None and not subscription.alive:
            await queries.already_true(conn, id=row["id"], stripe_id=row["subject"], stripe_status=subscription.status)
            return "it had ended already"
        survivor = file.subscriptions.get(survivor_of(file, decision) or "")
        if isinstance(survivor, Subscription) and survivor.ends and decision.duplicate is not None:
            return await self._to_person(
                conn, row, f"the original's subscription {survivor.id} ended or is about to end"
            )
        return None

    async def _to_person(self, conn: Connection, row: Any, why: str) -> str:
        await queries.to_review(
            conn,
            id=row["id"],
            error=why,
            realm=row["realm"],
            decision_subject=row["decision_subject"],
            step=row["step"],
        )
        return why

    async def _call(self, row: Any) -> Reply:
        account, key = _account(row["realm"]), row["idempotency_key"]
        sent = msgspec.json.decode(row["parameters"], type=dict[str, Any])
        match ActionKind(row["kind"]):
            case ActionKind.REFUND:
                return await self.gateway.refund(sent, key, account)
            case ActionKind.CANCEL_SUBSCRIPTION:
                return await self.gateway.cancel_subscription(row["subject"], sent, key, account)
            case ActionKind.REVERSE_BALANCE_CREDIT:
                return await self.gateway.adjust_balance(row["customer"], sent, key, account)

    async def _sent(self, conn: Connection, row: Any, reply: Reply) -> None:
        failpoint("before_sent_commit")
        async with conn.transaction():
            await queries.mark_sent(conn, id=row["id"], stripe_id=reply.id, stripe_status=reply.status)
            if row["kind"] == "refund" and reply.status in ("failed", "canceled"):
                await self._to_person(
                    conn, row, f"the refund {reply.id} {reply.status} at once; the duplicate is still owed"
                )
        failpoint("after_sent_commit")
        log.info(
            "action.sent",
            action_id=row["id"],
            kind=row["kind"],
            subject=row["subject"],
            stripe_id=reply.id,
            status=reply.status,
        )

    async def _refused(self, conn: Connection, row: Any, refused: Exception) -> str:
        """Stripe said no. It may be refusing the second of two: what it knows of ours is adopted first."""
        if row["kind"] == "refund" and isinstance(refused, StripeRefused):
            try:
                listed = await self.gateway.read_all("/v1/refunds", {"charge": row["subject"]}, _account(row["realm"]))
            except (StripeUnavailable, Unreadable):
                await queries.postpone_action(conn, id=row["id"], error=str(refused))
                return "stripe unavailable"
            except StripeRefused:
                listed = []
            if found := _ours(row, listed):
                try:
                    await self._adopt(conn, row, listed, found)
                except Stopped as stopped:
                    return str(stopped)
        async with conn.transaction():
            await self._to_person(conn, row, f"Stripe refused: {refused}")
        return "refused"

    async def _adopt(self, conn: Connection, row: Any, facts: Sequence[AnyFact], found: tuple[str, str]) -> None:
        """What was sent into silence is at Stripe: commit it as the result. Raises Stopped, for nothing is left to send."""
        stripe_id, status = found
        async with conn.transaction():
            await queries.already_true(conn, id=row["id"], stripe_id=stripe_id, stripe_status=status)
            await settle(conn, self.court, row["realm"], facts)
        raise Stopped(f"adopted {stripe_id}")

    async def _decision(self, conn: Connection, row: Any) -> Decision:
        found = await queries.decision_of_action(conn, realm=row["realm"], subject=row["decision_subject"])
        return msgspec.json.decode(found["body"], type=Decision)

    async def _file(self, conn: Connection, realm: str, decision: Decision) -> CustomerFile:
        charges = [id_ for id_ in (decision.original, decision.duplicate) if id_]
        rows = await conn.fetch(queries.owners.sql, realm, charges)
        customers = sorted({row["customer"] for row in rows} | {decision.customer})
        return CustomerFile(decode(row["body"]) for row in await conn.fetch(queries.load_objects.sql, realm, customers))

    async def _read(self, reads: Reads, account: str | None) -> list[AnyFact]:
        """Everything of a last look, side by side. Any read that fails fails the look: nothing is sent half-seen."""
        jobs: list[Awaitable[Sequence[AnyFact]]] = []
        for charge in sorted(reads.charges):
            jobs += [self._object(f"/v1/charges/{charge}", account)]
            jobs += [self._list(path, {"charge": charge}, account) for path in ("/v1/refunds", "/v1/disputes")]
        for invoice in sorted(reads.invoices):
            jobs += [
                self._object(f"/v1/invoices/{invoice}", account),
                self._list("/v1/invoice_payments", {"invoice": invoice}, account),
            ]
        for intent in sorted(reads.intents):
            asked = {"payment": {"type": "payment_intent", "payment_intent": intent}}
            jobs.append(self._list("/v1/invoice_payments", asked, account))
        jobs += [self._object(f"/v1/subscriptions/{id_}", account) for id_ in sorted(reads.subscriptions)]
        jobs += [self._balance(id_, account) for id_ in sorted(reads.balances)]
        facts = [fact for found in await asyncio.gather(*jobs) for fact in found]
        latest = {f.latest_invoice for f in facts if isinstance(f, Subscription) and f.latest_invoice} - reads.invoices
        newer = await asyncio.gather(*(self._newer_invoice(id_, account) for id_ in sorted(latest)))
        return [*facts, *(fact for found in newer for fact in found)]

    async def _newer_invoice(self, invoice: str, account: str | None) -> Sequence[AnyFact]:
        """A renewal whose webhooks may still be on their way: it changes the answer (reading 21)."""
        facts = [
            *await self._object(f"/v1/invoices/{invoice}", account),
            *await self._list("/v1/invoice_payments", {"invoice": invoice}, account),
        ]
        intents = [
            f.payment_intent for f in facts if isinstance(f, InvoicePayment) and f.payment_intent and f.status == "paid"
        ]
        charges = [await self._list("/v1/charges", {"payment_intent": intent}, account) for intent in intents]
        return [*facts, *(charge for found in charges for charge in found)]

    async def _object(self, path: str, account: str | None) -> Sequence[AnyFact]:
        async with self._reading:
            return [await self.gateway.read(path, account)]

    async def _list(self, path: str, asked: dict[str, Any], account: str | None) -> Sequence[AnyFact]:
        async with self._reading:
            return await self.gateway.read_all(path, asked, account)

    async def _balance(self, customer: str, account: str | None) -> Sequence[AnyFact]:
        async with self._reading:
            return [await self.gateway.read_customer_balance(CustomerId(customer), account)]

    async def look_up_due(self) -> int:
        """Read what the rules or a thin event asked for, and let it in through the same door."""
        if not self.gateway.connected:
            return 0
        async with connection(self.pool) as conn:
            rows = await conn.fetch(queries.due_lookups.sql, self.realms, 20)
        await asyncio.gather(*(self._look_up(row) for row in rows))
        return len(rows)

    async def _look_up(self, row: Any) -> None:
        account, key = _account(row["realm"]), {"realm": row["realm"], "kind": row["kind"], "id": row["id"]}
        try:
            if row["kind"] == "balance":
                facts = await self._balance(row["id"], account)
            else:
                facts = await self._object(row["url"], account)
            async with connection(self.pool) as conn, conn.transaction():
                await settle(conn, self.court, row["realm"], facts)
                await queries.lookup_done(conn, **key)
        except (StripeUnavailable, StripeRefused, Unreadable) as error:
            definite = not isinstance(error, StripeUnavailable)
            async with connection(self.pool) as conn:
                await queries.lookup_failed(conn, **key, error=str(error), definite=definite)
            log.warning("lookup.failed", kind=row["kind"], id=row["id"], error=type(error).__name__, definite=definite)


def _ours(row: Any, facts: Sequence[AnyFact]) -> tuple[str, str] | None:
    """What Stripe already holds of this very action: its id and status."""
    for fact in facts:
        if isinstance(fact, Refund) and row["kind"] == "refund" and fact.action == row["id"]:
            return fact.id, fact.status
        if isinstance(fact, BalanceRead) and row["kind"] == "reverse_balance_credit":
            for transaction in fact.transactions:
                if transaction.action == row["id"]:
                    return transaction.id, "booked"
    return None


def _key_is_old(row: Any) -> bool:
    return bool(datetime.now(UTC) - row["key_since"] > KEY_LIFE)


def _account(realm: str) -> str | None:
    return realm.partition(":")[2] or None


def _lock_number(thing: str) -> int:
    return int.from_bytes(hashlib.blake2b(thing.encode(), digest_size=8).digest(), "big", signed=True)
