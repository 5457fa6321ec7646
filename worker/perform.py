"""Actions carried out at Stripe exactly once: last look, `sending` committed, the call, the result committed.

    planned ──last look agrees──▶ sending ──2xx──▶ sent
       │ another answer              │ outcome unknown: ask Stripe, then the same key and parameters again
       ▼                             │ key older than 23 h, or its stored answer is an error: ask, then a new key
    proposed | withdrawn | later     ▼ refused, or other facts than when it was begun
                                   review (a person)

A step is held by a session lock on its row's number, which ends with the process that holds it; the row itself,
frozen parameters under a frozen idempotency key, is what makes a repetition harmless (stripe.com/docs/api/idempotent_requests).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog

from handlers.chargebacks import Stage, stage_of
from handlers.customer import (
    BALANCE_READ_PREFIX,
    AnyFact,
    BalanceRead,
    CustomerFile,
    CustomerId,
    InvoicePayment,
    Refund,
    SessionId,
    Subscription,
    decode,
)
from handlers.decisions import ActionKind, Decision, Money, Verdict
from handlers.events import Unreadable
from handlers.payments import payments_of
from handlers.refunds import Reads, last_look, parameters, refunded_minor_of, survivor_of
from worker import tracing
from worker.db import UNAVAILABLE, Connection, Pool, connection, queries
from worker.errors import DatabaseUnavailable, OutcomeUnknown, StripeRefused, StripeUnavailable
from worker.failpoint import failpoint
from worker.judging import Court
from worker.metrics import counts
from worker.settle import Overtaken, lock_number, settle
from worker.stripe_gateway import Reply, StripeGateway

T = TypeVar("T")

MAX_KEYS = 4
"""Idempotency keys for one action. Each new one comes after Stripe was asked; what fails under all of them is a person's matter."""
NEW_KEY_AFTER_S = 60.0
"""After a stored failure: whatever Stripe may still have been doing under the old key has shown by then."""
MAX_FAILURES = 20
"""How often something may go wrong on our side, with growing distance, before a person has to look."""
LOOK_KEEPS_S = 30.0
"""A last look that is older than this when its turn comes proves nothing any more."""
SECOND_LOOK_AFTER_S = 5.0
"""Between a last look that changed a decision and the next, which must find it unchanged: webhooks on their way arrive meanwhile."""
SIDE_BY_SIDE = 6
READS_SIDE_BY_SIDE = 6
COULD_NOT = "it could not be carried out"
GONE_WRONG = ("failed", "canceled")
"""States of a refund whose money did not go back."""

log = structlog.get_logger()


class Stopped(Exception):
    """The step is not to be sent now; the row says why."""


class InForce(NamedTuple):
    """A decision with the id of its revision."""

    id: str
    decision: Decision


