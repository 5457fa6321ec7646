"""The web processes under test, each in its idiomatic form: `python -m bench.servers bare|naive|ours`.

The port and the processor time used so far are told on standard output when the server is ready, the latter again at its end.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import stripe
import uvloop
from aiohttp import web
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings

from worker.log import configure
from worker.settings import read_settings
from worker.web import serve

POOL = web.AppKey("pool", asyncpg.Pool)
REDIS = web.AppKey("redis", ArqRedis)
SECRET = web.AppKey("secret", str)


def tell(port: int | None) -> None:
    print(json.dumps({"port": port, "cpu_s": time.process_time()}), flush=True)


def peak_rss_mb() -> float:
    """The most memory this process held since it began. (What `getrusage` tells is its parent's, where that is more.)"""
    told = Path("/proc/self/status").read_text(encoding="ascii")
    return round(int(told.partition("VmHWM:")[2].split()[0]) / 1024, 1)


async def bare(request: web.Request) -> web.Response:
    """What aiohttp costs: read the body, answer."""
    await request.read()
    return web.Response(text="ok")


async def naive(request: web.Request) -> web.Response:
    """What one writes first: the SDK's check, one insert, one job."""
    body = await request.read()
    try:
        event = stripe.Webhook.construct_event(body, request.headers["Stripe-Signature"], request.app[SECRET])
    except (ValueError, stripe.SignatureVerificationError):
        return web.Response(status=400)
    await request.app[POOL].execute(
        "insert into inbox (event_id, realm, type, api_version, created_at, payload) values ($1, 'test', $2, $3, to_timestamp($4), $5)"
        " on conflict do nothing",
        event.id,
        event.type,
        event.api_version,
        event.created,
        body,
    )
    await request.app[REDIS].enqueue_job("handle_event", event.id)
    return web.Response(text="ok")


async def connections(app: web.Application) -> AsyncIterator[None]:
    settings = read_settings()
    app[SECRET] = settings.webhook_secrets()[0].decode()
    app[POOL] = await asyncpg.create_pool(settings.database_dsn(), min_size=10, max_size=10)
    app[REDIS] = await create_pool(RedisSettings.from_dsn(settings.redis_dsn() or ""))
    yield
    await app[POOL].close()
    await app[REDIS].aclose()


async def serve_handler(name: str) -> None:
    app = web.Application()
    app.router.add_post("/stripe/webhook", bare if name == "bare" else naive)
    if name == "naive":
        app.cleanup_ctx.append(connections)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    tell(runner.addresses[0][1])
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    name = sys.argv[1]
    if name == "ours":
        configure("json")
        uvloop.run(serve(read_settings(), port=0, on_ready=tell))
    else:
        uvloop.run(serve_handler(name))
    tell(None)


if __name__ == "__main__":
    main()
