"""Closing a year's books: our tables against Stripe's, against what the year knows it did, and against the app's own memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import msgspec

from handlers.account import OPERATOR_HOLD, Account
from handlers.decisions import Decision
from handlers.terms import Policy
from reconcile.truth import Check, Expected, Outcome, RefundAtStripe, RefundDecided, compare_refunds, compare_truth
from tests.year_credits import Credits
from tests.year_played import Heard, Played, Said, equal, none, same
from worker.db import Connection

NO_HOLD = ("won", "prevented", "warning_needs_response", "warning_under_review", "warning_closed")
"""Statuses of a dispute that hold nobody; every other one does, also one that nobody knows (7)."""


async def close_books(
    conn: Connection, stripe: dict[str, Any], played: Played, policy: Policy, said: Said, heard: list[Heard]
) -> list[Check]:
    """Everything that must hold at the end of a year."""
    decided = {
        row["subject"]: msgspec.json.decode(row["body"], type=Decision)
        for row in await conn.fetch(
            "select distinct on (subject) subject, body from decisions order by subject, revision desc"
        )
    }
    credits_ = Credits(conn, stripe["books"], played, policy)
    year = _Year(conn, stripe["books"], stripe["known"], played, policy, decided)
    return [
        *await year.events(stripe["events"]),
        *await year.money(),
        *await credits_.ledger(),
        *await credits_.grants(),
        *await credits_.outages(),
        *await year.standing(),
        *year.found(),
        *await year.app(said, heard),
        *await year.clauses(),
    ]


class _Year:
    def __init__(
        self,
        conn: Connection,
        books: dict[str, Any],
        known: dict[str, Any],
        played: Played,
        policy: Policy,
        decided: dict[str, Decision],
    ) -> None:
        self.conn, self.books, self.known = conn, books, known
        self.played, self.policy, self.decided = played, policy, decided

    # events and money

    async def events(self, events: dict[str, list[str]]) -> list[Check]:
        stored = {row["event_id"]: row["state"] for row in await self.conn.fetch("select event_id, state from inbox")}
        acknowledged, states = set(events["acknowledged"]), Counter(stored.values())
        lost = acknowledged - stored.keys()
        return [
            Check(
                name="no acknowledged event lost",
                ok=not lost and not events["waiting"] and len(acknowledged) == len(stored),
                figure=f"{len(acknowledged)} acknowledged, {len(stored)} stored, {len(events['waiting'])} without a 2xx",
            ),
            Check(
                name="every event worked off",
                ok=set(states) == {"done"},
                figure=", ".join(f"{count} {state}" for state, count in sorted(states.items())),
            ),
        ]

    async def money(self) -> list[Check]:
        """What went back: at Stripe, as decided, and as the year knows it should."""
        actions = await self.conn.fetch("select * from actions where stripe_id is not null")
        sent = {(row["decision_subject"], row["kind"]): row for row in actions}
        refunds = [row for row in actions if row["kind"] == "refund"]
        failed = {
            r["id"] for r in self.books["refunds"] if r["status"] == "failed" and r["metadata"].get("finalsale_action")
        }
        in_doubt = {row["stripe_id"] for row in refunds if row["state"] != "sent"}
        truth = msgspec.convert(self.known["cases"], list[Expected])
        originals = {row.duplicate: row.original for row in truth}
        decided = [
            RefundDecided(
                action=row["id"],
                charge=row["subject"],
                original=originals.get(row["subject"]),
                amount_minor=row["amount_minor"],
                currency=row["currency"],
                stripe_id=row["stripe_id"],
            )
            for row in refunds
            if row["state"] == "sent"
        ]
        expected = {row.duplicate: row.expect for row in truth}
        outcomes = {}
        for subject in {*expected, *(row["subject"] for row in refunds)}:
            now = expected.get(subject) == "refund" or subject not in expected
            decision = (self.decided if now else self.played.evening).get(subject or "")
            refund, cancel = sent.get((subject, "refund")), sent.get((subject, "cancel_subscription"))
            outcomes[subject or ""] = Outcome(
                verdict=str(decision.verdict) if decision else "none",
                original=decision.original if decision else None,
                refunded_minor=refund["amount_minor"] if refund else 0,
                canceled=cancel["subject"] if cancel else None,
                reversed=(subject, "reverse_balance_credit") in sent,
            )
        return [
            *compare_refunds(decided, map(_at_stripe, self.books["refunds"])),
            *compare_truth(truth, outcomes),
            same("refunds that failed wait for a person", in_doubt, failed),
        ]

    # standing

    async def standing(self) -> list[Check]:
        """The holds that Stripe's books and the operators' acts make, and what the policy makes of them."""
        expected: dict[str, set[str]] = defaultdict(set)
        for customer in self.played.suspended:
            expected[customer].add(OPERATOR_HOLD)
        suspended = set(self.played.suspended)
        for dispute in self.books["disputes"]:
            id_, status, customer = dispute["id"], dispute["status"], dispute["customer"]
            forgiven = id_ in self.played.lifted and status == "lost"
            if id_ in self.played.kept or (status not in NO_HOLD and not forgiven):
                expected[customer].add(id_)
                terms = self.policy.terms_for(customer, dispute["paid"])
                if terms is not None and terms.chargebacks.on_chargeback == "suspend":
                    suspended.add(customer)
        accounts = [
            msgspec.json.decode(row["body"], type=Account) for row in await self.conn.fetch("select body from accounts")
        ]
        holds = {a.customer: {h.subject for h in a.holds} for a in accounts if a.holds}
        wrong = {
            a.customer
            for a in accounts
            if (str(a.standing) == "suspended") != (a.customer in suspended)
            or (str(a.standing) == "good") != (a.customer not in expected)
        }
        acts = await self.conn.fetchval("select count(*) from acts")
        return [
            equal("holds = open chargebacks, customer by customer", holds, dict(expected)),
            Check(
                name="every act of an operator is written down",
                ok=acts == self.played.acts,
                figure=f"{acts}: {len(self.played.lifted)} lifted, {len(self.played.kept)} kept, {self.played.granted} credits granted",
            ),
            none("standing follows the policy and agreement of the payment", wrong, f"{len(suspended)} suspended"),
        ]

    # findings

    def found(self) -> list[Check]:
        def of(rule: str) -> set[str]:
            return {id_ for id_, d in self.decided.items() if d.rule == rule and d.verdict in ("review", "deny")}

        warned = {id_ for id_, d in self.decided.items() if d.rule == "early_fraud_warning"}
        return [
            same(
                "charges after cancellation found = seeded",
                of("charge_after_cancellation"),
                self.known["charged_after_end"],
            ),
            same("prorations at the end found = seeded", of("proration_after_cancellation"), self.known["prorated"]),
            same("out-of-policy refunds found = seeded", of("out_of_policy_refund"), self.known["by_hand"]),
            Check(
                name="early fraud warnings noted",
                ok=set(self.known["warnings"]) <= warned,
                figure=f"{len(warned)} noted, {len(self.known['warnings'])} seeded besides the cases",
            ),
        ]

    # the merchant's app

    async def app(self, said: Said, heard: list[Heard]) -> list[Check]:
        rows = await self.conn.fetch("select customer, key, amount from consumptions")
        booked = {(row["customer"], row["key"]): row["amount"] for row in rows}
        posted = {
            (row["customer"], row["key"]): row["taken"]
            for row in await self.conn.fetch(
                "select customer, key, -sum(amount)::bigint as taken from entries where kind = 'consumed' group by customer, key"
            )
        }
        meanwhile = await self.conn.fetchval(
            """select count(*) from consumptions c where 'suspended' = (
                   select became from standing_changes s where s.realm = c.realm and s.customer = c.customer
                   and s.changed_at <= c.consumed_at order by s.id desc limit 1)"""
        )
        outcomes = ", ".join(f"{many} {name}" for name, many in sorted(said.outcomes.items()))
        return [
            equal("consumed = what the app was told, key by key", booked, said.consumed, more=outcomes),
            equal("consumption entries = consumptions", posted, booked),
            Check(name="nothing consumed while suspended", ok=not meanwhile, figure=f"{meanwhile} consumptions"),
            none("the app was answered as documented", said.wrong, f"of {said.outcomes.total()} requests"),
            *await self._notices(heard),
        ]

    async def _notices(self, heard: list[Heard]) -> list[Check]:
        rows = await self.conn.fetch("select id, customer, state from notices order by number")
        states = Counter(row["state"] for row in rows)
        sent: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            if row["state"] == "sent":
                sent[row["customer"]].append(row["id"])
        arrived: dict[str, list[str]] = defaultdict(list)
        for notice in heard:
            arrived[notice.customer].append(notice.id)
        types = ", ".join(f"{many} {name}" for name, many in sorted(Counter(n.type for n in heard).items()))
        return [
            Check(
                name="every notice arrived",
                ok=set(states) <= {"sent", "held"} and states["sent"] == len(heard),
                figure=", ".join(f"{many} {state}" for state, many in sorted(states.items())),
            ),
            equal("notices arrived in order, customer by customer", dict(arrived), dict(sent), more=types),
        ]

    # clauses

    async def clauses(self) -> list[Check]:
        """How often each clause was carried out; none may be missing."""
        counts: Counter[str] = Counter()
        for decision in self.decided.values():
            if not decision.reason.startswith("Withdrawn"):
                counts[decision.clause] += 1
            counts[f"9 {decision.policy_version}"] += 1
        for row in await self.conn.fetch("select clause, count(*) as lots from lots group by clause"):
            counts[row["clause"]] += row["lots"]
        counts["1.1"] += await self.conn.fetchval(
            "select count(*) from accounts where convert_from(body, 'utf8') like '%requested_at\":1%'"
        )
        counts["5"] += await self.conn.fetchval("select count(*) from cases")
        by_version = [counts[f"9 {version.id}"] for version in self.policy.version]
        names = ("1.1", "1.2", "1.3", "2, 6", "3.1", "3.2", "3.3", "4.1", "4.2", "4.3", "5", "7")
        shown = {name: counts[name] for name in names} | {"9": min(by_version)}
        return [
            Check(
                name="every clause was carried out",
                ok=all(shown.values()),
                figure=", ".join(f"{name}: {many}" for name, many in shown.items()),
            ),
            await self._agreements(),
            await self._cases(),
        ]

    async def _agreements(self) -> Check:
        """Clause 8: a copy left to a person, a suspension before anybody else's, and more credits."""
        who = self.known["enterprises"]
        left = any(
            d.customer == who["review"] and d.verdict == "review" and d.clause == "4.3" for d in self.decided.values()
        )
        suspended = await self.conn.fetchval(
            "select count(*) from standing_changes where customer = $1 and became = 'suspended'", who["suspend"]
        )
        granted = await self.conn.fetch(
            "select distinct granted from lots where customer = $1 and kind = 'included'", who["credits"]
        )
        more = [row["granted"] for row in granted] == [900]
        return Check(
            name="8: each agreement was kept",
            ok=left and bool(suspended) and more,
            figure=f"review instead of refund: {left}, suspended: {bool(suspended)}, 900 credits: {more}",
        )

    async def _cases(self) -> Check:
        """Clause 5: every letter has an answer, or an alert that it is late."""
        rows = {row["id"]: row["state"] for row in await self.conn.fetch("select id, state from cases")}
        waiting = [id_ for id_, state in rows.items() if state == "open"]
        alerted = await self.conn.fetchval(
            "select count(*) from alerts where kind = 'case_overdue' and resolved_at is null and subject = any($1::text[])",
            waiting,
        )
        answered = [id_ for id_, state in rows.items() if state == "answered"]
        return Check(
            name="5: every case is answered or alerted",
            ok=set(rows) == set(self.played.cases)
            and set(answered) == set(self.played.answered)
            and alerted == len(waiting) > 0,
            figure=f"{len(rows)} cases, {len(answered)} answered, {alerted} of {len(waiting)} others overdue and alerted",
        )


def _at_stripe(refund: dict[str, Any]) -> RefundAtStripe:
    return RefundAtStripe(
        id=refund["id"],
        charge=refund["charge"],
        amount_minor=refund["amount"],
        currency=refund["currency"],
        status=refund["status"],
        action=(refund["metadata"] or {}).get("finalsale_action"),
    )