class Performer:
    """Carries out due actions and reads what was looked up. One per worker process."""

    def __init__(self, pool: Pool, court: Court, gateway: StripeGateway, realms: str) -> None:
        self.pool, self.court, self.gateway = pool, court, gateway
        self.realms = f"^{realms}(:|$)"
        self.stopping = False
        """Set from outside: what is under way is finished, nothing new is begun."""
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
                return not self.stopping and await self.perform(id_)

        return sum(await _side_by_side(one(row["id"]) for row in rows))

    async def perform(self, id_: str) -> bool:
        """One step, unless another worker holds it. Returns whether it was tried. Raises DatabaseUnavailable."""
        number = lock_number(f"action {id_}")
        started = time.perf_counter()
        async with connection(self.pool) as conn:
            if not await conn.fetchval("select pg_try_advisory_lock($1)", number):
                return False
            try:
                outcome = await self._step(conn, id_)
            finally:
                if not conn.is_closed():
                    await conn.execute("select pg_advisory_unlock($1)", number)
        took_s = time.perf_counter() - started
        log.info("action.performed", action_id=id_, outcome=outcome, ms=round(took_s * 1000, 1))
        return True

    async def _step(self, conn: Connection, id_: str) -> str:
        row = await queries.action(conn, id=id_)
        if row is None or not row["is_due"]:
            return "not due any more"
        began = time.perf_counter()
        if (spans := tracing.spans) is None:
            outcome = await self._carried_out(conn, row)
        else:
            event_id = await queries.cause_of_action(conn, action=id_)
            with spans.step(row["realm"], event_id, id_, row["kind"]) as span:
                outcome = await self._carried_out(conn, row)
                span.set_attribute("finalsale.outcome", _class_of(outcome))
        counts.add("finalsale_perform_steps", row["kind"], _class_of(outcome))
        counts.observe("finalsale_perform_seconds", time.perf_counter() - began, row["kind"])
        return outcome

    async def _carried_out(self, conn: Connection, row: Any) -> str:
        id_ = row["id"]
        try:
            with tracing.child("last look"):
                ready = await self._ready(conn, row)
            failpoint("after_sending_commit")
            with tracing.child("send"):
                reply = await self._call(ready)
            failpoint("after_http")
            with tracing.child("commit"):
                await self._sent(conn, ready, reply)
        except Stopped as stopped:
            return str(stopped)
        except OutcomeUnknown as unknown:
            if unknown.replayed:  # and will be for the key's life: the next look comes later, and may take a new key
                await queries.age_key(conn, id=id_)
            at_least_s = NEW_KEY_AFTER_S if unknown.replayed else 0.0
            await self._postpone(conn, id_, f"outcome unknown, Stripe will be asked: {unknown}", at_least_s)
            return "outcome unknown"
        except StripeUnavailable as unavailable:
            await self._postpone(conn, id_, str(unavailable))
            return "stripe unavailable"
        except (StripeRefused, Unreadable) as refused:
            return await self._refused(conn, row, refused)
        except Overtaken:
            await self._postpone(conn, id_, "another worker was at the same facts")
            return "overtaken"
        except (DatabaseUnavailable, *UNAVAILABLE):
            raise
        except Exception as error:
            return await self._failed(conn, row, error)
        return "sent"

    async def _postpone(self, conn: Connection, id_: str, error: str, at_least_s: float = 0.0) -> None:
        await queries.postpone_action(conn, id=id_, error=error, at_least_s=at_least_s)

    async def _failed(self, conn: Connection, row: Any, error: Exception) -> str:
        """Something of ours is wrong with this one: it must not hold up the others, nor be tried for ever."""
        log.error("action.failed", action_id=row["id"], error=type(error).__name__, exc_info=error)
        why = f"{COULD_NOT} ({type(error).__name__})"
        if row["attempts"] >= MAX_FAILURES:
            async with conn.transaction():
                await self._to_person(conn, row, why)
        else:
            await self._postpone(conn, row["id"], why)
        return why

    async def _ready(self, conn: Connection, row: Any) -> Any:
        """The last look: read anew, judge anew, and in the same transaction commit that this is sent. Raises Stopped."""
        before = await self._in_force(conn, row)
        file = await self._file(conn, row, before.decision)
        looked_at = time.monotonic()
        facts = await self._read(_to_read(row, file, before.decision), _account(row["realm"]))
        failpoint("after_last_look")
        if found := _ours(row, facts):
            await self._adopt(conn, row, facts, found)
        async with conn.transaction():
            money = row["kind"] != ActionKind.CANCEL_SUBSCRIPTION
            undecided = (row["decision_subject"], row["kind"]) if money else None
            await settle(conn, self.court, row["realm"], facts, undecided=undecided)
            now_row = await queries.action_for_update(conn, id=row["id"])
            now = await self._in_force(conn, now_row)
            file = await self._file(conn, now_row, now.decision)
            why_not = await self._why_not(conn, now_row, before.decision, now, file)
            if why_not is None and time.monotonic() - looked_at > LOOK_KEEPS_S:
                why_not = "its turn came too late after the last look"
            if why_not is None and now_row["state"] == "sending" and not now_row["key_is_old"]:
                return now_row
            if why_not is None and now_row["generation"] >= MAX_KEYS:
                why_not = await self._to_person(
                    conn, now_row, f"Stripe did not carry it out under {MAX_KEYS} keys: {now_row['error']}"
                )
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

    async def _why_not(
        self, conn: Connection, row: Any, before: Decision, now: InForce, file: CustomerFile
    ) -> str | None:
        """Why this must not be sent after the last look; where a person is needed, the row is changed to say so."""
        if row["state"] not in ("planned", "sending"):
            return f"the last look changed it: {row['state']}"
        if not row["is_due"] or row["is_blocked"]:
            return "it is not its turn any more"
        if await queries.is_paused(conn):
            return "refunds are paused"
        if row["kind"] == ActionKind.CANCEL_SUBSCRIPTION and (ended := await self._ended_already(conn, row, file)):
            return ended
        again = row["kind"] != ActionKind.CANCEL_SUBSCRIPTION and row["first_sent_at"] is not None
        if again and (changed := await self._why_not_again(conn, row, now, file)):
            return changed
        if row["kind"] != ActionKind.CANCEL_SUBSCRIPTION and (dispute := _chargeback_on(file, row, now.decision)):
            # also against a person's yes: the bank would give back the one copy, and we the other, or the same one twice
            return await self._to_person(
                conn, row, f"the chargeback {dispute} is open: refund and chargeback never both, decide when it is over"
            )
        if row["first_sent_at"] is None and _answer(before) != _answer(now.decision):
            # rule 8: another answer stops it. What it says now has to be confirmed by a look of its own, and where
            # somebody gave back a part by hand, that has its time to settle too
            terms = self.court.policy.terms_for(CustomerId(row["customer"]), row["now_s"])
            settle_s = terms.duplicates.settle if terms else 0
            by_hand = [r.created for r in file.refunds.values() if r.charge == row["subject"]]
            wait_s = max([SECOND_LOOK_AFTER_S, *(created + settle_s - row["now_s"] for created in by_hand)])
            why = f"the last look found other facts: {now.decision.reason}"
            await self._postpone(conn, row["id"], why, float(wait_s))
            return why
        if self.court.refunds != "auto" and not row["approved_by"]:
            return await self._waits_for_yes(conn, row)
        if row["approved_by"] and row["state"] == "planned" and self._needs_another_name(row, now.decision):
            return await self._waits_for_yes(conn, row, "its amount needs a second person's yes")
        if row["kind"] == ActionKind.CANCEL_SUBSCRIPTION:
            return await self._why_not_cancel(conn, row, now.decision, file)
        if row["kind"] == ActionKind.REFUND and row["first_sent_at"] is None:
            return await self._why_not_so_much(conn, row, file)
        return None

    async def _why_not_again(self, conn: Connection, row: Any, now: InForce, file: CustomerFile) -> str | None:
        """What may have been sent before, and Stripe does not know: is it still wanted, and did nothing move meanwhile?"""
        key = (row["kind"], row["subject"])
        step = next((s for s in now.decision.prepared if (s.kind, s.subject) == key), None)
        wanted = step is not None and step.amount == Money(row["amount_minor"], row["currency"])
        agreed = now.id == row["decision_id"] or (wanted and now.decision.verdict is Verdict.REFUND)
        still = row["kind"] != "refund" or refunded_minor_of(file, row["subject"]) == row["refunded_before_minor"]
        read = file.balances.get(f"{BALANCE_READ_PREFIX}{row['customer']}")
        whole = row["kind"] != ActionKind.REVERSE_BALANCE_CREDIT or (read is not None and read.complete)
        if agreed and still and whole:
            return None
        return await self._to_person(
            conn, row, f"its outcome was unknown, and the facts changed meanwhile: {now.decision.reason}"
        )

    def _needs_another_name(self, row: Any, decision: Decision) -> bool:
        """Rule 9, by this worker's own policy: whoever approved may have read another file."""
        if row["kind"] != ActionKind.REFUND or len({name.strip().casefold() for name in row["approved_by"]}) > 1:
            return False
        versions = {version.id: version for version in self.court.policy.version}
        held = versions.get(decision.policy_version)
        terms = self.court.policy.terms_for(CustomerId(row["customer"]), row["now_s"])
        limits = [rules.refunds.two_persons.get(row["currency"]) for rules in (held, terms) if rules is not None]
        return not limits or any(limit is None or row["amount_minor"] > limit for limit in limits)

    async def _waits_for_yes(self, conn: Connection, row: Any, why: str = "refunds wait for a person's yes") -> str:
        """FINALSALE_REFUNDS=review, rule 10: what was planned while it was `auto` waits for a person now."""
        if row["first_sent_at"] is not None:
            again = "its outcome was unknown" if row["state"] == "sending" else "it was refused before"
            return await self._to_person(conn, row, f"{again}, and {why}")
        subject = row["decision_subject"]
        await queries.wait_for_person(conn, realm=row["realm"], decision_subject=subject, step=row["step"], error=why)
        return why

    async def _why_not_so_much(self, conn: Connection, row: Any, file: CustomerFile) -> str | None:
        """No more than is left on the charge, whoever wants it; and without a person's yes no more than the day allows (rule 6).

        The day's sum is serialized, so that two workers cannot pass together.
        """
        payment = next((p for p in payments_of(file, frozenset(), test_clocks=True) if p.id == row["subject"]), None)
        if payment is None or payment.currency != row["currency"] or payment.left_minor < row["amount_minor"]:
            return await self._to_person(conn, row, f"less than that is left on {row['subject']}")
        if row["approved_by"]:
            return None
        await conn.execute("select pg_advisory_xact_lock($1)", lock_number(f"day {row['realm']} {row['currency']}"))
        spent = await queries.refunded_today(conn, realm=row["realm"], currency=row["currency"], id=row["id"])
        terms = self.court.policy.terms_for(CustomerId(row["customer"]), row["now_s"])
        limit = terms.refunds.per_day.get(row["currency"], 0) if terms else 0
        if spent + row["amount_minor"] <= limit:
            return None
        return await self._to_person(conn, row, f"the day's limit of {Money(limit, row['currency'])} is reached")

    async def _ended_already(self, conn: Connection, row: Any, file: CustomerFile) -> str | None:
        subscription = file.subscriptions.get(row["subject"])
        if subscription is None or subscription.alive:
            return None
        await queries.already_true(conn, id=row["id"], stripe_id=row["subject"], stripe_status=subscription.status)
        return "it had ended already"

    async def _why_not_cancel(self, conn: Connection, row: Any, decision: Decision, file: CustomerFile) -> str | None:
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
            if row["kind"] == "refund" and reply.status in GONE_WRONG:
                await self._to_person(conn, row, _owed(reply.id, reply.status or ""))
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
        account = _account(row["realm"])
        try:
            known: Sequence[AnyFact] = []
            if row["kind"] == ActionKind.REFUND:
                known = await self._list("/v1/refunds", {"charge": row["subject"]}, account)
            elif row["kind"] == ActionKind.REVERSE_BALANCE_CREDIT:
                known = await self._balance(row["customer"], account)
            if found := _ours(row, known):
                await self._adopt(conn, row, known, found)
        except Stopped as stopped:
            return str(stopped)
        except StripeUnavailable:
            await self._postpone(conn, row["id"], str(refused))
            return "stripe unavailable"
        except (StripeRefused, Unreadable):
            log.warning("action.unseen", action_id=row["id"])  # then nobody can say more than that it was refused
        async with conn.transaction():
            await self._to_person(conn, row, f"Stripe refused: {refused}")
        return "refused"

    async def _adopt(self, conn: Connection, row: Any, facts: Sequence[AnyFact], found: tuple[str, str]) -> None:
        """What was sent into silence is at Stripe: commit it as the result. Raises Stopped, for nothing is left to send."""
        stripe_id, status = found
        async with conn.transaction():
            await queries.already_true(conn, id=row["id"], stripe_id=stripe_id, stripe_status=status)
            await settle(conn, self.court, row["realm"], facts)
            if status in GONE_WRONG:
                await self._to_person(conn, row, _owed(stripe_id, status))
        raise Stopped(f"adopted {stripe_id}")

    async def _in_force(self, conn: Connection, row: Any) -> InForce:
        found = await queries.decision_of_action(conn, realm=row["realm"], subject=row["decision_subject"])
        return InForce(found["id"], msgspec.json.decode(found["body"], type=Decision))

    async def _file(self, conn: Connection, row: Any, decision: Decision) -> CustomerFile:
        named = {decision.original, decision.duplicate, row["subject"], *(step.subject for step in decision.prepared)}
        owners = await conn.fetch(queries.owners.sql, row["realm"], [id_ for id_ in named if id_])
        customers = sorted({owner["customer"] for owner in owners} | {decision.customer})
        objects = await conn.fetch(queries.load_objects.sql, row["realm"], customers)
        return CustomerFile(decode(known["body"]) for known in objects)

    async def _read(self, reads: Reads, account: str | None) -> list[AnyFact]:
        """Everything of a last look, side by side. Any read that fails fails the look: nothing is sent half-seen."""
        jobs: list[Coroutine[Any, Any, Sequence[AnyFact]]] = []
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
            jobs += [
                self._object(f"/v1/payment_intents/{intent}", account),
                self._list("/v1/invoice_payments", asked, account),
                self._list("/v1/checkout/sessions", {"payment_intent": intent}, account),
            ]
        for id_ in sorted(reads.subscriptions):
            jobs += [
                self._object(f"/v1/subscriptions/{id_}", account),
                self._list("/v1/checkout/sessions", {"subscription": id_}, account),
            ]
        jobs += [self._balance(id_, account) for id_ in sorted(reads.balances)]
        facts = [fact for found in await _side_by_side(jobs) for fact in found]
        latest = {f.latest_invoice for f in facts if isinstance(f, Subscription) and f.latest_invoice} - reads.invoices
        newer = await _side_by_side(self._newer_invoice(id_, account) for id_ in sorted(latest))
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
        """Read what the rules or a thin event asked for, and let it in through the same door. Raises DatabaseUnavailable."""
        if not self.gateway.connected or self.stopping:
            return 0
        async with connection(self.pool) as conn:
            rows = await conn.fetch(queries.take_lookups.sql, self.realms, READS_SIDE_BY_SIDE)
        await _side_by_side(self._look_up(row) for row in rows)
        return len(rows)

    async def _look_up(self, row: Any) -> None:
        account, key = _account(row["realm"]), {"realm": row["realm"], "kind": row["kind"], "id": row["id"]}
        try:
            if row["kind"] == "balance":
                facts = await self._balance(row["id"], account)
            elif row["kind"] == "session_lines":
                async with self._reading:
                    facts = [await self.gateway.read_session_lines(SessionId(row["id"]), account)]
            else:
                facts = await self._object(row["url"], account)
                if facts[0].id != row["id"]:
                    raise Unreadable(row["kind"], row["id"], f"{row['kind']}.id", "is another object's")
            async with connection(self.pool) as conn, conn.transaction():
                await settle(conn, self.court, row["realm"], facts)
                await queries.lookup_done(conn, **key, wanted_at=row["wanted_at"])
        except DatabaseUnavailable:
            raise
        except Exception as error:
            definite = isinstance(error, (StripeRefused, Unreadable))
            ours = definite or isinstance(error, StripeUnavailable)
            async with connection(self.pool) as conn:
                said = str(error) if ours else type(error).__name__
                await queries.lookup_failed(conn, **key, error=said, definite=definite)
            log.warning("lookup.failed", kind=row["kind"], id=row["id"], error=type(error).__name__, definite=definite)


