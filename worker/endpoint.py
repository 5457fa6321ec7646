"""Our webhook endpoint as Stripe has it: whether it is there, enabled, hears every type and speaks a version we read; and its repair."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import stamina
from pydantic import SecretStr

from handlers import HANDLERS
from handlers.events import EVENT_GENERATION_FAILED
from reconcile.findings import Class, Finding, What
from worker.errors import FinalsaleError, OutcomeUnknown, Permanent, StripeRefused, StripeUnavailable
from worker.settings import Settings
from worker.stripe_gateway import API_VERSION, MAX_PAGES, PAGE_LIMIT, Reply, StripeGateway

ENDPOINT_PATH = "/stripe/webhook"
NAMED = 6
"""So many missing types are named in a sentence; the others are counted."""
WRITE_ATTEMPTS = 4
REPLACE = (
    "Stripe cannot change the API version of an endpoint. Replace it: (1) create a second one with the same URL, API version "
    f"{API_VERSION} and the same events; (2) set STRIPE_WEBHOOK_SECRET to both signing secrets, separated by a comma, and restart "
    "web; (3) delete the old endpoint, then its secret. What both deliver meanwhile counts once; what the new one delivers before "
    "(2) is refused, and comes again."
)
HEAR_OF_FAILURES = (
    "In Workbench add an event destination: your account, thin payload, type "
    f"{EVENT_GENERATION_FAILED}, a webhook endpoint with the URL of this one. Add its signing secret to STRIPE_WEBHOOK_SECRET "
    "after a comma and restart web."
)

T = TypeVar("T")


class State(StrEnum):
    """`warn`: it works, and should be better; `fail`: something does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at, in sentences; `remedy` says what to do, and is empty where nothing is."""

    name: str
    state: State
    detail: str
    remedy: str = ""


class CannotFix(Permanent):
    """The endpoint cannot be repaired from here; the message says what a person does instead."""

    error_code = "endpoint_not_fixable"


class Endpoint(msgspec.Struct, frozen=True):
    """Where Stripe sends snapshot events (docs.stripe.com/api/webhook_endpoints/object). `created`: unix seconds."""

    id: str
    url: str
    status: str
    enabled_events: list[str]
    livemode: bool
    created: int = 0
    api_version: str | None = None
    """None: the account's default, which somebody may change."""

    @property
    def missing(self) -> list[str]:
        """The types that we read and it does not send."""
        return [] if "*" in self.enabled_events else sorted(HANDLERS.keys() - set(self.enabled_events))


class _Address(msgspec.Struct):
    url: str | None = None


class _Destination(msgspec.Struct):
    """docs.stripe.com/api/v2/core/event_destinations/object."""

    id: str
    type: str
    status: str
    event_payload: str
    enabled_events: list[str]
    livemode: bool
    snapshot_api_version: str | None = None
    webhook_endpoint: _Address | None = None

    def endpoint(self) -> Endpoint | None:
        """The same as what we know of an endpoint; None for other services' (EventBridge, Event Grid)."""
        url = self.webhook_endpoint.url if self.webhook_endpoint is not None else None
        if self.type != "webhook_endpoint" or url is None:
            return None
        return Endpoint(self.id, url, self.status, self.enabled_events, self.livemode, 0, self.snapshot_api_version)


class _Endpoints(msgspec.Struct):
    data: list[Endpoint]
    has_more: bool


class _Destinations(msgspec.Struct):
    data: list[_Destination]
    next_page_url: str | None = None


class Heard(msgspec.Struct, frozen=True):
    """Everything of ours that hears from Stripe. `thin` is None where it could not be read; `why_not` says why."""

    ours: list[Endpoint]
    others: int
    thin: list[Endpoint] | None
    why_not: str = ""


async def check_endpoint(gateway: StripeGateway, settings: Settings) -> list[Check]:
    """Whether Stripe tells us everything that the rules need. Never raises for what Stripe answers: that is a check."""
    try:
        heard = await read_endpoints(gateway, settings)
    except (StripeRefused, StripeUnavailable) as error:
        return [Check("endpoint", State.WARN, f"Webhook endpoints cannot be read: {error}.", _may_read(error))]
    found = _found(heard, settings)
    if found.state is State.FAIL:
        return [found]
    return [found, _enabled(heard), _events(heard), _version(heard), _health(heard)]


