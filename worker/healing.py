"""What a run found is let in through the one door: folded and judged by `settle`, in any process, as often as it takes."""

from __future__ import annotations

from collections import defaultdict

import asyncpg
import structlog

from handlers.customer import AnyFact, decode
from worker.db import Connection, Pool, queries, transaction
from worker.drain import is_about_these
from worker.errors import DatabaseUnavailable
from worker.judging import Court
from worker.settle import Overtaken, settle

BATCH = 200

log = structlog.get_logger()


async def heal_due(pool: Pool, court: Court, *, batch: int = BATCH) -> int:
    """Settle what finished comparing and waits to be healed, until nothing does. Returns how many facts were.

    A fact that cannot be settled is tried alone, and then marked `failed`: it holds up no other, and its run cannot be clean.
    """
    healed = 0
    while True:
        done, refused = await _heal(pool, court, batch)
        for run, id_ in refused:
            one, failed = await _heal(pool, court, 1, (run, id_))
            done += one
            if failed:
                async with transaction(pool) as conn:
                    await conn.execute(queries.healed.sql, "failed", run, [id_])
                log.error("heal.failed", run=run, id=id_)
        healed += done
        if not done and not refused:
            return healed


async def _heal(
    pool: Pool, court: Court, batch: int, only: tuple[str, str] | None = None
) -> tuple[int, list[tuple[str, str]]]:
    """One batch in one transaction: how many were settled, and those of a batch that failed."""
    claimed: list[asyncpg.Record] = []
    for attempt in (1, 2, 3):
        try:
            async with transaction(pool) as conn:
                claimed = await (
                    conn.fetch(queries.claim_to_heal_these.sql, only[0], [only[1]])
                    if only
                    else conn.fetch(queries.claim_to_heal.sql, batch)
                )
                await _settle(conn, court, claimed)
            return len(claimed), []
        except (Overtaken, asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
            if attempt == 3:
                break
        except DatabaseUnavailable as error:
            if not is_about_these(error.__cause__):
                raise
            break
        except Exception as error:
            log.error("heal.failed", facts=len(claimed), error=type(error).__name__, exc_info=error)
            break
    return 0, [(row["run"], row["id"]) for row in claimed]


async def _settle(conn: Connection, court: Court, claimed: list[asyncpg.Record]) -> None:
    facts: dict[str, list[AnyFact]] = defaultdict(list)
    ids: dict[str, list[str]] = defaultdict(list)
    for row in claimed:
        facts[row["realm"]].append(decode(row["body"]))
        ids[row["run"]].append(row["id"])
    for realm, told in sorted(facts.items()):
        settled = await settle(conn, court, realm, told)
        log.info("heal.settled", realm=realm, facts=settled.facts, decisions=settled.decisions, entries=settled.entries)
    for run, healed in sorted(ids.items()):
        await conn.execute(queries.healed.sql, "healed", run, healed)
