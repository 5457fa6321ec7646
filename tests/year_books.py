"""Closing a year's books: our tables against Stripe's, against what the year knows it did, and against the app's own memory."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from fractions import Fraction
from typing import Any

import msgspec

from handlers.account import OPERATOR_HOLD, Account
from handlers.decisions import Decision
from handlers.terms import Policy
from reconcile.compare import Check, Expected, Outcome, RefundAtStripe, RefundDecided, compare_refunds, compare_truth
from worker.db import Connection

DAY = 86400
GRACE = timedelta(minutes=65)
"""A trial's end may be extended until the last moment: for an hour a newer telling is waited for (3.3)."""
NO_HOLD = ("won", "prevented", "warning_needs_response", "warning_under_review", "warning_closed")
"""Statuses of a dispute that hold nobody; every other one does, also one that nobody knows (7)."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """A notice as the merchant's app first got it, its signature checked."""

    id: str
    customer: str
    type: str


class Said(msgspec.Struct):
    """What the app was told when it asked for credits."""

    consumed: dict[tuple[str, str], int] = {}
    """Credits by customer and key."""
    outcomes: Counter[str] = msgspec.field(default_factory=Counter)
    wrong: list[str] = []


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """An outage that was declared, and what its preview said that it would give."""

    id: str
    begins: int
    ends: int
    plans: tuple[str, ...]
    declared_at: int
    previewed: int


