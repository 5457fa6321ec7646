"""Runs the sandbox alone; prints one JSON line with its URL when it is ready."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys

from sandbox import shapes
from sandbox.server import Sandbox


async def serve(args: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Sandbox(
        port=args.port,
        host=args.host,
        seed=args.seed,
        livemode=args.livemode,
        api_version=args.api_version,
        webhook_url=args.webhook_url,
        webhook_secrets=args.webhook_secret,
    ) as sandbox:
        sys.stdout.write(json.dumps({"url": sandbox.url}) + "\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description="A stand-in Stripe on a local port.")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--livemode", action="store_true")
    parser.add_argument("--api-version", default=shapes.NEWEST, help="of the webhook endpoint")
    parser.add_argument("--webhook-url")
    parser.add_argument("--webhook-secret", action="append", help="may be given twice, as while a secret is rolled")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
