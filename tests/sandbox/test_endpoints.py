"""Webhook endpoints over the API drive delivery, lost deliveries stay listed, and what was never generated is told of."""

from __future__ import annotations

import stripe

from sandbox import Sandbox
from tests.sandbox.conftest import NOW, Client, Obj, Receiver, Shop

SECRET = "whsec_sandbox"


def listen(sb: Sandbox, receiver: Receiver, **more: object) -> None:
    sb.configure({"webhook": {"url": receiver.url, "secrets": [SECRET], **more}})


async def listed(client: Client) -> list[Obj]:
    found: list[Obj] = (await client.get("/v1/webhook_endpoints")).body["data"]
    return found


async def undelivered(client: Client) -> list[str]:
    return [e["type"] for e in (await client.get("/v1/events", delivery_success="false", limit=100)).body["data"]]


# -- over the API ------------------------------------------------------------------------------------------------------


async def test_the_delivering_endpoint_is_listed_without_its_secret(
    sb: Sandbox, receiver: Receiver, client: Client
) -> None:
    assert await listed(client) == []
    listen(sb, receiver, api_version="2025-09-30.clover")
    (shown,) = await listed(client)
    assert (shown["url"], shown["status"], shown["enabled_events"]) == (receiver.url, "enabled", ["*"])
    assert (shown["api_version"], "secret" in shown) == ("2025-09-30.clover", False)
    assert (await client.get(f"/v1/webhook_endpoints/{shown['id']}")).body == shown


async def test_a_disabled_endpoint_hears_nothing_and_nothing_counts_as_pending(
    sb: Sandbox, shop: Shop, receiver: Receiver, client: Client
) -> None:
    listen(sb, receiver)
    path = f"/v1/webhook_endpoints/{(await listed(client))[0]['id']}"
    assert (await client.post(path, {"disabled": "true"})).body["status"] == "disabled"
    shop.charge()
    assert (await sb.webhooks.flush(5), receiver.got, await undelivered(client)) == (0, [], [])
    sb.configure({"webhook": {"drop": 0.0}})
    assert (await client.get(path)).body["status"] == "disabled"
    await client.post(path, {"disabled": "false"})
    shop.charge()
    assert await sb.webhooks.flush(5) == 0
    assert "charge.succeeded" in {event["type"] for event in receiver.events()}


async def test_only_enabled_events_are_sent(sb: Sandbox, shop: Shop, receiver: Receiver, client: Client) -> None:
    listen(sb, receiver, enabled_events=["charge.refunded"])
    path = f"/v1/webhook_endpoints/{(await listed(client))[0]['id']}"
    await client.post(path, {"enabled_events[0]": "charge.succeeded", "enabled_events[1]": "refund.created"})
    shop.subscribe()
    await sb.webhooks.flush(5)
    assert ([e["type"] for e in receiver.events()], await undelivered(client)) == (["charge.succeeded"], [])


async def test_a_created_endpoint_shows_its_secret_once_and_hears_in_its_own_version(
    sb: Sandbox, shop: Shop, receiver: Receiver, client: Client
) -> None:
    listen(sb, receiver, api_version="2024-06-20")
    asked = {"url": receiver.url, "enabled_events[0]": "charge.succeeded", "api_version": "2026-09-30.endive"}
    made = (await client.post("/v1/webhook_endpoints", asked)).body
    assert "secret" not in (await listed(client))[0]
    shop.subscribe()
    assert await sb.webhooks.flush(5) == 0
    heard = [(body, header) for body, header in receiver.got if b'"charge.succeeded"' in body]
    old, new = sorted(
        (
            stripe.Webhook.construct_event(body, header, secret)
            for (body, header), secret in _pairs(heard, made["secret"])
        ),
        key=lambda e: str(e.api_version),
    )
    assert (old.api_version, new.api_version, old.id) == ("2024-06-20", "2026-09-30.endive", new.id)
    assert ("invoice" in old.data.object, "invoice" in new.data.object) == (True, False)
    gone = await client.ask("DELETE", f"/v1/webhook_endpoints/{made['id']}")
    assert (gone.body["deleted"], len(await listed(client))) == (True, 1)


def _pairs(heard: list[tuple[bytes, str]], secret: str) -> list[tuple[tuple[bytes, str], str]]:
    """Each delivery with the secret it must be signed with."""
    return [(each, secret if b"2026-09-30.endive" in each[0] else SECRET) for each in heard]


