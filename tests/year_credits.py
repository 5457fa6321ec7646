"""A year's credits: every lot against its entries, against Stripe's books and the policy, and what must be left of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any

from handlers.terms import Policy
from reconcile.truth import Check
from tests.year_played import Declared, Played, equal, none
from worker.db import Connection

GRACE = timedelta(minutes=65)
"""A trial's end may be extended until the last moment: for an hour a newer telling is waited for (3.3)."""


class Credits:
    """Our lots and entries, and what they should be."""

    def __init__(self, conn: Connection, books: dict[str, Any], played: Played, policy: Policy) -> None:
        self.conn, self.books, self.played, self.policy = conn, books, played, policy

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
            "select id, customer, kind, granted, remaining, expired, forfeited, taken_back, ends_at from lots"
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
        never = {"trial": ("forfeited", "taken_back"), "included": ("expired",), "service": ("forfeited", "taken_back")}
        astray = [r["id"] for r in lots if any(r[way] for way in never.get(r["kind"], ()))]
        taken = [r for r in lots if r["kind"] == "included" and r["taken_back"]]
        astray += [r["id"] for r in taken if r["customer"] not in self.played.seeded]
        late = await self.conn.fetchval(
            """select count(*) from entries e join lots l on (l.realm, l.id) = (e.realm, e.lot)
               where e.kind = 'consumed' and e.effective_at >= l.ends_at"""
        )
        return [
            equal("included credits granted = paid lines at Stripe", of_kind["included"], self._included()),
            equal("trial credits granted = trials at Stripe", of_kind["trial"], self._trials()),
            equal("purchased credits granted = packs paid at Stripe", dict(packs), self._packs()),
            none("no trial credits after the trial's end", kept, f"of {len(of_kind['trial'])} trials"),
            none("no included credits after the effective end", owed, f"of {len(left)} lots of ended subscriptions"),
            none("each kind ends in its own way", astray, f"{len(taken)} lots taken back with seeded duplicates"),
            none("purchased credits survive every end", touched, f"of {len(packs)} purchases"),
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
            equal("outage credits = included x overlap / period, rounded down", ours, expected),
            none("outages gave what their previews said", short, f"of {len(sums)}; {sum(sums.values())} credits"),
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
    return sum(b - a for a, b in pairwise(edges) if not any(lo <= a and b <= hi for lo, hi in parts))
