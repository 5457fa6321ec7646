"""The doctor's look at Stripe: the key and what it may do, the lists that a run reads, the clock, our endpoint."""

from __future__ import annotations

import asyncio
import time
import uuid

from reconcile.windows import LISTS
from worker.deployment import Deployment, fail, ok, unseen, warn
from worker.endpoint import Check, check_endpoint
from worker.errors import OutcomeUnknown, StripeRefused, StripeUnavailable
from worker.stripe_gateway import StripeGateway

PROBE_S = 6.0
"""For all lists together. Reads are tried again by themselves, so one limit stands over all of it."""
CLOCK_WARNS_S = 30
"""A clock that is so far off refuses no delivery yet, and mixes up the order of reads and events."""
NOBODY = "finalsale_doctor_asks_only"
"""No object of Stripe's has such an id: what is asked about it is refused, and the refusal tells whether we may."""

_RESTRICTED, _FULL = ("rk_live_", "rk_test_"), ("sk_live_", "sk_test_", "sk_org_live_", "sk_org_test_")
_KINDS_OF_WORDS = {"radar/early_fraud_warnings": "early fraud warnings", "checkout/sessions": "Checkout sessions"}
WRITES = {
    "refunds": "the refund of a duplicate",
    "subscriptions": "the end of a duplicate's subscription",
    "customers": "the reversal of a duplicate's credit",
    "disputes": "evidence staged for a chargeback",
}
"""What a write permission is for, by resource."""


async def probe(d: Deployment) -> None:
    """One object of each list. The first list is asked alone: where nobody answers, nobody is asked twelve times more."""
    if not d.gateway.connected:
        d.stripe_trouble = "STRIPE_API_KEY is not set"
        return
    first, *others = dict.fromkeys(listing.path for listing in LISTS.values())
    try:
        async with asyncio.timeout(PROBE_S):
            await _probe_list(d, first)
            if d.lists[first] and first not in d.refused:
                d.stripe_trouble = d.lists[first]
                return
            await asyncio.gather(*(_probe_list(d, path) for path in others))
    except TimeoutError:
        d.stripe_trouble = f"it gave no answer within {PROBE_S:.0f} s"


async def _probe_list(d: Deployment, path: str) -> None:
    before = time.time()
    try:
        _body, stripe_s = await d.gateway.document(path, {"limit": 1})
    except StripeRefused as refused:
        d.lists[path] = str(refused)
        if refused.status == 403:
            d.refused |= {path}
        return
    except StripeUnavailable as trouble:
        d.lists[path] = str(trouble)
        return
    d.lists[path] = ""
    after = time.time()
    behind, ahead = stripe_s - after, before - (stripe_s + 1)
    d.skew_s = 0.0 if max(behind, ahead) <= 0 else ahead if ahead > 0 else -behind


async def key(d: Deployment) -> list[Check]:
    """What kind of key it is, and of which mode."""
    name, told = "Stripe key", d.settings.stripe_api_key.get_secret_value() if d.settings.stripe_api_key else ""
    if not told:
        remedy = "Set it to a restricted key (rk_…); `finalsale doctor --recipe` says which."
        return [fail(name, "STRIPE_API_KEY is not set.", remedy)]
    if d.stripe_trouble:
        return [fail(name, f"Stripe does not answer it: {d.stripe_trouble}.", "See whether the key is valid.")]
    if told.startswith(_RESTRICTED):
        return [ok(name, f"A restricted key of {d.settings.mode} mode.")]
    if told.startswith(_FULL):
        detail = f"A key of {d.settings.mode} mode that may do everything."
        remedy = "Use a restricted key (rk_…), see `finalsale doctor --recipe`: whoever steals it can do less."
        return [warn(name, detail, remedy)]
    return [warn(name, "It begins as no key of Stripe's does; test mode is taken for granted.", "Look at it.")]


async def lists(d: Deployment) -> list[Check]:
    """Read permission, list by list."""
    if d.stripe_trouble:
        return [unseen("Stripe lists", d.stripe_trouble)]
    failed = [_list_failed(d, path, why) for path, why in d.lists.items() if why]
    return failed or [ok("Stripe lists", f"All {len(d.lists)} that a run reads can be read.")]


def _list_failed(d: Deployment, path: str, why: str) -> Check:
    last = path.removeprefix("/v1/")
    words = _KINDS_OF_WORDS.get(last, last.replace("_", " "))
    if path in d.refused:
        return fail(f"list of {words}", f"The key may not read {path}.", f"Give the key read access to {words}.")
    return fail(f"list of {words}", f"{why}.", "Run this again; if it stays so, ask Stripe.")


async def writes(d: Deployment) -> list[Check]:
    """Write permission, as far as refusals tell: each write is asked about an object that cannot exist."""
    name = "Stripe writes"
    if d.stripe_trouble:
        return [unseen(name, d.stripe_trouble)]
    answers = await asyncio.gather(*(_may_write(d.gateway, resource) for resource in WRITES))
    told = dict(zip(WRITES, answers, strict=True))
    if unknown := [resource for resource, may in told.items() if may is None]:
        return [warn(name, f"Stripe did not say whether {', '.join(unknown)} may be written.", "Run this again.")]
    refused = [resource for resource, may in told.items() if not may]
    if not refused:
        return [ok(name, f"The key may write {', '.join(WRITES)}; nothing was written to find that out.")]
    lost = "; ".join(f"{resource} ({WRITES[resource]})" for resource in refused)
    remedy = f"Give the key write access to {', '.join(refused)}; `finalsale doctor --recipe` has the whole key."
    if d.settings.refunds == "auto" and {"refunds", "subscriptions"} & set(refused):
        return [fail(name, f"FINALSALE_REFUNDS is auto, and the key may not write: {lost}.", remedy)]
    return [warn(name, f"Enough to watch. What people approve cannot be sent: {lost}.", remedy)]


async def _may_write(gateway: StripeGateway, resource: str) -> bool | None:
    """Whether the key may write a resource; None where that was not told."""
    once = f"finalsale-doctor-{uuid.uuid4()}"
    try:
        match resource:
            case "refunds":
                await gateway.refund({"charge": f"ch_{NOBODY}"}, once, None)
            case "subscriptions":
                await gateway.cancel_subscription(f"sub_{NOBODY}", {}, once, None)
            case "customers":
                await gateway.adjust_balance(f"cus_{NOBODY}", {"amount": 1, "currency": "usd"}, once, None)
            case _:
                await gateway.stage_evidence(f"dp_{NOBODY}", {}, once, None)
    except StripeRefused as refused:
        return refused.status != 403
    except (OutcomeUnknown, StripeUnavailable):
        return None
    return True


async def clock(d: Deployment) -> list[Check]:
    """This machine's clock against Stripe's."""
    if d.skew_s is None:
        return [unseen("clock", d.stripe_trouble or "no list could be read")]
    off = abs(d.skew_s)
    detail = f"{off:.0f} s {'ahead of' if d.skew_s > 0 else 'behind'} Stripe's."
    if off >= d.settings.signature_tolerance_s:
        told = f"{detail} Every delivery is refused as too old or too new."
        return [fail("clock", told, "Set this machine's clock (NTP).")]
    if off >= CLOCK_WARNS_S:
        return [warn("clock", detail, "Set this machine's clock (NTP).")]
    return [ok("clock", "The same as Stripe's." if off < 1 else detail)]


async def endpoint(d: Deployment) -> list[Check]:
    """Our webhook endpoint, its events and its API version."""
    if d.stripe_trouble:
        return [unseen("endpoint", d.stripe_trouble)]
    return await check_endpoint(d.gateway, d.settings)
