"""What was done and by whom, and the hash chain that shows whether any of it was changed, removed or reordered afterwards.

Triggers put a hash of every row that must never change into `audit_queue`, in the transaction that writes the row; a worker
moves the queue into `audit_chain`, where each link's hash covers the one before it. What is in the chain of a person:

- `decisions`, `actions`, `entries`, `standing_changes`, `outages`, `switches` and `policy_versions` hold ids, amounts, hashes
  and our own sentences; they are bound whole and are never erased.
- Words that a person may want erased (`case_acts.text`, `review_acts.note`, `acts.body`, and `reason`, `before`, `after` of
  `operator_acts`) are bound as a digest of a random salt and the text, both beside the chain in `audit_texts`. Erasing (see
  `permit_erasure`) changes the text, throws the salt away, and tells the chain that it did: the digest stays, says nothing about
  the text any more, and the row still verifies; an operator act of the same transaction must say who erased. `cases`, where
  customers write, is not chained.
- `operators`, `operator_tokens` and `api_tokens`: who may do what, in every state it was in.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import msgspec

from worker.audit_pace import Place
from worker.db import Connection, Pool, connection, queries, transaction
from worker.reading import Document, fetch

EVERYWHERE = ""
"""The realm of an act about the whole deployment: a token, an operator, the switch that stops refunds."""
MOST_NAMED = 100
"""Ids that an act about many names; beyond that it counts."""
GENESIS = bytes(32)
"""The hash before the first link."""
LOCK_KEY = 0x6175646974  # "audit"
ROUND = 5000
"""Links of one round at most, so that no transaction is long."""
MOST_PROBLEMS = 100
RECENT = 200
"""Links that the quick look recomputes."""
CHECK_EVERY_S, CHECK_AGAIN_S = 86_400.0, 3600.0
"""From one whole verification to the next, and to the next after one that found something: a repair is seen within the hour."""
COMPARE_TIMEOUT_S = 3600.0
"""One comparison of a table of millions; the session's own time-out is for small statements."""
MANY = 5000
SOURCES = (
    *(
        "decisions",
        "actions",
        "entries",
        "standing_changes",
        "outages",
        "acts",
        "operator_acts",
        "review_acts",
        "case_acts",
    ),
    *("policy_versions", "switches", "operators", "operator_tokens", "api_tokens", "erased_texts"),
)
"""Everything that the chain binds, as the view `audit_sources` names it."""
CHANGING = ("actions", "switches", "operators", "operator_tokens", "api_tokens", "erased_texts")
"""Those of them whose rows have several states."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
ENCODER = msgspec.json.Encoder(order="deterministic", enc_hook=str)


class Digest(NamedTuple):
    """What a chain was at an earlier time."""

    length: int | None
    """None: the hash of any link."""
    hash: bytes


# operators' acts ---------------------------------------------------------------------------------------------------------


async def record(
    conn: Connection,
    realm: str,
    *,
    by: str,
    via: str,
    act: str,
    subject: str,
    reason: str = "",
    role: str = "",
    before: Document | None = None,
    after: Document | None = None,
) -> None:
    """Write down what a person did, in the caller's transaction: it is kept if, and only if, what was done is.

    `via` is console, cli, app or worker; `realm` is EVERYWHERE for what is about no customer. `before` and `after` are
    documents of ids, amounts and states, never of customers' words.
    """
    await queries.record_operator_act(
        conn,
        realm=realm,
        by_name=by,
        role=role,
        via=via,
        act=act,
        subject=subject,
        reason=reason,
        before=None if before is None else ENCODER.encode(before),
        after=None if after is None else ENCODER.encode(after),
    )


async def listed(
    conn: Connection,
    realms: Sequence[str],
    *,
    by: str | None = None,
    act: str | None = None,
    subject: str | None = None,
    before: int | None = None,
    limit: int | None = 50,
) -> list[Document]:
    """Operators' acts, the newest first; `before` is the id to go on from."""
    asked = {"by_name": by, "act": act, "subject": subject, "before_id": before, "most": limit}
    return [_act(row) for row in await fetch(conn, queries.list_operator_acts, realms=list(realms), **asked)]


def _act(row: asyncpg.Record) -> Document:
    found = {"id": row["id"], "by": row["by_name"], **row}
    del found["by_name"]
    for name in ("before", "after"):
        found[name] = None if row[name] is None else msgspec.json.decode(row[name])
    return found


