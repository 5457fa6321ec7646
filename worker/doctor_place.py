"""The doctor's look at this deployment's own side: variables, policy, Redis, disk, the console's address, where alerts and notices go."""

from __future__ import annotations

import asyncio
import difflib
import os
import shutil
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from worker.alert_routes import near_of, read_routes, routes_of, send
from worker.deployment import Deployment, fail, ok, warn
from worker.endpoint import Check
from worker.errors import FinalsaleError, PolicyInvalid, SettingsInvalid
from worker.jobs import read_policy
from worker.notices import app_of
from worker.ring import connect_redis
from worker.settings import Settings

REDIS_TIMEOUT_S = 2.0
REDIS_AT_LEAST = (6, 2)
DISK_WARNS, DISK_FAILS = 5 << 30, 1 << 30
"""Bytes free beside an embedded database; a full disk stops Postgres, and with it the intake."""
STRIPE = "https://api.stripe.com"
_ALIKE = 0.75


def known_variables() -> frozenset[str]:
    """Every variable that the settings are read from."""
    aliases = (
        str(getattr(field.validation_alias, "choices", [name])[0]) for name, field in Settings.model_fields.items()
    )
    return frozenset(alias.upper() for alias in aliases)


def strangers(names: Iterable[str]) -> dict[str, str]:
    """Variables that nobody reads and that look as if somebody should: each with the known one that it resembles, or nothing."""
    known = known_variables()
    nearest = {
        name: next(iter(difflib.get_close_matches(name, known, 1, _ALIKE)), "") for name in sorted(set(names) - known)
    }
    return {n: near for n, near in nearest.items() if n.startswith("FINALSALE_") or (near and n.startswith("STRIPE_"))}


async def environment(_: Deployment) -> list[Check]:
    """Typing errors: a misspelt variable is silently not there."""
    found = strangers(os.environ)
    if not found:
        return [ok("environment", "Every FINALSALE_ variable that is set is one that is read.")]
    told = ", ".join(f"{name} (did you mean {near}?)" if near else name for name, near in found.items())
    return [warn("environment", f"Set, and read by nobody: {told}.", "Correct or remove them.")]


async def settings(d: Deployment) -> list[Check]:
    """The settings by themselves, and those that contradict each other."""
    refunds = "sends refunds by itself" if d.settings.refunds == "auto" else "leaves refunds to a person"
    return contradictions(d.settings) or [ok("settings", f"{d.settings.mode} mode; {refunds}.")]


def contradictions(s: Settings) -> list[Check]:
    """Settings that cannot all be meant."""
    live, found = s.mode == "live", []
    if s.refunds == "auto" and s.stripe_api_key is None:
        detail = "FINALSALE_REFUNDS is auto and STRIPE_API_KEY is not set: a worker does not start so."
        found.append(fail("settings", detail, "Set the key, or FINALSALE_REFUNDS=review."))
    if live and s.stripe_api_base.rstrip("/") != STRIPE:
        detail = "STRIPE_API_BASE is not Stripe, and the live key is sent there."
        found.append(fail("settings", detail, "Unset STRIPE_API_BASE."))
    if live and s.test_clocks:
        found.append(warn("settings", "FINALSALE_TEST_CLOCKS counts in test mode only.", "Unset it."))
    if live and s.public_url and not s.public_url.startswith("https://"):
        detail = "FINALSALE_PUBLIC_URL is not https, and Stripe delivers live events over https only."
        found.append(fail("settings", detail, "Set the https address."))
    if s.app_webhook_secret is not None and not s.app_webhook_url:
        detail = "FINALSALE_APP_WEBHOOK_SECRET is set and FINALSALE_APP_WEBHOOK_URL is not: the app hears nothing."
        found.append(warn("settings", detail, "Set both or none."))
    if s.alert_private_hosts and s.alert_urls is None:
        detail = "FINALSALE_ALERT_PRIVATE_HOSTS allows addresses, and no FINALSALE_ALERT_URLS uses them."
        found.append(warn("settings", detail, "Set both or none."))
    return found


