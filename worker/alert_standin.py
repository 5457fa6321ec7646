"""What a web process tells while no worker is alive: a dead worker cannot tell that it is dead, nor anything else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import asyncpg

from worker.alerts import AlertSender
from worker.db import Pool, connect_pool, connection, queries
from worker.errors import DatabaseUnavailable
from worker.log import get_logger
from worker.settings import Settings

LOOK_S = 10.0
TELL_S = 1.0
"""How often it looks for a worker, and while there is none for what is to be told."""
AFTER_S = 120.0
"""Whoever starts web before a worker is told of nothing."""

log = get_logger()


class AlertStandIn:
    """Does a worker's telling for as long as no worker was seen for two minutes: on one connection, one message at a time."""

    def __init__(self, settings: Settings, migrated: Callable[[], bool]) -> None:
        self._settings, self._migrated = settings, migrated
        self._from = time.monotonic() + AFTER_S
        self._silent = False
        """Refused by the database before: said once."""

    async def run(self) -> None:
        """Look until cancelled. Without routes nobody can be told, and nothing is done."""
        if self._settings.alert_urls is None:
            return
        pool = await connect_pool(self._settings.database_dsn(), role="web alerts", min_size=0, max_size=1)
        sender = AlertSender(pool, self._settings)
        try:
            while True:
                wait_s = TELL_S if await self._tell(pool, sender) else LOOK_S
                await asyncio.sleep(wait_s)
        finally:
            pool.terminate()

    async def _tell(self, pool: Pool, sender: AlertSender) -> bool:
        """Tell what is to be told if nobody else does. Whether nobody else does."""
        if time.monotonic() < self._from or not self._migrated():
            return False
        try:
            async with connection(pool) as conn:
                if await queries.is_worker_alive(conn):
                    return False
            await sender.check()
            await sender.plan()
            for route in sender.routes:
                await sender.send_due(route)
        except DatabaseUnavailable:
            return False
        except asyncpg.InsufficientPrivilegeError as error:
            if not self._silent:
                log.warning("alerts.untold", error=type(error).__name__, remedy="finalsale doctor --grants")
            self._silent = True
            return False
        except Exception as error:  # whatever it is, events are taken in all the same
            log.error("alerts.failed", error=type(error).__name__, exc_info=error)
            return False
        return True
