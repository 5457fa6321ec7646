"""How fast Stripe is read: an even pace per endpoint and in all, that slows down when Stripe says so and recovers by itself."""

from __future__ import annotations

import asyncio
import random

PER_ENDPOINT_S = 20
"""Below Stripe's 25 per endpoint, so that a refund never waits behind our own reads (docs.stripe.com/rate-limits)."""
TOTAL_S = 60
"""Below Stripe's 100 per account: the merchant's own app needs the rest."""
SLOWER = 0.7
FLOOR_S = 1.0
RECOVER_S = 2.0
"""So long without a refusal, and the rate rises by one request per second."""
CUT_AGAIN_S = 1.0
"""Refusals of requests that were already under way when the rate was cut say nothing new."""
MEMORY = 0.05
STRAINED = 0.2
"""Of about the last twenty answers; fewer refusals that do not speak of a rate (a lock, one crowded moment) are chance."""
SLACK = 2.0
"""Slots that a late timer may make up for; more would be a burst."""
AHEAD = 3.0
"""Slots by which those who go ahead may be early."""
JITTER = 0.2
"""Of a slot: so that many workers do not beat in time."""


class Lane:
    """Evenly spaced turns, `rate` a second. (aiolimiter's rate cannot change once it is made, and this one has to.)"""

    def __init__(self, rate: float) -> None:
        self.configured = self.rate = float(rate)
        self._strain = 0.0
        self._next_at = 0.0
        self._cut_at = 0.0
        self._quiet_since = 0.0
        self._queue = asyncio.Lock()

    async def take(self, *, ahead: bool = False) -> None:
        """Wait for the next turn, in order of arrival; `ahead` takes it before all who wait, who get the ones after it."""
        if ahead:
            await self._sleep(self._book() - AHEAD / self.rate)
            return
        async with self._queue:  # held while waiting, so that a changed rate holds for everyone behind at once
            await self._sleep(self._book())

    def _book(self) -> float:
        now = asyncio.get_running_loop().time()
        self._strain *= 1 - MEMORY
        if self.rate < self.configured and now - self._quiet_since >= RECOVER_S:
            self.rate, self._quiet_since = min(self.configured, self.rate + 1), now
        at = max(self._next_at, now - SLACK / self.rate)
        self._next_at = at + 1 / self.rate
        return at

    async def _sleep(self, until: float) -> None:
        wait = until - asyncio.get_running_loop().time()
        if wait > 0:
            await asyncio.sleep(wait + random.random() * JITTER / self.rate)  # noqa: S311 - no secret

    def refused(self, *, surely: bool) -> None:
        """Stripe refused a request; `surely` because of the rate."""
        now = asyncio.get_running_loop().time()
        self._strain += MEMORY
        if not surely and self._strain <= STRAINED:
            return
        self._quiet_since = now
        if now - self._cut_at >= CUT_AGAIN_S:
            self.rate, self._cut_at = max(FLOOR_S, self.rate * SLOWER), now


class Budget:
    """The rate budget of one gateway: whoever asks Stripe takes a turn first, and tells when it was refused."""

    def __init__(self, per_endpoint_s: float = PER_ENDPOINT_S, total_s: float = TOTAL_S) -> None:
        self.per_endpoint_s = per_endpoint_s
        self.requests = 0
        self.rate_limited = 0
        """Answers 429."""
        self.total = Lane(total_s)
        self._endpoints: dict[str, Lane] = {}

    async def take(self, endpoint: str, *, ahead: bool = False) -> None:
        """Wait until one more request to `endpoint` may go out. `ahead`: it passes those that wait for the total."""
        await self.endpoint(endpoint).take()
        await self.total.take(ahead=ahead)
        self.requests += 1

    def refused(self, endpoint: str, reason: str | None) -> None:
        """An answer 429, with its `Stripe-Rate-Limited-Reason`: `endpoint-*` slows that endpoint, all others the total."""
        self.rate_limited += 1
        lane = self.endpoint(endpoint) if reason is not None and reason.startswith("endpoint") else self.total
        lane.refused(surely=reason is not None and reason.endswith("-rate"))

    def endpoint(self, name: str) -> Lane:
        """The lane of an endpoint, made at its first request."""
        if name not in self._endpoints:
            self._endpoints[name] = Lane(self.per_endpoint_s)
        return self._endpoints[name]