class Played(msgspec.Struct, kw_only=True):
    """What the driver did in the year, and what it saw in the evenings."""

    begin: int
    days: int
    events: int = 0
    evening: dict[str, Decision] = {}
    """The decision about each seeded payment, on the evening of its day."""
    seeded: set[str] = set()
    """Customers of the seeded duplicates and look-alikes."""
    outages: list[Declared] = []
    """In the order in which they were declared."""
    cases: list[str] = []
    answered: list[str] = []
    acts: int = 0
    granted: int = 0
    """Service credits that operators gave (4.1)."""
    suspended: list[str] = []
    """Customers whom an operator suspended and did not lift."""
    lifted: set[str] = set()
    """Lost disputes that an operator forgave."""
    kept: set[str] = set()
    """Disputes that an operator holds against their customer."""


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
    year = _Year(conn, stripe["books"], stripe["known"], played, policy, decided)
    return [
        *await year.events(stripe["events"]),
        *await year.money(),
        *await year.ledger(),
        *await year.grants(),
        *await year.outages(),
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
            _same("refunds that failed wait for a person", in_doubt, failed),
        ]

    # credits

    async def ledger(self) -> list[Check]:
        """Granted = consumed + expired + forfeited + taken back + remaining, and each sum is that of its entries."""
        checks = []
        for row in await self.conn.fetch(
            """select kind, count(*) as lots, sum(granted) as granted, sum(consumed) as consumed, sum(expired) as expired,
                      sum(forfeited) as forfeited, sum(taken_back) as taken_back, sum(remaining) as remaining,
                      min(remaining) as least
               from lots group by kind order by kind"""
        ):
            gone = sum(row[name] for name in ("consumed", "expired", "forfeited", "taken_back"))
            figure = ", ".join(
                f"{row[name]} {name.replace('_', ' ')}"
                for name in ("granted", "consumed", "expired", "forfeited", "taken_back", "remaining")
            )
            checks.append(
                Check(
                    name=f"{row['kind']} credits add up",
                    ok=row["granted"] == gone + row["remaining"] and row["least"] >= 0,
                    figure=f"{figure}, in {row['lots']} lots",
                )
            )
        differing = await self.conn.fetchval(
            """select count(*) from lots l full join (
                   select realm, lot, coalesce(sum(amount) filter (where kind = 'granted'), 0) as granted,
                          coalesce(-sum(amount) filter (where kind = 'consumed'), 0) as consumed,
                          coalesce(-sum(amount) filter (where kind = 'expired'), 0) as expired,
                          coalesce(-sum(amount) filter (where kind = 'forfeited'), 0) as forfeited,
                          coalesce(-sum(amount) filter (where kind = 'taken_back'), 0) as taken_back, sum(amount) as remaining
                   from entries group by realm, lot) e on (e.realm, e.lot) = (l.realm, l.id)
               where (l.granted, l.consumed, l.expired, l.forfeited, l.taken_back, l.remaining) is distinct from
                     (e.granted, e.consumed, e.expired, e.forfeited, e.taken_back, e.remaining)"""
        )
        entries = await self.conn.fetchval("select count(*) from entries")
        negative = await self.conn.fetchval("select count(*) from lots where remaining < 0")
        return [
            *checks,
            Check(
                name="every lot is the sum of its entries",
                ok=not differing,
                figure=f"{differing} of {entries} entries' lots differ",
            ),
            Check(name="no balance below zero", ok=not negative, figure=str(negative)),
        ]

    async def grants(self) -> list[Check]:
        """Lots against Stripe's books, and what must be left of them."""
        lots = await self.conn.fetch(
            "select id, kind, granted, remaining, expired, forfeited, taken_back, ends_at from lots"
        )
        of_kind = {kind: {r["id"]: r["granted"] for r in lots if r["kind"] == kind} for kind in ("trial", "included")}
        packs: Counter[str] = Counter()
        for row in lots:
            if row["kind"] == "purchased":
                packs[_pack_key(row["id"])] += row["granted"]
        now = await self.conn.fetchval("select moment('test')")
        ended = {s["id"] for s in self.books["subscriptions"] if s["ended_at"] is not None}
        left = {
            f"included:{line['invoice']}:{line['id']}" for line in self.books["lines"] if line["subscription"] in ended
        }
        kept = [r["id"] for r in lots if r["kind"] == "trial" and r["remaining"] and r["ends_at"] <= now - GRACE]
        owed = [r["id"] for r in lots if r["id"] in left and r["remaining"]]
        touched = [
            r["id"] for r in lots if r["kind"] == "purchased" and r["expired"] + r["forfeited"] + r["taken_back"]
        ]
        late = await self.conn.fetchval(
            """select count(*) from entries e join lots l on (l.realm, l.id) = (e.realm, e.lot)
               where e.kind = 'consumed' and e.effective_at >= l.ends_at"""
        )
        return [
            _equal("included credits granted = paid lines at Stripe", of_kind["included"], self._included()),
            _equal("trial credits granted = trials at Stripe", of_kind["trial"], self._trials()),
            _equal("purchased credits granted = packs paid at Stripe", dict(packs), self._packs()),
            _none("no trial credits after the trial's end", kept, f"of {len(of_kind['trial'])} trials"),
            _none("no included credits after the effective end", owed, f"of {len(left)} lots of ended subscriptions"),
            _none("purchased credits survive every end", touched, f"of {len(packs)} purchases"),
            Check(name="nothing consumed from a lot after its end", ok=not late, figure=f"{late} entries"),
        ]

    def _credits(self, price: str, customer: str, at: int, what: str) -> int:
        """What a price grants: its metadata, else the policy in force then, agreements included."""
        metadata = self.books["prices"][price]
        name = {"included": "credits", "trial": "trial_credits", "pack": "credits"}[what]
        if name in metadata:
            return int(metadata[name])
        terms = self.policy.terms_for(customer, at)  # type: ignore[arg-type]  # Stripe's books hold plain strings
        assert terms is not None
        if what == "pack":
            return terms.credits.packs.get(price, 0)
        plan = terms.credits.plans.get(price)
        return getattr(plan, what) if plan else 0

    def _included(self) -> dict[str, int]:
        found = {
            f"included:{line['invoice']}:{line['id']}": line["quantity"]
            * self._credits(line["price"], line["customer"], line["paid_at"], "included")
            for line in self.books["lines"]
            if not line["test_clock"]
        }
        return {id_: many for id_, many in found.items() if many}

    def _trials(self) -> dict[str, int]:
        return {
            f"trial:{sub['id']}:{sub['trial_start']}": sum(
                quantity * self._credits(price, sub["customer"], sub["trial_start"], "trial")
                for price, quantity in sub["items"]
            )
            for sub in self.books["subscriptions"]
            if sub["trial_start"] and not sub["test_clock"]
        }

    def _packs(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for pack in self.books["packs"]:
            each = self._credits(pack["price"], pack["customer"], pack["paid_at"], "pack")
            found[pack["purchase"]] += each * pack["quantity"]
        return dict(found)

    async def outages(self) -> list[Check]:
        """Clause 4.2 computed from Stripe's books alone; people with seeded copies apart, whose lines may count for nothing."""
        expected: dict[str, int] = {}
        by_sub: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in self._serving():
            by_sub[line["subscription"]].append(line)
        for n, outage in enumerate(self.played.outages):
            for sub, lines in by_sub.items():
                if given := self._given(outage, self.played.outages[:n], lines):
                    expected[f"service:{outage.id}:{sub}"] = given
        rows = await self.conn.fetch("select id, customer, granted from lots where clause = '4.2'")
        ours = {row["id"]: row["granted"] for row in rows if row["customer"] not in self.played.seeded}
        sums: Counter[str] = Counter()
        for row in rows:
            sums[row["id"].split(":")[1]] += row["granted"]
        short = [f"{o.id}: {sums[o.id]}, not {o.previewed}" for o in self.played.outages if sums[o.id] < o.previewed]
        return [
            _equal("outage credits = included x overlap / period, rounded down", ours, expected),
            _none("outages gave what their previews said", short, f"of {len(sums)}; {sum(sums.values())} credits"),
        ]

    def _given(self, outage: Declared, earlier: list[Declared], lines: list[dict[str, Any]]) -> int:
        """By the lines paid when it was declared; where they give nothing, by the first one paid later: a grant is frozen."""
        total = Fraction(0)
        for line in sorted(lines, key=lambda line: line["paid_at"]):
            if line["paid_at"] > outage.declared_at and int(total) > 0:
                break
            if not outage.plans or line["price"] in outage.plans:
                before = [(o.begins, o.ends) for o in earlier if not o.plans or line["price"] in o.plans]
                seconds = _uncovered((max(outage.begins, line["begins"]), min(outage.ends, line["until"])), before)
                credits_ = (
                    self._credits(line["price"], line["customer"], line["paid_at"], "included") * line["quantity"]
                )
                total += Fraction(credits_ * seconds, line["ends"] - line["begins"])
        return int(total)

    def _serving(self) -> list[dict[str, Any]]:
        """Paid lines with the end of the time in which each alone served its item."""
        ended = {s["id"]: s["ended_at"] for s in self.books["subscriptions"]}
        by_item: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in self.books["lines"]:
            if line["customer"] not in self.played.seeded and not line["test_clock"]:
                by_item[line["item"]].append(line)
        found = []
        for lines in by_item.values():
            lines.sort(key=lambda line: (line["begins"], line["ends"]))
            for n, line in enumerate(lines):
                until = [
                    line["ends"],
                    ended[line["subscription"]],
                    lines[n + 1]["begins"] if n + 1 < len(lines) else None,
                ]
                found.append(line | {"until": min(x for x in until if x is not None)})
        return found

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
            _equal("holds = open chargebacks, customer by customer", holds, dict(expected)),
            Check(
                name="every act of an operator is written down",
                ok=acts == self.played.acts,
                figure=f"{acts}: {len(self.played.lifted)} lifted, {len(self.played.kept)} kept, {self.played.granted} credits granted",
            ),
            _none("standing follows the policy and agreement of the payment", wrong, f"{len(suspended)} suspended"),
        ]

    # findings

    def found(self) -> list[Check]:
        def of(rule: str) -> set[str]:
            return {id_ for id_, d in self.decided.items() if d.rule == rule and d.verdict in ("review", "deny")}

        warned = {id_ for id_, d in self.decided.items() if d.rule == "early_fraud_warning"}
        return [
            _same(
                "charges after cancellation found = seeded",
                of("charge_after_cancellation"),
                self.known["charged_after_end"],
            ),
            _same("prorations at the end found = seeded", of("proration_after_cancellation"), self.known["prorated"]),
            _same("out-of-policy refunds found = seeded", of("out_of_policy_refund"), self.known["by_hand"]),
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
            _equal("consumed = what the app was told, key by key", booked, said.consumed, more=outcomes),
            _equal("consumption entries = consumptions", posted, booked),
            Check(name="nothing consumed while suspended", ok=not meanwhile, figure=f"{meanwhile} consumptions"),
            _none("the app was answered as documented", said.wrong, f"of {said.outcomes.total()} requests"),
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
            _equal("notices arrived in order, customer by customer", dict(arrived), dict(sent), more=types),
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


def _pack_key(lot: str) -> str:
    """`purchased:cs_…:LINE` by its session, `purchased:in_…:LINE` by its line."""
    _, owner, line = lot.split(":")
    return owner if owner.startswith("cs_") else line


def _uncovered(whole: tuple[int, int], covered: Iterable[tuple[int, int]]) -> int:
    """Seconds of an interval that none of the others holds, counted by cutting it at every edge."""
    begin, end = whole
    if end <= begin:
        return 0
    parts = list(covered)
    edges = sorted({begin, end, *(x for part in parts for x in part if begin < x < end)})
    return sum(b - a for a, b in itertools.pairwise(edges) if not any(lo <= a and b <= hi for lo, hi in parts))


def _equal(name: str, ours: Mapping[Any, Any], theirs: Mapping[Any, Any], *, more: str = "") -> Check:
    """Two mappings, key by key; the figure shows the first that differ."""
    wrong = [
        f"{k}: {ours.get(k)}, not {theirs.get(k)}" for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)
    ]
    return _none(name, sorted(wrong), f"{len(ours)} equal" + (f"; {more}" if more else ""))


def _same(name: str, ours: Iterable[str], theirs: Iterable[str]) -> Check:
    return _equal(name, dict.fromkeys(ours, "found"), dict.fromkeys(theirs, "found"))


def _none(name: str, wrong: Iterable[str], otherwise: str) -> Check:
    """Holds where nothing is wrong."""
    faults = list(wrong)
    figure = otherwise if not faults else f"{len(faults)} wrong: " + "; ".join(faults[:5])
    return Check(name=name, ok=not faults, figure=figure)