def endpoint_findings(checks: Iterable[Check]) -> list[Finding]:
    """The same for a run's report: what does not work needs a person, what should be better is only shown."""
    return [
        Finding(
            what=What.ENDPOINT,
            class_=Class.ASK if check.state is State.FAIL else Class.NEVER,
            object=check.name,
            kind="endpoint",
            sentence=check.detail,
            do=check.remedy,
        )
        for check in checks
        if check.state is not State.OK
    ]


def reads_version(version: str) -> bool:
    """Whether `handlers.events` knows an API version's shapes: any up to ours, and later ones of the same name, which only add.

    Source: docs.stripe.com/api/versioning.
    """
    newest, _, release = API_VERSION.partition(".")
    date, _, name = version.partition(".")
    return re.fullmatch(r"\d{4}-\d\d-\d\d", date) is not None and (date <= newest or name == release)


# --- reading -------------------------------------------------------------------------------------------------------------


async def read_endpoints(gateway: StripeGateway, settings: Settings) -> Heard:
    """All endpoints and event destinations, and which of them are ours. Raises StripeRefused, StripeUnavailable.

    Only the second list may be missing: a key without that permission still tells about the first.
    """
    endpoints = await _all_endpoints(gateway)
    try:
        destinations, why_not = await _destinations(gateway), ""
    except (StripeRefused, StripeUnavailable) as error:
        destinations, why_not = None, str(error)
    known = {endpoint.id for endpoint in endpoints}
    snapshots = _webhooks(d for d in destinations or () if d.event_payload == "snapshot" and d.id not in known)
    live = settings.mode == "live"
    candidates = [endpoint for endpoint in [*endpoints, *snapshots] if endpoint.livemode == live]
    ours = _ours(candidates, settings)
    urls = {_plain(endpoint.url) for endpoint in ours}
    thin = None
    if destinations is not None:
        thin = [e for e in _webhooks(d for d in destinations if d.event_payload == "thin") if _plain(e.url) in urls]
    return Heard(ours, len(candidates) - len(ours), thin, why_not)


async def _all_endpoints(gateway: StripeGateway) -> list[Endpoint]:
    found: list[Endpoint] = []
    for _ in range(MAX_PAGES):
        cursor = {"starting_after": found[-1].id} if found else {}
        page = await _document(gateway, "/v1/webhook_endpoints", {"limit": PAGE_LIMIT, **cursor}, _Endpoints)
        found += page.data
        if not page.has_more:
            return found
        if not page.data:
            break
    raise StripeUnavailable("/v1/webhook_endpoints: the list does not end")


async def _destinations(gateway: StripeGateway) -> list[_Destination]:
    """An account has 16 at most, so one page has all of them (docs.stripe.com/event-destinations)."""
    filters = {"include": ["webhook_endpoint.url"], "limit": 100}
    page = await _document(gateway, "/v2/core/event_destinations", filters, _Destinations)
    if page.next_page_url is not None:
        raise StripeUnavailable("/v2/core/event_destinations: more than one page")
    return page.data


async def _document(gateway: StripeGateway, path: str, filters: dict[str, Any], shape: type[T]) -> T:
    body, _as_of = await gateway.document(path, filters)
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StripeUnavailable(f"{path}: is not of a shape that we know") from None


def _webhooks(destinations: Iterable[_Destination]) -> list[Endpoint]:
    return [endpoint for destination in destinations if (endpoint := destination.endpoint()) is not None]


def public_url(settings: Settings) -> str | None:
    """The whole URL of our endpoint, where FINALSALE_PUBLIC_URL tells it; a bare host stands for the usual path at it."""
    given = (settings.public_url or "").strip()
    if not given:
        return None
    return given.rstrip("/") + ENDPOINT_PATH if urlsplit(given).path in ("", "/") else given


def _plain(url: str) -> str:
    """A URL as it is compared: Stripe keeps what somebody typed."""
    parts = urlsplit(url.strip())
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{parts.path.rstrip('/')}?{parts.query}"