async def policy(d: Deployment) -> list[Check]:
    """The policy file, whole."""
    try:
        read = read_policy(d.settings)
    except PolicyInvalid as invalid:
        return [fail("policy", str(invalid), "Correct the file; FINALSALE_POLICY names it.")]
    versions = "one version" if len(read.version) == 1 else f"{len(read.version)} versions"
    return [ok("policy", f"{d.settings.policy or 'The shipped one'}: {versions}, valid.")]


async def webhook_secret(d: Deployment) -> list[Check]:
    """Signing secrets that look like Stripe's."""
    try:
        secrets = d.settings.webhook_secrets()
    except FinalsaleError as error:
        return [fail("webhook secret", str(error), "The Dashboard shows it beside the endpoint.")]
    if not all(secret.startswith(b"whsec_") for secret in secrets):
        remedy = "Set STRIPE_WEBHOOK_SECRET to what the Dashboard shows beside the endpoint (whsec_…)."
        return [warn("webhook secret", "A signing secret does not begin with whsec_, as Stripe's do.", remedy)]
    return [ok("webhook secret", "one is set." if len(secrets) == 1 else f"{len(secrets)} are set.")]


async def redis(d: Deployment) -> list[Check]:
    """The doorbell: version, what it does when it is full, whether it lets anybody in."""
    slower = "Work begins up to half a second later; nothing is lost."
    url = d.settings.redis_dsn()
    if url is None:
        return [warn("Redis", f"REDIS_URL is not set. {slower}", "Set REDIS_URL, or leave it so.")]
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            client = await connect_redis(url)
            try:
                server = await client.info("server")
                memory = await client.info("memory")
            finally:
                await client.aclose()
    except (FinalsaleError, RedisError, OSError, TimeoutError) as error:
        detail = f"It does not answer ({type(error).__name__}). {slower}"
        return [warn("Redis", detail, "See whether REDIS_URL is right and Redis is up.")]
    return redis_judged(url, server, memory)


def redis_judged(url: str, server: Mapping[str, object], memory: Mapping[str, object]) -> list[Check]:
    """What its INFO says. The worst that any of it costs is latency: a ring carries no truth."""
    told, found = str(server.get("redis_version", "0")), []
    version = tuple(int(part) for part in told.split(".")[:2] if part.isdigit())
    if version < REDIS_AT_LEAST:
        least = ".".join(map(str, REDIS_AT_LEAST))
        found.append(warn("Redis", f"Version {told} is too old.", f"Use Redis {least} or Valkey, or a later one."))
    evicts = str(memory.get("maxmemory_policy", "unknown"))
    if evicts != "noeviction":
        detail = f"When it is full it forgets keys ({evicts}), rings among them: work begins up to 2 s later then."
        found.append(warn("Redis", detail, "Set maxmemory-policy to noeviction, or use a Redis of its own."))
    address = urlsplit(url)
    if address.scheme != "unix" and not address.password and not _is_near(address.hostname or ""):
        detail = "It asks for no password, and is not on this machine: whoever reaches it can ring."
        found.append(warn("Redis", detail, "Set a password (ACL) and use rediss:// in REDIS_URL."))
    return found or [ok("Redis", f"Version {told}; it keeps what it was given.")]


