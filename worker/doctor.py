"""What a deployment needs to be well, looked at from here: every check, with a remedy in plain words, within a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple

import asyncpg

from worker import doctor_books, doctor_place, doctor_stripe
from worker.db import UNAVAILABLE
from worker.deployment import Checker, Deployment, fail
from worker.endpoint import Check, State
from worker.errors import FinalsaleError
from worker.settings import Settings
from worker.stripe_gateway import StripeGateway

STRIPE_TIMEOUT_S = 4.0
OPEN_S = 8.0
"""For reaching Stripe and the database, at the same time."""
CHECK_S = 5.0
"""For one check. Those of the database share its connection, and all of them END_S."""
END_S = 14.0


class Placed(NamedTuple):
    """A check, and whether it takes the database's connection."""

    check: Checker
    in_books: bool = False


CHECKS: tuple[Placed, ...] = (
    Placed(doctor_place.environment),
    Placed(doctor_place.settings),
    Placed(doctor_place.policy),
    Placed(doctor_books.database, True),
    Placed(doctor_books.migrations, True),
    Placed(doctor_books.privileges, True),
    Placed(doctor_books.indexes, True),
    Placed(doctor_books.connections, True),
    Placed(doctor_books.upkeep, True),
    Placed(doctor_place.disk),
    Placed(doctor_place.redis),
    Placed(doctor_stripe.key),
    Placed(doctor_stripe.clock),
    Placed(doctor_stripe.lists),
    Placed(doctor_stripe.writes),
    Placed(doctor_place.webhook_secret),
    Placed(doctor_stripe.endpoint),
    Placed(doctor_books.event_versions, True),
    Placed(doctor_books.workers, True),
    Placed(doctor_books.nightly_run, True),
    Placed(doctor_books.gaps, True),
    Placed(doctor_place.alert_routes),
    Placed(doctor_books.alerts_told, True),
    Placed(doctor_place.app_webhook),
    Placed(doctor_books.notices, True),
    Placed(doctor_place.console_address),
    Placed(doctor_books.operators, True),
    Placed(doctor_books.retention, True),
    Placed(doctor_books.audit_chain, True),
)
"""In the order in which troubles should be mended."""


async def examine(settings: Settings) -> list[Check]:
    """Every check, within about END_S seconds whatever does not answer. Does not raise for what is wrong: that is a check."""
    ends = asyncio.get_running_loop().time() + END_S
    gateway = StripeGateway(settings, timeout_s=STRIPE_TIMEOUT_S)
    deployment = Deployment(settings=settings, gateway=gateway, turn=asyncio.Lock())
    try:
        async with AsyncExitStack() as until_closed:
            await asyncio.gather(doctor_stripe.probe(deployment), _open(deployment, until_closed))
            answers = await asyncio.gather(*(_looked(placed, deployment, ends) for placed in CHECKS))
            with suppress(*UNAVAILABLE, FinalsaleError):
                await _leave(until_closed)
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await gateway.aclose()
    return [check for checks in answers for check in checks]


async def _open(deployment: Deployment, until_closed: AsyncExitStack) -> None:
    try:
        async with asyncio.timeout(OPEN_S):
            await doctor_books.connect(deployment, until_closed)
    except TimeoutError:
        deployment.database_trouble = f"Postgres gave no answer within {OPEN_S:.0f} s"


async def _leave(until_closed: AsyncExitStack) -> None:
    """Give the connection back within a second: one on which nobody answers is not waited for."""
    async with asyncio.timeout(1):
        await until_closed.aclose()


def exit_code(checks: Sequence[Check]) -> int:
    """0 where all is well, 1 with warnings, 2 where something fails."""
    states = {check.state for check in checks}
    return 2 if State.FAIL in states else 1 if State.WARN in states else 0


async def _looked(placed: Placed, deployment: Deployment, ends: float) -> list[Check]:
    """One check's answers; one that goes away or is silent meanwhile is its answer, and stops no other check."""
    name = placed.check.__name__.replace("_", " ")
    try:
        async with AsyncExitStack() as held:
            if placed.in_books:
                async with asyncio.timeout_at(ends):
                    await held.enter_async_context(deployment.turn)
            async with asyncio.timeout_at(min(ends, asyncio.get_running_loop().time() + CHECK_S)):
                return await placed.check(deployment)
    except TimeoutError:
        return [fail(name, "It gave no answer in time.", "Run this again; if it stays so, look at what it asks.")]
    except FinalsaleError as error:
        return [fail(name, str(error), "Run this again.")]
    except asyncpg.InsufficientPrivilegeError:
        return [
            fail(name, "The role of DATABASE_URL may not look at this.", "Run this under the role finalsale_console.")
        ]
    except (*UNAVAILABLE, asyncpg.PostgresError) as error:
        return [fail(name, f"Postgres did not answer this ({type(error).__name__}).", "Run this again.")]
