"""The ledger of credits: which entries bring it to the lots that the rules want, and what a duplicate's credits came to. Pure.

A lot's grant is frozen once it is posted. A closing takes what is left; where another closing, or none, is wanted later, an
entry of the other sign gives back what the first one took. Nothing is edited, and no balance goes below zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from handlers.account import Closing, Entry, EntryKind, Lot, LotBalance
from handlers.customer import Seconds

TAKE_BACK_CLAUSE = "4.3"
CLOSINGS = (EntryKind.EXPIRED, EntryKind.FORFEITED, EntryKind.TAKEN_BACK)


def postings(wanted: Mapping[str, Lot], ledger: Mapping[str, LotBalance], now: Seconds) -> list[Entry]:
    """The entries that bring one customer's ledger (sums by lot) to what the rules want; none where it is there already.

    What is left of a lot belongs to its closing. Reversals come before what is taken anew. A lot whose ground fell away
    is closed as `taken_back`, effective `now` (unix seconds).
    """
    entries: list[Entry] = []
    for id_ in sorted(wanted.keys() | ledger.keys()):
        lot, known = wanted.get(id_), ledger.get(id_, LotBalance())
        if lot is not None and known.granted == 0 and lot.credits > 0:
            known = LotBalance(granted=lot.credits)
            entries.append(
                Entry(
                    lot=id_,
                    kind=EntryKind.GRANTED,
                    amount=lot.credits,
                    effective_at=lot.granted_at,
                    clause=lot.clause,
                    cause=lot.cause,
                )
            )
        entries += _closings(id_, lot, known, now)
    return entries


def _closings(id_: str, lot: Lot | None, known: LotBalance, now: Seconds) -> list[Entry]:
    """Entries that leave everything a lot still has with the closing that is wanted, and nothing with any other."""
    closing, clause = (lot.closing, lot.clause) if lot else (None, "3")
    if lot is None:
        gone = f"with what is known now, nothing that was paid, tried or granted stands behind {id_}"
        closing = Closing(kind=EntryKind.TAKEN_BACK, at=now, cause=gone)
    cause = closing.cause if closing else f"the end no longer holds: {lot.cause if lot else id_}"
    found = []
    for kind in CLOSINGS:
        target = known.granted - known.consumed if closing and closing.kind is kind else 0
        amount = getattr(known, kind) - target
        if amount:
            by = TAKE_BACK_CLAUSE if lot and kind is EntryKind.TAKEN_BACK else clause
            when = closing.at if closing else now
            found.append(Entry(lot=id_, kind=kind, amount=amount, effective_at=when, clause=by, cause=cause))
    return sorted(found, key=lambda entry: -entry.amount)


def used_of_duplicate(
    original_lots: Iterable[str], duplicate_lots: Iterable[str], balances: Mapping[str, LotBalance]
) -> int:
    """How many credits of a duplicate's lots were needed: what was consumed of both, beyond what the original granted."""
    originals = [balances[id_] for id_ in original_lots if id_ in balances]
    duplicates = [balances[id_] for id_ in duplicate_lots if id_ in balances]
    consumed = sum(balance.consumed for balance in (*originals, *duplicates))
    return max(0, consumed - sum(balance.granted for balance in originals))