def _is_near(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


async def alert_routes(d: Deployment) -> list[Check]:
    """Whether anybody is told, and each route can be used. Nothing is sent."""
    if d.settings.alert_urls is None:
        detail = "FINALSALE_ALERT_URLS is not set: alerts are kept and shown, and nobody is told."
        return [warn("alert routes", detail, "Set FINALSALE_ALERT_URLS to one or more apprise URLs.")]
    try:
        routes = await asyncio.to_thread(routes_of, d.settings)
    except SettingsInvalid as invalid:
        return [fail("alert routes", str(invalid), "Correct the entry; the README shows the form.")]
    names = ", ".join(f"{route.name} ({', '.join(sorted(route.severities))})" for route in routes)
    if not any("critical" in route.severities for route in routes):
        return [warn("alert routes", f"None hears critical alerts: {names}.", "Add one, as critical=scheme://…")]
    return [ok("alert routes", f"{names}. `finalsale doctor --test-alerts` sends a message over each.")]


async def try_routes(settings: Settings) -> list[Check]:
    """A message over every route, at once; each answers for itself within 20 s."""
    try:
        routes, near = read_routes(settings), near_of(settings)
    except SettingsInvalid as invalid:
        return [fail("test message", str(invalid), "Correct FINALSALE_ALERT_URLS.")]
    if not routes:
        return [fail("test message", "There is no route to send it over.", "Set FINALSALE_ALERT_URLS.")]
    said = {
        "id_": f"finalsale-doctor-{os.urandom(8).hex()}",
        "title": f"[finalsale {settings.mode}] note: Test message",
        "body": "`finalsale doctor --test-alerts` asked for this message. Nothing is wrong, and nothing is to be done.",
        "severity": "note",
    }
    outcomes = await asyncio.gather(*(send(route, near, **said) for route in routes))
    return [
        ok("test message", f"{route.name} took it.")
        if outcome.sent
        else fail("test message", f"{route.name}: {outcome.problem}.", "Correct this entry of FINALSALE_ALERT_URLS.")
        for route, outcome in zip(routes, outcomes, strict=True)
    ]


async def app_webhook(d: Deployment) -> list[Check]:
    """Where the merchant's app hears of standing and credits, and with what it can tell that it is us."""
    try:
        app = app_of(d.settings)
    except SettingsInvalid as invalid:
        return [fail("app webhook", str(invalid), "Correct it, or unset FINALSALE_APP_WEBHOOK_URL.")]
    if app is None:
        return [ok("app webhook", "Not used: FINALSALE_APP_WEBHOOK_URL is not set.")]
    return [ok("app webhook", "Its address and signing secret are well-formed.")]


async def console_address(d: Deployment) -> list[Check]:
    """Whether operators' sessions can be read on their way."""
    s, name = d.settings, "console address"
    if s.console == "off":
        return [ok(name, "FINALSALE_CONSOLE is off here.")]
    url = s.console_url or s.public_url
    if url is None and not _is_near(s.bind):
        detail = (
            f"It listens on {s.bind}:{s.port} without TLS, and FINALSALE_CONSOLE_URL does not say how people reach it."
        )
        remedy = (
            "Set FINALSALE_CONSOLE_URL to its https address, or FINALSALE_BIND=127.0.0.1, or FINALSALE_CONSOLE=off."
        )
        return [fail(name, detail, remedy) if s.mode == "live" else warn(name, detail, remedy)]
    if url is not None and not url.startswith("https://") and not _is_near(urlsplit(url).hostname or ""):
        return [fail(name, "People reach it over http: their sessions can be read.", "Put TLS before it (https).")]
    return [
        ok(name, f"{url or f'http://{s.bind}:{s.port}'}, {'with' if url else 'on this machine,'} people sign in there.")
    ]


async def disk(d: Deployment) -> list[Check]:
    """Free space beside the embedded database; of another machine's disk only Postgres's own size is known."""
    if not d.embedded:
        return [ok("disk", "The database is not on this machine: watch its disk there.")]
    free = (await asyncio.to_thread(shutil.disk_usage, d.settings.state_dir)).free
    detail = f"{free / 2**30:.1f} GiB are free beside the embedded database."
    remedy = "Free some, or lower FINALSALE_RETENTION_DAYS: a full disk stops the intake."
    if free < DISK_FAILS:
        return [fail("disk", detail, remedy)]
    return [warn("disk", detail, remedy) if free < DISK_WARNS else ok("disk", detail)]
