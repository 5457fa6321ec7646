"""What books hold in the end, in forms in which two sets of them, or they and the sandbox's, are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from handlers.customer import decode, encode
from handlers.decisions import Decision
from reconcile.truth import Check, RefundAtStripe, RefundDecided, compare_refunds
from tests.night_place import Books
from tests.year_played import equal, none
from worker.db import Pool


class Held(msgspec.Struct):
    """Books in a form that two runs over the same harm must leave equal, whenever they looked."""

    objects: dict[str, bytes]
    decisions: dict[str, tuple[str, ...]]
    """By subject: verdict, amount, original and reason in force."""
    actions: dict[str, tuple[Any, ...]]
    credits: dict[str, tuple[Any, ...]]
    standing: dict[str, str]


async def held(pool: Pool) -> Held:
    """Everything in a database that Stripe's facts decide."""
    rows = await pool.fetch("select id, customer, body from objects where unknown_since is null")
    objects = {}
    for row in rows:
        fact = decode(row["body"])
        gathered = dict.fromkeys(fact.GATHERED, ())
        objects[row["id"]] = encode(msgspec.structs.replace(fact, as_of=0, **gathered)) + str(row["customer"]).encode()
    actions = await pool.fetch("select * from actions where state <> 'withdrawn'")
    lots = await pool.fetch("select id, granted, consumed, expired, forfeited, taken_back from lots")
    accounts = await pool.fetch("select customer, standing from accounts")
    return Held(
        objects=objects,
        decisions=await decided(pool),
        actions={row["id"]: (row["kind"], row["subject"], row["amount_minor"], row["state"]) for row in actions},
        credits={row["id"]: tuple(row)[1:] for row in lots},
        standing={row["customer"]: row["standing"] for row in accounts},
    )


async def decided(pool: Pool) -> dict[str, tuple[str, ...]]:
    """The decision in force about every subject. Its id is left out: it counts what was decided on the way there."""
    rows = await pool.fetch("select distinct on (subject) body from decisions order by subject, revision desc")
    found: dict[str, tuple[str, ...]] = {}
    for row in rows:
        said = msgspec.json.decode(row["body"], type=Decision)
        if said.reason.startswith("Withdrawn:"):
            continue  # as if it had never been said
        found[said.subject] = (str(said.verdict), str(said.amount), str(said.original), said.reason)
    return found


async def refund_ids(pool: Pool) -> dict[str, str]:
    """Subject and id of each decision that a payment goes back, as long as nothing else was ever decided about it."""
    rows = await pool.fetch(
        "select subject, min(id) as id from decisions group by subject having count(*) = 1 and min(verdict) = 'refund'"
    )
    return {row["subject"]: row["id"] for row in rows}


def same_books(name: str, ours: Held, theirs: Held) -> Check:
    """Whether two sets of books say the same; the figure shows the first differences."""
    wrong = []
    for part in Held.__struct_fields__:
        check = equal(part, getattr(ours, part), getattr(theirs, part))
        wrong += [] if check.ok else [f"{part}: {check.figure}"]
    return none(name, wrong, f"{len(ours.objects)} objects, {len(ours.decisions)} decisions, {len(ours.credits)} lots")


async def refunds_once(kept: Books) -> list[Check]:
    """Our refunds against the sandbox's."""
    at_stripe = (await kept.place.stripe.ask("books"))["objects"]["refund"]
    rows = await kept.pool.fetch(
        """select a.*, d.body from actions a join decisions d on d.id = a.decision_id
           where a.kind = 'refund' and a.stripe_id is not null"""
    )
    failed = {refund["id"] for refund in at_stripe if refund["status"] in ("failed", "canceled")}
    sent = [
        RefundDecided(
            action=row["id"],
            charge=row["subject"],
            original=msgspec.json.decode(row["body"], type=Decision).original,
            amount_minor=row["amount_minor"],
            currency=row["currency"],
            stripe_id=row["stripe_id"],
        )
        for row in rows
        if row["stripe_id"] not in failed
    ]
    return compare_refunds(sent, map(_at_stripe, at_stripe))


def _at_stripe(refund: Mapping[str, Any]) -> RefundAtStripe:
    return RefundAtStripe(
        id=refund["id"],
        charge=refund["charge"],
        amount_minor=refund["amount"],
        currency=refund["currency"],
        status=refund["status"],
        action=(refund["metadata"] or {}).get("finalsale_action"),
    )
