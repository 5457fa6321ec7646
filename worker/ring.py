"""The doorbell: after a commit one background task tells the workers, through arq, that there is something to do.

A ring carries no truth. Losing it costs latency until the sweeper looks by itself, so nothing here may ever delay or fail an
answer to Stripe: errors are counted, and a Redis that is absent, full or frozen changes nothing for the sender.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import msgspec
from arq.connections import ArqRedis, RedisSettings, create_pool

from worker.errors import SettingsInvalid

QUEUE = "finalsale:bell"
FUNCTION = "drain"  # one eternal name without arguments: a worker of any release knows it
RING_TIMEOUT_S = 1.0
RING_INTERVAL_S = 0.05  # at most 20 rings a second: one ring is enough for everything committed before it
RETRY_INTERVAL_S = 1.0
EXPIRES_S = 60  # an older ring is superseded by the sweeper


def redis_settings(url: str) -> RedisSettings:
    """arq's settings for a REDIS_URL, with one quick attempt to connect and the host name of a TLS server checked."""
    try:
        settings = RedisSettings.from_dsn(url)
    except (RuntimeError, ValueError):
        raise SettingsInvalid(
            "REDIS_URL is not valid: it should be redis://, rediss:// or unix:// with an address."
        ) from None
    settings.conn_retries = 0
    settings.conn_timeout = 1
    settings.ssl_check_hostname = True
    return settings


async def connect_redis(url: str) -> ArqRedis:
    """A client whose jobs are JSON: arq's default, pickle, would let whoever can write to Redis run code in the worker."""
    return await create_pool(
        redis_settings(url),
        job_serializer=msgspec.json.encode,
        job_deserializer=msgspec.json.decode,
        default_queue_name=QUEUE,
    )


class Bell:
    """Rings at most every RING_INTERVAL_S, in a task of its own. `rings` counts by result."""

    def __init__(self, redis_url: str | None) -> None:
        self.rings: Counter[str] = Counter(sent=0, failed=0)
        self.reachable = False
        self._url = redis_url
        self._wanted = asyncio.Event()
        self._wanted.set()  # a first ring tells whether Redis is there, and wakes workers for what was left
        self._redis: ArqRedis | None = None
        self._task = asyncio.create_task(self._run(redis_url), name="bell") if redis_url else None

    def ring(self) -> None:
        """Ask for a ring; returns at once and never fails."""
        self._wanted.set()

    async def close(self) -> None:
        """Ring a last time if that was asked for, and leave."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self._wanted.is_set() and self.reachable and self._url is not None:
            await self._ring(self._url)
        await self._drop()

    async def _run(self, url: str) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if await self._ring(url):
                await asyncio.sleep(RING_INTERVAL_S)
            else:
                self._wanted.set()
                await asyncio.sleep(RETRY_INTERVAL_S)

    async def _ring(self, url: str) -> bool:
        try:
            async with asyncio.timeout(RING_TIMEOUT_S):
                if self._redis is None:
                    self._redis = await connect_redis(url)
                await self._redis.enqueue_job(FUNCTION, _expires=EXPIRES_S)
        except Exception:  # whatever it is, an answer to Stripe does not depend on it; `rings` and `reachable` tell
            self.rings["failed"] += 1
            self.reachable = False
            await self._drop()
            return False
        self.rings["sent"] += 1
        self.reachable = True
        return True

    async def _drop(self) -> None:
        redis, self._redis = self._redis, None
        if redis is not None:
            with suppress(Exception):
                async with asyncio.timeout(RING_TIMEOUT_S):
                    await redis.aclose()