async def record_policy(
    conn: Connection, body: bytes, versions: Sequence[str], agreements: int, *, worker: str
) -> bool:
    """Keep the policy file that a worker begins to judge by, where it is not the newest one kept. Must run in a transaction."""
    digest = hashlib.sha256(body).digest()
    await queries.lock_keys(conn, keys=[LOCK_KEY + 1])
    newest = await queries.newest_policy_version(conn)
    if newest is not None and newest["sha256"] == digest:
        return False
    await queries.save_policy_version(
        conn, sha256=digest, versions=list(versions), agreements=agreements, body=body, worker=worker
    )
    return True


async def policies(conn: Connection, limit: int | None = None) -> list[Document]:
    """Policy files that workers judged by, the newest first, without the files themselves."""
    rows = await fetch(conn, queries.list_policy_versions, most=limit)
    return [{**row, "sha256": row["sha256"].hex(), "versions": list(row["versions"])} for row in rows]


async def permit_erasure(conn: Connection) -> None:
    """From here to the end of the transaction the words named above may be replaced by `[erased on request]`, and nothing else.

    The same transaction must record the act `customers.erase`.
    """
    await conn.execute("select set_config('finalsale.erasing', '1', true)")


# the chain ---------------------------------------------------------------------------------------------------------------


def link(before: bytes, seq: int, at_us: int, source: str, realm: str, row_id: str, content: bytes) -> bytes:
    """The hash of a link: SHA-256 over the one before, its number, moment (microseconds) and content, and its names.

    Numbers are 8 bytes, big-endian; names are joined by NUL, which no text of Postgres contains.
    """
    names = f"{source}\0{realm}\0{row_id}".encode()
    return hashlib.sha256(before + seq.to_bytes(8, "big") + at_us.to_bytes(8, "big") + content + names).digest()


async def append_pending(pool: Pool, *, most: int = ROUND, place: Place | None = None) -> int:
    """Move what is queued into the chain, up to `most` rows; how much it did, 0 where another sequencer is at it.

    Rows from before the chain are queued here too, a slice in each round. Killed at any point, a round leaves nothing behind.
    """
    place = place or Place()
    async with transaction(pool) as conn:
        if not await queries.may_append(conn, above=place.above, key=LOCK_KEY):
            return 0
        filled = await _backfill(conn, most)
        tip = await queries.chain_tip(conn)
        taken = await fetch(conn, queries.take_queue, above=place.above, most=most)
        seq, hash_, moment = tip["seq"] or 0, tip["hash"] or GENESIS, tip["moment"]
        at_us = (moment - _EPOCH) // _MICROSECOND
        links = []
        for _, source, realm, row_id, content in taken:
            seq += 1
            hash_ = link(hash_, seq, at_us, source, realm, row_id, content)
            links.append((seq, source, realm, row_id, content, hash_, moment))
        names = ["seq", "source", "realm", "row_id", "content", "hash", "chained_at"]
        await conn.copy_records_to_table("audit_chain", records=links, columns=names)
        await queries.drop_queued(conn, numbers=[row["number"] for row in taken])
    if len(taken) < most:
        place.emptied(taken[-1]["number"] if taken else 0, tip["oldest_at_work"], tip["next_at_work"])
    return len(links) + filled


async def _backfill(conn: Connection, most: int) -> int:
    """Queue a slice of what was there before the chain. Whoever waits for a lock gives way to the work itself."""
    left = [row["source"] for row in await fetch(conn, queries.backfills_left)]
    if not left:
        return 0
    await conn.execute(
        "set local lock_timeout = '500ms'"
    )  # shorter than the deadlock timeout of whom it would be in the way of
    slices = {
        "decisions": queries.backfill_decisions,
        "actions": queries.backfill_actions,
        "entries": queries.backfill_entries,
    }
    return max(
        1, int(await slices[left[0]](conn, most=most))
    )  # one at least: the slice after the last one only ends it


async def head(conn: Connection) -> Document:
    """How long the chain is, its newest hash and when that was made, and how many rows (up to 10,000) wait to be chained."""
    row = await queries.chain_head(conn)
    return {
        "length": row["seq"] or 0,
        "hash": (row["hash"] or GENESIS).hex(),
        "at": row["chained_at"],
        "pending": row["pending"],
        "oldest_pending_s": row["oldest_s"],
    }


