"""The doorbell: few rings however many commits, jobs that any release understands, and no Redis needed."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import eventually
from worker.errors import SettingsInvalid
from worker.ring import QUEUE, Bell, connect_redis, redis_settings


async def test_a_storm_of_commits_is_at_most_twenty_rings_a_second(redis_url: str) -> None:
    bell = Bell(redis_url)
    for _ in range(100):
        bell.ring()
        await asyncio.sleep(0.005)
    await bell.close()
    assert 2 <= bell.rings["sent"] <= 16
    assert bell.rings["failed"] == 0


async def test_a_ring_is_a_json_job_without_arguments_that_soon_expires(redis_url: str) -> None:
    bell = Bell(redis_url)
    await eventually(lambda: bell.rings["sent"] == 1)
    await bell.close()
    redis = await connect_redis(redis_url)
    (job,) = await redis.queued_jobs(queue_name=QUEUE)
    assert (job.function, job.args, job.kwargs) == ("drain", [], {})
    raw = await redis.get(f"arq:job:{job.job_id}")
    assert raw is not None
    assert raw.startswith(b"{")
    assert 0 < await redis.pttl(f"arq:job:{job.job_id}") <= 61_000
    await redis.aclose()


async def test_every_ring_has_an_id_of_its_own(redis_url: str) -> None:
    bell = Bell(redis_url)
    await eventually(lambda: bell.rings["sent"] == 1)
    bell.ring()
    await eventually(lambda: bell.rings["sent"] == 2)
    await bell.close()
    redis = await connect_redis(redis_url)
    assert len(await redis.queued_jobs(queue_name=QUEUE)) == 2
    await redis.aclose()


async def test_without_redis_ringing_does_nothing() -> None:
    bell = Bell(None)
    bell.ring()
    await bell.close()
    assert bell.rings == {"sent": 0, "failed": 0}


async def test_a_redis_that_is_not_there_is_counted_and_nothing_else() -> None:
    bell = Bell("redis://127.0.0.1:1")
    bell.ring()
    await eventually(lambda: bell.rings["failed"] == 1)
    await bell.close()
    assert not bell.reachable


@pytest.mark.parametrize("url", ["http://cache", "redis://host:port", ""])
def test_a_wrong_url_is_named_without_being_repeated(url: str) -> None:
    with pytest.raises(SettingsInvalid, match="REDIS_URL is not valid"):
        redis_settings(url)