async def _side_by_side(jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. When one fails, none of the others goes on behind the back of whoever waits."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _to_read(row: Any, file: CustomerFile, decision: Decision) -> Reads:
    """What the decision rests on, and this step's own subject, whatever the decision says by now."""
    reads = last_look(file, decision)
    match ActionKind(row["kind"]):
        case ActionKind.REFUND:
            return msgspec.structs.replace(reads, charges=reads.charges | {row["subject"]})
        case ActionKind.CANCEL_SUBSCRIPTION:
            return msgspec.structs.replace(reads, subscriptions=reads.subscriptions | {row["subject"]})
        case ActionKind.REVERSE_BALANCE_CREDIT:
            return msgspec.structs.replace(reads, balances=reads.balances | {row["customer"]})


def _answer(decision: Decision) -> tuple[Any, ...]:
    """What a decision says, without the words."""
    return decision.rule, decision.verdict, decision.original, decision.duplicate, decision.amount, decision.prepared


def _chargeback_on(file: CustomerFile, row: Any, decision: Decision) -> str | None:
    """An open chargeback on either copy. An inquiry is none: a full refund ends it, and that is a person's to say."""
    copies = {row["subject"], decision.original, decision.duplicate} - {None}
    intents = {file.charges[id_].payment_intent for id_ in copies if id_ in file.charges} - {None}
    on_them = (d for d in file.disputes.values() if d.charge in copies or d.payment_intent in intents)
    return min((d.id for d in on_them if stage_of(d.status) in (Stage.OPEN, Stage.APPEAL)), default=None)


_CLASSES = {
    "sent": "sent",
    "outcome unknown": "in_doubt",
    "stripe unavailable": "unavailable",
    "refused": "refused",
    "overtaken": "overtaken",
}


def _class_of(outcome: str) -> str:
    """A step's outcome as one of a few words: what stopped it is told in sentences, which are no labels."""
    if outcome.startswith("adopted "):
        return "adopted"
    return "failed" if outcome.startswith(COULD_NOT) else _CLASSES.get(outcome, "stopped")


def _owed(refund: str, status: str) -> str:
    return f"the refund {refund} {status}: the duplicate is owed again, by another way, unless a dispute gives it back"


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


def _account(realm: str) -> str | None:
    return realm.partition(":")[2] or None
