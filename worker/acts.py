"""What operators do about one customer: suspend, lift, keep, extend, grant (4.1, 7), each with a name and a reason, for ever.

An act is a fact for the rules like Stripe's. It is written under the customer's lock together with a wake-up, and a worker
judges the file anew within seconds: by its own policy and settings, which the shell of whoever acts need not have.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import structlog

from handlers.account import OPERATOR_HOLD, Account, Act, ActKind
from handlers.customer import CustomerId, Dispute, DisputeId, Seconds, SubscriptionId, at, decode
from handlers.decisions import as_json
from worker import audit
from worker.db import Connection, queries
from worker.reading import Document, NotFound, fetch
from worker.review import ActRefused, named, said_why
from worker.settle import lock_number

MAX_CREDITS = 1_000_000_000
MAX_DAYS = 3660
"""Ten years: longer is a slip of the finger."""
MAX_WORD = 200
"""Characters of a case number or an idempotency key."""

log = structlog.get_logger()


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants done about a customer; what of it is needed depends on the kind."""

    kind: ActKind
    customer: str
    by: str
    reason: str
    case: str | None = None
    key: str | None = None
    """The caller's own: the same wish under the same key is carried out once."""
    dispute: str | None = None
    subscription: str | None = None
    credits: int = 0
    until: datetime | None = None
    days: int | None = None
    """EXTEND: so many days after its present end, or from now where that has passed."""


async def carry_out(conn: Connection, realms: Sequence[str], wish: Wish, *, via: str = "cli") -> Document:
    """Write the act down, for a worker to judge the customer anew. Must run inside a transaction.

    Raises NotFound (customer, dispute or subscription), ActRefused (no name or reason, nothing to do, another act under
    the key).
    """
    wish = _checked(wish)
    realm = await realm_of_customer(conn, realms, wish.customer)
    await queries.lock_keys(conn, keys=[lock_number(f"{realm} {wish.customer}")])
    known = [
        msgspec.json.decode(row["body"], type=Act)
        for row in await conn.fetch(queries.acts_of.sql, realm, [wish.customer])
    ]
    id_ = _id(realm, wish)
    before = next((act for act in known if act.id == id_), None)
    if before is not None:
        _refuse_if_another(before, wish)
        return await outcome(conn, realm, before, repeated=True)
    moment: datetime = await queries.moment_of(conn, realm=realm)
    act = await _act(conn, realm, wish, id_, known, max([int(moment.timestamp()), *(act.at + 1 for act in known)]))
    saved = await queries.save_operator_act(
        conn, id=act.id, realm=realm, customer=act.customer, kind=str(act.kind), body=as_json(act)
    )
    assert saved is not None, "an act's id is looked for under the customer's lock"
    await queries.wake_later(conn, realm=realm, customer=act.customer, due_at=moment)
    await _record(conn, realm, act, via)
    log.info(
        "act.done", act_id=act.id, kind=str(act.kind), customer=act.customer, subject=act.dispute or act.subscription
    )
    return await outcome(conn, realm, act, repeated=False)


async def _record(conn: Connection, realm: str, act: Act, via: str) -> None:
    row = await queries.account_now(conn, realm=realm, customer=act.customer)
    facts = {"dispute": act.dispute, "subscription": act.subscription, "credits": act.credits, "until": act.until}
    await audit.record(
        conn,
        realm,
        by=act.by,
        via=via,
        act=f"customers.{act.kind}",
        subject=act.customer,
        reason=act.reason,
        before={"standing": row["standing"], "access_until": row["access_until"]} if row else None,
        after={"id": act.id, "case": act.case, **{name: told for name, told in facts.items() if told}},
    )


async def seen(conn: Connection, realms: Sequence[str], document: Document) -> Document:
    """What `carry_out` returned, as it stands now. Raises NotFound."""
    realm = await realm_of_customer(conn, realms, document["customer"])
    for row in await conn.fetch(queries.acts_of.sql, realm, [document["customer"]]):
        act = msgspec.json.decode(row["body"], type=Act)
        if act.id == document["id"]:
            return await outcome(conn, realm, act, repeated=document["repeated"])
    raise NotFound(f"There is no act {document['id']}.")