def _ours(endpoints: Sequence[Endpoint], settings: Settings) -> list[Endpoint]:
    """Those with our URL; where nobody told it, those with our path, or the only one that there is. The best one first."""
    url = public_url(settings)
    if url is not None:
        ours = [endpoint for endpoint in endpoints if _plain(endpoint.url) == _plain(url)]
    else:
        ours = [endpoint for endpoint in endpoints if urlsplit(endpoint.url).path.rstrip("/") == ENDPOINT_PATH]
        ours = ours or list(endpoints if len(endpoints) == 1 else ())
    return sorted(ours, key=_goodness, reverse=True)


def _goodness(endpoint: Endpoint) -> tuple[bool, bool, int, int]:
    reads = endpoint.api_version is None or reads_version(endpoint.api_version)
    return reads, endpoint.status == "enabled", -len(endpoint.missing), endpoint.created


# --- judging -------------------------------------------------------------------------------------------------------------


def _found(heard: Heard, settings: Settings) -> Check:
    if not heard.ours:
        looked_for = public_url(settings) or f"a URL that ends in {ENDPOINT_PATH}"
        create = "`finalsale doctor --fix-endpoint` creates it"
        remedy = f"{create}." if settings.public_url else f"Set FINALSALE_PUBLIC_URL; {create}."
        return Check(
            "endpoint", State.FAIL, f"No webhook endpoint has {looked_for}; {heard.others} others are there.", remedy
        )
    urls = sorted({endpoint.url for endpoint in heard.ours})
    if len({_plain(url) for url in urls}) > 1:
        detail = f"{len(urls)} URLs could be ours: {', '.join(urls)}."
        return Check("endpoint", State.WARN, detail, "Set FINALSALE_PUBLIC_URL to the one of this deployment.")
    return Check("endpoint", State.OK, f"{', '.join(endpoint.id for endpoint in heard.ours)}: {urls[0]}")


def _enabled(heard: Heard) -> Check:
    if _working(heard):
        return Check("endpoint enabled", State.OK, "Stripe delivers to it.")
    detail = f"{heard.ours[0].id} is {heard.ours[0].status}: Stripe delivers nothing, and tries nothing again."
    return Check("endpoint enabled", State.FAIL, detail, "`finalsale doctor --fix-endpoint` enables it.")


def _events(heard: Heard) -> Check:
    """What all enabled ones send together: two endpoints may share the types, and one is there twice while it is replaced."""
    among = _working(heard) or heard.ours[:1]
    missing = sorted(set(among[0].missing).intersection(*(endpoint.missing for endpoint in among)))
    if not missing:
        return Check("endpoint events", State.OK, f"All {len(HANDLERS)} types that the rules need are sent.")
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    detail = f"{len(missing)} of {len(HANDLERS)} types are not sent: {', '.join(missing[:NAMED])}{more}."
    return Check("endpoint events", State.FAIL, detail, "`finalsale doctor --fix-endpoint` adds them.")


def _version(heard: Heard) -> Check:
    """The worst of the enabled ones counts: what it sends is stored, and cannot be read."""
    name, among = "endpoint API version", _working(heard) or heard.ours[:1]
    unread = [e for e in among if e.api_version is not None and not reads_version(e.api_version)]
    if unread:
        told = ", ".join(f"{endpoint.id} sends {endpoint.api_version}" for endpoint in unread)
        return Check(name, State.FAIL, f"{told}; this release reads versions up to {API_VERSION}.", REPLACE)
    if loose := [endpoint.id for endpoint in among if endpoint.api_version is None]:
        detail = (
            f"{', '.join(loose)}: none of its own, so events change shape when somebody changes the account's default."
        )
        return Check(name, State.WARN, detail, REPLACE)
    return Check(name, State.OK, f"{', '.join(sorted({e.api_version or '' for e in among}))}: read by this release.")


def _health(heard: Heard) -> Check:
    """Whether we hear of events that Stripe could not make: they are not listed, so no run could miss them."""
    name = "health events"
    if heard.thin is None:
        detail = f"Event destinations cannot be read ({heard.why_not}), so nobody knows whether {EVENT_GENERATION_FAILED} is sent."
        return Check(name, State.WARN, detail, "Give the key read access to event destinations, or look in Workbench.")
    for endpoint in heard.thin:
        if endpoint.status == "enabled" and {"*", EVENT_GENERATION_FAILED} & set(endpoint.enabled_events):
            return Check(name, State.OK, f"{endpoint.id} tells when Stripe could not make an event.")
    detail = f"{EVENT_GENERATION_FAILED} is not sent: what Stripe could not tell is found a month later at worst."
    return Check(name, State.WARN, detail, HEAR_OF_FAILURES)


