"""What goes wrong between a client and Stripe: seeded faults per path, and the rate limits."""

from __future__ import annotations

import random
import time
from fnmatch import fnmatchcase
from typing import Any

import msgspec

KINDS = (
    "429",  # refused before anything happened; lock_timeout or a rate limit
    "500_before",  # no effect; kept under the idempotency key and replayed for its life
    "500_after",  # the effect stands, the answer is 500, and it is the 500 that is kept and replayed
    "502_before",  # the edge failed: no effect, nothing kept
    "502_after",  # the edge failed after the effect: the key holds the true answer
    "timeout_before",
    "timeout_after",
    "truncated",  # after the effect half of the body comes, then the connection ends
    "reset",  # after the effect the connection ends without an answer
    "latency",  # late, otherwise well; the key is in flight meanwhile
)


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One way to fail: `rate` of the requests whose method, path and query match (shell patterns)."""

    kind: str
    rate: float = 1.0
    method: str = "*"
    path: str = "*"
    query: str = "*"
    """Of the decoded query string: `*created[gte]=1789*` must be written `*created[[]gte]=1789*`."""
    times: int | None = None
    """At most so many times; None for no end."""
    hold_s: float = 20.0
    """Time-outs: how long the connection is held before it is closed; latency: how late."""


class Faults:
    """The rules in force. The first one that matches and whose dice fall, happens."""

    def __init__(self, seed: int = 1) -> None:
        self.rules: list[Fault] = []
        self.counts: dict[str, int] = {}
        self._rng = random.Random(seed)

    def configure(self, settings: Any) -> None:
        """`{"seed": n, "rules": [{kind, rate, method, path, query, times, hold_s}]}`, the list alone, or `{kind: rate}`."""
        if isinstance(settings, dict) and "seed" in settings:
            self._rng = random.Random(settings["seed"])
        if isinstance(settings, list):
            rules = settings
        elif "rules" in settings:
            rules = settings["rules"]
        else:
            rules = [{"kind": kind, "rate": rate} for kind, rate in settings.items() if kind != "seed"]
        parsed = msgspec.convert(rules, list[Fault])
        for rule in parsed:
            if rule.kind not in KINDS:
                raise ValueError(f"unknown fault {rule.kind!r}; there are {', '.join(KINDS)}")
        self.rules = parsed

    def pick(self, method: str, path: str, query: str = "") -> Fault | None:
        for rule in self.rules:
            if rule.times == 0 or not fnmatchcase(method, rule.method) or not fnmatchcase(path, rule.path):
                continue
            if rule.query != "*" and not fnmatchcase(query, rule.query):
                continue
            if self._rng.random() < rule.rate:
                if rule.times is not None:
                    rule.times -= 1
                self.counts[rule.kind] = self.counts.get(rule.kind, 0) + 1
                return rule
        return None


class Bucket:
    """A token bucket in real time with one second's worth of burst."""

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._tokens = per_s
        self._at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._tokens = min(self.per_s, self._tokens + (now - self._at) * self.per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class RateLimit:
    """25 requests/s per endpoint and 100/s in all (stripe.com/docs/rate-limits); off unless switched on."""

    def __init__(self) -> None:
        self.enabled = False
        self.endpoint_per_s = 25.0
        self.global_per_s = 100.0
        self.refused = 0
        self._all = Bucket(self.global_per_s)
        self._each: dict[str, Bucket] = {}

    def configure(self, settings: dict[str, Any]) -> None:
        """`{"enabled": bool, "scale": 1.0, "endpoint_per_s": 25, "global_per_s": 100}`."""
        scale = float(settings.get("scale", 1.0))
        self.enabled = bool(settings.get("enabled", True))
        self.endpoint_per_s = float(settings.get("endpoint_per_s", 25)) * scale
        self.global_per_s = float(settings.get("global_per_s", 100)) * scale
        self._all, self._each = Bucket(self.global_per_s), {}

    def refusal(self, endpoint: str) -> str | None:
        """The `Stripe-Rate-Limited-Reason`, or None if the request may pass."""
        if not self.enabled:
            return None
        each = self._each.setdefault(endpoint, Bucket(self.endpoint_per_s))
        reason = None if each.take() else "endpoint-rate"
        if reason is None and not self._all.take():
            reason = "global-rate"
        self.refused += reason is not None
        return reason