async def realm_of_customer(conn: Connection, realms: Sequence[str], customer: str) -> str:
    """The realm in which a customer is known. Raises NotFound."""
    rows = await fetch(conn, queries.realms_of_customer, realms=list(realms), customer=customer)
    if not rows:
        raise NotFound(
            f"No customer {customer} is known; `finalsale explain ID` finds whose a charge or subscription is."
        )
    return str(rows[0]["realm"])


def _id(realm: str, wish: Wish) -> str:
    if wish.key is None:
        return f"oact_{secrets.token_hex(12)}"
    return "oact_" + hashlib.sha256(f"{realm} {wish.customer} {wish.key}".encode()).hexdigest()[:24]


async def _act(conn: Connection, realm: str, wish: Wish, id_: str, known: list[Act], at_: Seconds) -> Act:
    """The act that a wish comes to, by what is true now. `at_` is later than every act before: their order is their meaning."""
    row = await queries.account_now(conn, realm=realm, customer=wish.customer)
    account = msgspec.json.decode(row["body"], type=Account) if row else Account(customer=CustomerId(wish.customer))
    facts: dict[str, Any] = {}
    match wish.kind:
        case ActKind.SUSPEND:
            if held := _operators_hold(known):
                raise ActRefused(
                    f"{wish.customer} is suspended by an operator already: by {held.by} since {_iso(held.at)} ({held.reason})."
                )
        case ActKind.LIFT | ActKind.KEEP:
            facts = await _about_hold(conn, realm, wish, account, known)
        case ActKind.EXTEND:
            facts = _extension(wish, account, at_)
        case ActKind.GRANT:
            until = int(wish.until.timestamp()) if wish.until is not None else None
            if until is not None and until <= at_:
                raise ActRefused("The credits would end before they begin: --until lies in the past.")
            facts = {"credits": wish.credits, "until": until}
    return Act(
        id=id_,
        kind=wish.kind,
        customer=account.customer,
        at=at_,
        by=wish.by,
        reason=wish.reason,
        case=wish.case,
        **facts,
    )


def _operators_hold(known: Sequence[Act]) -> Act | None:
    """The operators' own hold by the acts alone: whether or not a worker has judged the last of them yet."""
    kinds = (ActKind.SUSPEND, ActKind.LIFT)
    last = next((act for act in reversed(known) if act.kind in kinds and act.dispute is None), None)
    return last if last is not None and last.kind is ActKind.SUSPEND else None


async def _about_hold(
    conn: Connection, realm: str, wish: Wish, account: Account, known: Sequence[Act]
) -> dict[str, Any]:
    """What a lift or keep is about. A lift without a dispute is about the operator's own hold."""
    held = {hold.subject for hold in account.holds}
    disputes = ", ".join(sorted(held - {OPERATOR_HOLD})) or "none"
    if wish.dispute is None:
        if _operators_hold(known) is None:
            raise ActRefused(
                f"No operator suspended {wish.customer}, so there is nothing to lift. Holds of disputes: {disputes}; lift one "
                "with --dispute."
            )
        return {}
    rows = await fetch(conn, queries.find_objects, realms=[realm], ids=[wish.dispute])
    fact = decode(rows[0]["body"]) if rows and rows[0]["customer"] == wish.customer else None
    if not isinstance(fact, Dispute):
        raise NotFound(f"{wish.customer} has no dispute {wish.dispute}. Disputes that hold: {disputes}.")
    last = next((a for a in reversed(known) if a.dispute == fact.id and a.kind in (ActKind.LIFT, ActKind.KEEP)), None)
    if wish.kind is ActKind.LIFT and fact.id not in held:
        raise ActRefused(f"{fact.id} holds nothing, so there is nothing to lift: its status is {fact.status}.")
    if wish.kind is ActKind.KEEP and last is not None and last.kind is ActKind.KEEP:
        raise ActRefused(f"The hold of {fact.id} is kept already, by {last.by} since {_iso(last.at)}.")
    return {"dispute": DisputeId(fact.id), "status": fact.status if wish.kind is ActKind.LIFT else ""}