def _working(heard: Heard) -> list[Endpoint]:
    return [endpoint for endpoint in heard.ours if endpoint.status == "enabled"]


def _may_read(error: FinalsaleError) -> str:
    if isinstance(error, StripeRefused) and error.status == 403:
        return "Give the restricted key read access to webhook endpoints."
    return "Try again; if it stays so, see whether STRIPE_API_KEY is still valid."


# --- repairing -----------------------------------------------------------------------------------------------------------


async def fix_endpoint(
    gateway: StripeGateway, settings: Settings, show_secret: Callable[[str], None] | None
) -> list[str]:
    """Enable our endpoint and add the types that it lacks, or create it. What was done, in sentences; nothing is none.

    Never removes a type. `show_secret` is called once with a new endpoint's signing secret, which Stripe tells only then;
    without it none is created. Raises CannotFix, StripeRefused, StripeUnavailable, OutcomeUnknown.
    Source: docs.stripe.com/api/webhook_endpoints/update.
    """
    if public_url(settings) is None:
        raise CannotFix(
            "Set FINALSALE_PUBLIC_URL to where Stripe reaches this deployment: no other program's endpoint shall be changed."
        )
    heard = await read_endpoints(gateway, settings)
    if not heard.ours:
        return [await _create(gateway, settings, show_secret)]
    if len({_plain(endpoint.url) for endpoint in heard.ours}) > 1:
        raise CannotFix("Several URLs could be ours: set FINALSALE_PUBLIC_URL to the one of this deployment.")
    endpoint = heard.ours[0]
    done: list[str] = []
    parameters: dict[str, Any] = {}
    if not _working(heard):
        parameters["disabled"] = "false"
        done.append(f"{endpoint.id} is enabled.")
    if _events(heard).state is not State.OK:
        parameters["enabled_events"] = sorted({*endpoint.enabled_events, *HANDLERS})
        done.append(f"{endpoint.id} now sends {len(endpoint.missing)} more types: {', '.join(endpoint.missing)}.")
    if parameters:
        if not endpoint.id.startswith("we_"):
            raise CannotFix(f"{endpoint.id} is an event destination, which is changed in Workbench only.")
        await _write(gateway, endpoint.id, parameters)
    return done


async def _create(gateway: StripeGateway, settings: Settings, show_secret: Callable[[str], None] | None) -> str:
    url = public_url(settings)
    if url is None:
        raise CannotFix("There is no endpoint of ours: set FINALSALE_PUBLIC_URL to the URL at which Stripe reaches us.")
    if show_secret is None:
        raise CannotFix("A new endpoint's signing secret is shown once: run this in a terminal, without --json.")
    parameters = {
        "url": url,
        "enabled_events": sorted(HANDLERS),
        "api_version": API_VERSION,
        "description": "finalsale: carries out the no-refund policy",
    }
    made, secret = await _write(gateway, None, parameters)
    if secret is None:
        raise CannotFix(f"{made.id} was created, and its signing secret did not come: reveal it in the Dashboard.")
    show_secret(secret.get_secret_value())
    return f"{made.id} is created for {url}. Set STRIPE_WEBHOOK_SECRET to its signing secret, which is not shown again."


async def _write(
    gateway: StripeGateway, endpoint: str | None, parameters: dict[str, Any]
) -> tuple[Reply, SecretStr | None]:
    """One intention is one key, however often it is sent. A later one has another: Stripe would only repeat its old answer."""
    key = f"finalsale-endpoint-{uuid.uuid4()}"
    try:
        async for attempt in stamina.retry_context(
            on=(OutcomeUnknown, StripeUnavailable),
            attempts=WRITE_ATTEMPTS,
            timeout=None,
            wait_initial=0.3,
            wait_max=2.0,
        ):
            with attempt:
                return await gateway.webhook_endpoint(endpoint, parameters, key)
    except StripeRefused as refused:
        if refused.status == 403:
            raise CannotFix(
                "The key may not change webhook endpoints: run this once with a key that has write access to them, "
                "as STRIPE_API_KEY=rk_… finalsale doctor --fix-endpoint; the deployment itself does not need it."
            ) from None
        raise
    raise AssertionError("unreachable")