# looking -----------------------------------------------------------------------------------------------------------------


class Verification:
    """One pass over the chain: every link recomputed, and every problem kept in our words."""

    def __init__(self, digests: Sequence[Digest]) -> None:
        self.problems: list[Document] = []
        self.count = self.links = self.seq = 0
        self.hash = GENESIS
        self.at: dict[int, set[bytes]] = {}
        for digest in digests:
            if digest.length is not None:
                self.at.setdefault(digest.length, set()).add(digest.hash)
        self.anywhere = {digest.hash for digest in digests if digest.length is None}

    def problem(self, what: str, sentence: str, **where: Any) -> None:
        """Count it, and keep it among the first."""
        self.count += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append({**where, "what": what, "sentence": sentence})

    def uncounted(self, rows: Sequence[asyncpg.Record]) -> None:
        """Rows that are problems, each told already: there are more of them than were read."""
        if rows:
            self.count += rows[0]["problems"] - len(rows)

    def row(self, row: asyncpg.Record) -> None:
        """The next link."""
        seq, source, realm, row_id, content, stored, at_us = row
        if seq != self.seq + 1:
            lost = f"link {self.seq + 1} is" if seq == self.seq + 2 else f"links {self.seq + 1} to {seq - 1} are"
            self.problem("removed", f"{lost} missing from the chain.", seq=self.seq + 1)
        elif link(self.hash, seq, at_us, source, realm, row_id, content) != stored:
            self.problem(
                "broken",
                f"Link {seq} ({source} {row_id}) does not follow from the one before it: it, or the one before, was changed or moved.",
                seq=seq,
                source=source,
                id=row_id,
            )
        if self.at and seq in self.at and self.at[seq] != {stored}:
            self.problem("rewritten", f"The chain was another one when it was {seq} links long.", seq=seq)
        self.anywhere.discard(stored)
        self.seq, self.hash = seq, stored
        self.links += 1

    def end(self) -> None:
        """What can only be said after the last link."""
        if later := [length for length in self.at if length > self.seq]:
            self.problem(
                "cut",
                f"The chain was {max(later)} links long before, and has {self.seq} now: its end was removed.",
                seq=self.seq,
            )
        for hash_ in sorted(self.anywhere):
            self.problem("cut", f"No link has the hash {hash_.hex()}, which the chain had before.", seq=self.seq)


async def verify(
    conn: Connection, *, against: Sequence[Digest] = (), progress: Callable[[int, int], None] | None = None
) -> Document:
    """Recompute the whole chain and compare every row with what it says: {ok, length, head, checked, problems, …}.

    Must run in a snapshot (a transaction of repeatable read). Memory is bounded. `against` are digests from elsewhere; those of
    earlier verifications here are compared too. `progress` is told, every few thousand links, how many are done and how many there are.
    """
    await conn.execute("set local statement_timeout = 0")
    state = await head(conn)
    earlier = [Digest(row["length"], row["hash"]) for row in await fetch(conn, queries.earlier_heads)]
    pass_ = Verification([*earlier, *against])
    async for rows in links(conn):
        for row in rows:
            pass_.row(row)
        if progress is not None:
            progress(pass_.links, state["length"])
    pass_.end()
    checked: Document = {"links": pass_.links}
    for row in await fetch(conn, queries.chained_sources):
        checked[row["source"]] = row["links"]
    for source in SOURCES:
        await _compare(conn, source, pass_)
    await _look_across(conn, pass_)
    return {
        "ok": pass_.count == 0,
        "length": pass_.seq,
        "head": pass_.hash.hex(),
        "pending": state["pending"],
        "not_yet_chained": [row["source"] for row in await fetch(conn, queries.backfills_left)],
        "checked": checked,
        "erased": checked.get("erased_texts", 0),
        "problem_count": pass_.count,
        "problems": pass_.problems,
    }


async def links(conn: Connection, after: int = 0) -> AsyncIterator[list[asyncpg.Record]]:
    """The links behind `after`, some thousands at a time."""
    cursor = await conn.cursor(queries.read_chain.sql, after)
    while rows := await cursor.fetch(MANY):
        yield rows