def _extension(wish: Wish, account: Account, now: Seconds) -> dict[str, Any]:
    access = next((a for a in account.access if a.subscription == wish.subscription), None)
    if access is None:
        theirs = ", ".join(a.subscription for a in account.access) or "none"
        raise NotFound(f"{wish.customer} has no subscription {wish.subscription}; there are: {theirs}.")
    known = access.until or now
    begins = max(known, now)
    until = int(wish.until.timestamp()) if wish.until is not None else begins + (wish.days or 0) * 86_400
    if until <= begins:
        raise ActRefused(
            f"{access.subscription} serves until {_iso(known)} already: an extension ends later than that and than now."
        )
    if until > now + MAX_DAYS * 86_400:
        raise ActRefused(f"An extension until {_iso(until)} is more than ten years: check --until or --days.")
    return {"subscription": SubscriptionId(access.subscription), "until": until}


def _refuse_if_another(before: Act, wish: Wish) -> None:
    """The key was used: is it the same wish? Words may differ, what is done may not."""
    same = (before.kind, before.dispute, before.subscription, before.credits) == (
        wish.kind,
        wish.dispute,
        wish.subscription,
        wish.credits,
    )
    asked = int(wish.until.timestamp()) if wish.until is not None else None
    if not same or (asked is not None and asked != before.until):
        raise ActRefused(f"The key {wish.key} was used before, for another act: {before.id} ({before.kind}).")


async def outcome(conn: Connection, realm: str, act: Act, *, repeated: bool) -> Document:
    """An act and what the books say of its customer; `judged` is false while a worker has still to look."""
    row = await queries.account_now(conn, realm=realm, customer=act.customer)
    account = msgspec.json.decode(row["body"], type=Account) if row else Account(customer=act.customer)
    return {
        "id": act.id,
        "act": str(act.kind),
        "customer": act.customer,
        "by": act.by,
        "reason": act.reason,
        "case": act.case,
        "at": at(act.at),
        "dispute": act.dispute,
        "subscription": act.subscription,
        "credits": act.credits or None,
        "until": at(act.until) if act.until is not None else None,
        "repeated": repeated,
        "judged": not await queries.is_to_be_judged(conn, realm=realm, customer=act.customer),
        "standing": str(account.standing),
        "holds": [{"subject": hold.subject, "cause": hold.cause, "suspends": hold.suspends} for hold in account.holds],
        "access_until": at(account.access_until) if account.access_until is not None else None,
        "credits_left": await queries.credits_left(conn, realm=realm, customer=act.customer),
    }


def _checked(wish: Wish) -> Wish:
    """The same wish with its words trimmed. Raises ActRefused where a person has to say more, or something else."""
    reason = said_why(wish.reason)
    if not reason:
        raise ActRefused("Say why with --reason TEXT; it is kept with the act.")
    for name, word in (("--case", wish.case), ("--key", wish.key)):
        if word is not None and not (0 < len(word) <= MAX_WORD and word.isprintable()):
            raise ActRefused(f"{name} is a word of up to {MAX_WORD} characters.")
    if wish.kind is ActKind.KEEP and wish.dispute is None:
        raise ActRefused("Say which dispute's hold is kept: --dispute DP.")
    if wish.kind is ActKind.GRANT and not 0 < wish.credits <= MAX_CREDITS:
        raise ActRefused(f"--credits is a whole number of credits, 1 to {MAX_CREDITS}.")
    if wish.kind is ActKind.EXTEND:
        if wish.subscription is None or (wish.until is None) == (wish.days is None):
            raise ActRefused("Say which --subscription is extended, and either --until TIME or --days N.")
        if wish.days is not None and not 0 < wish.days <= MAX_DAYS:
            raise ActRefused(f"--days is a number of days, 1 to {MAX_DAYS}.")
    return msgspec.structs.replace(wish, by=named(wish.by), reason=reason)