async def test_an_api_version_is_chosen_for_good(sb: Sandbox, receiver: Receiver, client: Client) -> None:
    listen(sb, receiver)
    path = f"/v1/webhook_endpoints/{(await listed(client))[0]['id']}"
    assert (await client.post(path, {"api_version": "2026-10-28.endive"})).error["code"] == "parameter_unknown"
    assert (await client.post("/v1/webhook_endpoints", {"url": "ftp://x", "enabled_events[0]": "*"})).status == 400
    assert (await client.post("/v1/webhook_endpoints", {"url": receiver.url})).error["param"] == "enabled_events"


async def test_the_account_and_a_missing_permission_are_named(sb: Sandbox, client: Client) -> None:
    account = (await client.get("/v1/account")).body
    assert account["id"].startswith("acct_1")
    sb.configure({"denied": ["/v1/disputes*"]})
    key = "Bearer rk_test_read_only"
    refused = await client.ask("GET", "/v1/disputes", Authorization=key)
    assert (refused.status, "'rak_dispute_read'" in refused.error["message"]) == (403, True)
    assert (await client.ask("GET", "/v1/charges", Authorization=key)).status == 200
    assert (await client.get("/v1/disputes")).status == 200


# -- lost on the way ---------------------------------------------------------------------------------------------------


async def test_lost_deliveries_are_listed_and_can_be_sent_again(
    sb: Sandbox, shop: Shop, receiver: Receiver, client: Client
) -> None:
    listen(sb, receiver, drop_types=["charge.*"])
    shop.subscribe()
    assert await sb.webhooks.flush(5) == 0
    assert await undelivered(client) == ["charge.succeeded"]
    sb.configure({"webhook": {"drop_types": []}})
    assert (await client.ask("POST", "/_sandbox/redeliver")).body == {"sent": 1}
    assert (await sb.webhooks.flush(5), await undelivered(client)) == (0, [])


async def test_which_events_are_lost_depends_on_the_seed_alone(sb: Sandbox, shop: Shop, receiver: Receiver) -> None:
    listen(sb, receiver, drop=0.3, drop_seed=4)
    sb.webhooks.paused = True
    for _ in range(40):
        shop.charge()
    sb.webhooks.resume()
    await sb.webhooks.flush(5)
    lost = {d.event["id"] for d in sb.webhooks.deliveries if d.state == "dropped"}
    assert 0.15 < len(lost) / len(sb.webhooks.deliveries) < 0.45
    again = {d.event["id"] for d in sb.webhooks.deliveries if sb.webhooks.lost(d.event)}
    assert again == lost


async def test_events_that_were_never_generated_are_told_of_by_a_thin_health_event(
    sb: Sandbox, shop: Shop, receiver: Receiver, client: Client
) -> None:
    listen(sb, receiver)
    sb.configure({"generate_events": False})
    charge = shop.charge()
    sb.configure({"generate_events": True})
    assert (await client.get("/v1/events", type="charge.succeeded")).body["data"] == []
    async with client.session.post(f"{sb.url}/_sandbox/health", json={"from": NOW, "to": NOW + 60}) as answer:
        told = (await answer.json())["events"]
    assert await sb.webhooks.flush(5) == 0
    got = [e for e in receiver.events() if e["type"] == "v2.core.health.event_generation_failure.resolved"]
    assert (len(got), {e["object"] for e in got}, "data" in got[0]) == (len(told), {"v2.core.event"}, False)
    whole = [(await client.get(f"/v2/core/events/{e['id']}")).body["data"]["impact"] for e in got]
    url = f"/v1/charges/{charge['id']}"
    named = {"id": charge["id"], "type": "charge", "url": url}
    assert {"event_type": "charge.succeeded", "related_object": named} in whole
    destinations = (await client.get("/v2/core/event_destinations")).body["data"]
    assert [d["event_payload"] for d in destinations] == ["snapshot", "thin"]


# -- pages that never come ---------------------------------------------------------------------------------------------


async def test_a_fault_can_be_aimed_at_one_page(sb: Sandbox, shop: Shop, client: Client) -> None:
    ids = [shop.charge()["id"] for _ in range(3)]
    sb.configure({"faults": [{"kind": "502_before", "path": "/v1/charges", "query": "*starting_after=*"}]})
    assert (await client.get("/v1/charges", limit=1)).status == 200
    assert (await client.get("/v1/charges", limit=1, starting_after=ids[2])).status == 502