async def _compare(conn: Connection, source: str, pass_: Verification) -> None:
    """The rows of one source beside the newest word of the chain, or of the queue, about each."""
    rows = await conn.fetch(queries.compare_source.sql, source, MOST_PROBLEMS, timeout=COMPARE_TIMEOUT_S)
    for row in rows:
        if row["is_gone"]:
            what, sentence = "gone", "is in the chain, and its row is gone."
        elif row["is_unchained"]:
            what, sentence = "unchained", "was written past the chain: no link knows it."
        else:
            what, sentence = "edited", "says something else than when it was chained."
        pass_.problem(what, f"{source} {row['row_id']} {sentence}", seq=row["seq"], source=source, id=row["row_id"])
    pass_.uncounted(rows)


async def _look_across(conn: Connection, pass_: Verification) -> None:
    """What one row beside its link does not show: two contents of what never changes, sums, and changes that nobody says he made."""
    rows = await conn.fetch(queries.two_contents.sql, list(CHANGING), MOST_PROBLEMS, timeout=COMPARE_TIMEOUT_S)
    for row in rows:
        sentence = f"{row['source']} {row['row_id']} never changes, and was chained with two different contents."
        pass_.problem("edited", sentence, seq=row["seq"], source=row["source"], id=row["row_id"])
    pass_.uncounted(rows)
    rows = await conn.fetch(queries.compare_lots.sql, MOST_PROBLEMS, timeout=COMPARE_TIMEOUT_S)
    for row in rows:
        sentence = f"The sums of the lot {row['id']} ({row['realm']}) are not those of its entries."
        pass_.problem("sums", sentence, seq=None, source="lots", id=row["id"])
    pass_.uncounted(rows)
    rows = await conn.fetch(queries.unexplained_changes.sql, MOST_PROBLEMS, timeout=COMPARE_TIMEOUT_S)
    for row in rows:
        sentence = f"{row['source']} {row['row_id']}: {row['sentence']}."
        pass_.problem("unexplained", sentence, seq=None, source=row["source"], id=row["row_id"])
    pass_.uncounted(rows)


async def broken(conn: Connection) -> str | None:
    """A quick look, cheap enough for every few minutes: what is wrong in a sentence, or None.

    The newest links are recomputed, and what the last whole verification found counts. Whether it is late: see worker.audit_pace.
    """
    state = await head(conn)
    look = Verification(())
    first = max(state["length"] - RECENT, 0)
    rows = await conn.fetch(queries.read_chain.sql, max(first - 1, 0))
    if first and rows:
        look.seq, look.hash, rows = rows[0]["seq"], rows[0]["hash"], rows[1:]
    for row in rows:
        look.row(row)
    last = await queries.newest_audit_check(conn)
    if look.problems:
        sentence: str = look.problems[0]["sentence"]
        return sentence
    if last is not None and not last["ok"]:
        found = f"{last['problems']} problem{'s' if last['problems'] != 1 else ''}"
        return f"The verification of {last['checked_at']:%Y-%m-%d %H:%M} UTC found {found} in the audit chain."
    if last is not None and last["length"] > state["length"]:
        return f"The audit chain was {last['length']} links long, and has {state['length']} now: its end was removed."
    return None


async def check_if_due(pool: Pool) -> Document | None:
    """Verify the whole chain once a day, after a failure once an hour, and keep what was found; None where that is not due.

    The caller writes length and head into its log, so that they are also where nobody who can change the database can.
    """
    async with connection(pool) as conn:
        newest = await queries.newest_audit_check(conn)
        if newest is not None and newest["age_s"] < (CHECK_EVERY_S if newest["ok"] else CHECK_AGAIN_S):
            return None
        async with conn.transaction(isolation="repeatable_read"):
            if not await queries.may_check(conn, key=LOCK_KEY + 2):
                return None  # another worker is at it
            found = await verify(conn)
            await save_check(conn, found)
    return found


async def save_check(conn: Connection, found: Document) -> None:
    """Keep what a verification found: later ones compare the chain with it, and alerts go by the newest."""
    await queries.save_audit_check(
        conn,
        ok=found["ok"],
        length=found["length"],
        hash=bytes.fromhex(found["head"]),
        problems=found["problem_count"],
        body=ENCODER.encode(found),
    )