def _iso(seconds: Seconds) -> str:
    return f"{at(seconds):%Y-%m-%d %H:%M:%S} UTC"


# credits -----------------------------------------------------------------------------------------------------------------


async def consume(conn: Connection, realms: Sequence[str], customer: str, credits_: int, key: str) -> Document:
    """Consume credits as the app does, once per key. Must run inside a transaction. Raises NotFound, ActRefused."""
    if not 0 < credits_ <= MAX_CREDITS:
        raise ActRefused(f"--credits is a whole number of credits, 1 to {MAX_CREDITS}.")
    if not (0 < len(key) <= MAX_WORD and key.isprintable()):
        raise ActRefused(f"--key is a word of up to {MAX_WORD} characters: the same key consumes once.")
    realm = await realm_of_customer(conn, realms, customer)
    row = await queries.consume_by_hand(conn, realm=realm, customer=customer, key=key, credits=credits_)
    match row["outcome"]:
        case "insufficient":
            raise ActRefused(f"{customer} has {row['available']} credits, not {credits_}. Nothing was consumed.")
        case "suspended":
            raise ActRefused(
                f"{customer} is suspended; `finalsale customers show {customer}` says why. Nothing was consumed."
            )
        case "other_amount":
            raise ActRefused(f"The key {key} consumed {row['consumed']} credits before. Nothing was consumed now.")
    return {"customer": customer, "key": key, **row}


async def credits_of(conn: Connection, realms: Sequence[str], customer: str, at_: datetime | None = None) -> Document:
    """Every lot and entry of a customer with running balances, as they were recorded by `at_` (now where it is None).

    `effective` is what was left at that moment by all that is known today: an end that was learned late is in it.
    Raises NotFound.
    """
    realm = await realm_of_customer(conn, realms, customer)
    lots = await fetch(conn, queries.read_lots, realm=realm, customer=customer)
    entries = await fetch(conn, queries.read_entries, realm=realm, customer=customer)
    moment: datetime = at_ or await queries.moment_of(conn, realm=realm)
    recorded = [entry for entry in entries if at_ is None or entry["recorded_at"] <= at_]
    balance = 0
    lines: list[Document] = []
    left = {lot["id"]: 0 for lot in lots}
    for entry in recorded:
        balance += entry["amount"]
        left[entry["lot"]] += entry["amount"]
        lines.append({**entry, "left_in_lot": left[entry["lot"]], "balance": balance})
    effective = {lot["id"]: 0 for lot in lots}
    for entry in entries:
        if entry["effective_at"] <= moment:
            effective[entry["lot"]] += entry["amount"]
    seen = {entry["lot"] for entry in recorded}
    told = [_lot_document(lot, recorded, effective[lot["id"]], moment) for lot in lots if lot["id"] in seen]
    return {
        "customer": customer,
        "at": at_,
        "balance": balance,
        "available": sum(lot["available"] for lot in told),
        "effective": sum(effective.values()),
        "lots": told,
        "entries": lines,
    }


def _lot_document(lot: Any, recorded: Sequence[Any], effective: int, moment: datetime) -> Document:
    """A lot with its sums by what was recorded; of what is left, nothing is available once it has ended."""
    sums = dict.fromkeys(("granted", "consumed", "expired", "forfeited", "taken_back"), 0)
    for entry in recorded:
        if entry["lot"] == lot["id"]:
            sums[entry["kind"]] += entry["amount"] if entry["kind"] == "granted" else -entry["amount"]
    left = sums["granted"] - sum(gone for kind, gone in sums.items() if kind != "granted")
    open_ = lot["ends_at"] is None or lot["ends_at"] > moment
    return {
        **{name: lot[name] for name in ("id", "kind", "clause", "granted_at", "ends_at", "cause")},
        **sums,
        "remaining": left,
        "available": left if open_ else 0,
        "effective": effective,
    }
