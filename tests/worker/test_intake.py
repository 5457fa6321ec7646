"""Intake over real HTTP into a real Postgres: what is answered, what is stored, what is refused and why."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from datetime import UTC, datetime

import aiohttp
import pytest
from pydantic import SecretStr

from tests.conftest import eventually
from tests.stripe_sender import Sender, event, signature, thin_event
from worker.db import Pool
from worker.inbox import unpack
from worker.settings import Settings
from worker.web import Listening, listening
from worker.webhook import MAX_BODY_BYTES


async def stored(pool: Pool) -> int:
    return int(await pool.fetchval("select count(*) from inbox"))


async def test_a_2xx_means_the_event_is_committed_as_it_was_signed(sender: Sender, pool: Pool) -> None:
    body = event(metadata="é\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"))
    before = datetime.now(UTC)
    status, text, headers = await sender.deliver(body)
    assert (status, text) == (200, "stored\n")
    assert "Date" in headers
    row = await pool.fetchrow("select * from inbox")
    assert row is not None
    assert unpack(row["payload"]) == body
    assert {name: row[name] for name in ("event_id", "realm", "type", "api_version", "state", "attempts", "error")} == {
        "event_id": "evt_1",
        "realm": "test",
        "type": "charge.succeeded",
        "api_version": "2026-10-28.endive",
        "state": "waiting",
        "attempts": 0,
        "error": None,
    }
    assert row["created_at"] == datetime.fromtimestamp(1_764_000_000, UTC)
    assert abs((row["received_at"] - before).total_seconds()) < 5


async def test_a_thousand_replays_of_one_event_are_one_row_and_all_hear_2xx(sender: Sender, pool: Pool) -> None:
    body = event()
    answers = await asyncio.gather(*(sender.deliver(body) for _ in range(1000)))
    assert {status for status, _, _ in answers} == {200}
    assert await stored(pool) == 1


async def test_two_hundred_at_once_are_two_hundred_rows_in_far_fewer_commits(
    sender: Sender, web: Listening, pool: Pool
) -> None:
    answers = await asyncio.gather(*(sender.deliver(event(f"evt_{number}")) for number in range(200)))
    assert [status for status, _, _ in answers] == [200] * 200
    assert await stored(pool) == 200
    assert web.webhook.commits["done"] < 100
    assert web.webhook.commits["new_rows"] == 200


async def test_an_unknown_type_is_stored_and_answered_2xx(sender: Sender, pool: Pool) -> None:
    status, _, _ = await sender.deliver(event(event_type="something.stripe_invents_tomorrow"))
    assert status == 200
    assert await pool.fetchval("select type from inbox") == "something.stripe_invents_tomorrow"


async def test_an_event_of_the_wrong_mode_is_kept_as_ignored_in_its_own_realm(sender: Sender, pool: Pool) -> None:
    status, _, _ = await sender.deliver(event(livemode=True))
    row = await pool.fetchrow("select state, realm, error from inbox")
    assert row is not None
    assert (status, *row) == (200, "ignored", "live", "wrong mode: a live event at a test deployment")


@pytest.mark.parametrize(
    ("body", "realm"),
    [
        (event(account="acct_1Connected"), "test:acct_1Connected"),
        (event(account=None), "test"),
        (thin_event(context="acct_1Connected"), "test:acct_1Connected"),
        (thin_event(context="org_1/acct_1Connected"), "test:acct_1Connected"),
        (thin_event(context="org_1"), "test"),
        (thin_event(context={"shape": "of tomorrow"}), "test"),
    ],
)
async def test_the_account_is_kept_in_the_realm_of_the_row(body: bytes, realm: str, sender: Sender, pool: Pool) -> None:
    assert (await sender.deliver(body))[0] == 200
    assert await pool.fetchval("select realm from inbox") == realm


async def test_a_thin_event_is_stored_with_its_time(sender: Sender, pool: Pool) -> None:
    assert (await sender.deliver(thin_event()))[0] == 200
    assert await pool.fetchval("select created_at from inbox") == datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)


async def test_any_of_two_secrets_is_believed_while_one_is_rolled(settings: Settings, pool: Pool) -> None:
    rolled = settings.model_copy(update={"stripe_webhook_secret": SecretStr("whsec_old,whsec_new")})
    async with listening(rolled) as running, aiohttp.ClientSession() as session:
        await eventually(running.watch.ready)
        sender = Sender(running.port, session)
        for number, secret in enumerate(("whsec_old", "whsec_new", "whsec_other")):
            body = event(f"evt_{number}")
            status, _, _ = await sender.deliver(body, header=signature(body, secret=secret))
            assert status == (400 if secret == "whsec_other" else 200)
    assert await stored(pool) == 2


BAD_BODIES = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "an empty object": b"{}",
    "cut off": event()[:-20],
    "followed by rubbish": event() + b"}",
    "no UTF-8 in a field that is read": event().replace(b"evt_1", b"evt_\xff"),
    "no UTF-8 in a field that is not read": event().replace(b"ch_1", b"ch_\xff"),
    "UTF-16": event().decode().encode("utf-16"),
    "ten thousand levels deep": event()[:-2] + b', "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "no id": event(id=None),
    "an id of the wrong type": event(id=7),
    "an id with a NUL": event("evt_\0"),
    "an id with a lone surrogate": event("evt_\ud800"),
    "an id that is no identifier": event("evt_1'; drop table inbox"),
    "an endless id": event("evt_" + "1" * 300),
    "an empty id": event(""),
    "another object": event(object="charge"),
    "no livemode": event(livemode=None),
    "a type with spaces": event(event_type="charge succeeded"),
    "created as a word": event(created="yesterday"),
    "created as a fraction": event(created=1.5),
    "created before the epoch": event(created=-1),
    "created in the year 10000": event(created=253_402_300_800),
    "created beyond 64 bits": event(created=10**30),
    "created in the year 0 somewhere": thin_event(created="0001-01-01T00:00:00+14:00"),
    "an account of another kind": event(account="acct 1"),
    "an API version with a NUL": event(api_version="2026\0"),
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
async def test_a_signed_body_that_is_no_event_is_answered_400_with_one_line(
    body: bytes, sender: Sender, pool: Pool, web: Listening
) -> None:
    status, text, _ = await sender.deliver(body)
    assert status == 400
    assert text.endswith(".\n")
    assert text.count("\n") == 1
    assert await stored(pool) == 0
    assert web.webhook.counts == {"not_an_event": 1}


HARMLESS_BODIES = {
    "NUL in metadata": event(data={"object": {"metadata": {"a": "\0"}}}),
    "a lone surrogate in metadata": event(data={"object": {"metadata": {"a": "\ud800"}}}),
    "an integer beyond 64 bits": event(data={"object": {"amount": 2**80}}),
    "five levels deep": event(data={"object": {"a": {"b": {"c": {"d": [[[[]]]]}}}}}),
    "nearly the largest": event(padding="x" * (MAX_BODY_BYTES - 700)),
}


@pytest.mark.parametrize("body", HARMLESS_BODIES.values(), ids=HARMLESS_BODIES.keys())
async def test_what_only_databases_and_decoders_dislike_is_stored_byte_for_byte(
    body: bytes, sender: Sender, pool: Pool
) -> None:
    assert (await sender.deliver(body))[0] == 200
    assert unpack(await pool.fetchval("select payload from inbox")) == body


async def test_a_body_over_the_limit_is_413_announced_or_not(sender: Sender, pool: Pool) -> None:
    body = event(padding="x" * MAX_BODY_BYTES)
    assert (await sender.deliver(body))[0] == 413

    async def chunks() -> object:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    headers = {"Content-Type": "application/json", "Stripe-Signature": signature(body)}
    async with sender.session.post(f"{sender.base}/stripe/webhook", data=chunks(), headers=headers) as answer:
        assert answer.status == 413
    assert await stored(pool) == 0


async def test_a_body_in_several_segments_is_read_whole(web: Listening, pool: Pool) -> None:
    body = event()
    reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
    head = f"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nStripe-Signature: {signature(body)}\r\n\r\n"
    writer.write(head.encode() + body[:10])
    await asyncio.sleep(0.05)
    writer.write(body[10:100])
    await asyncio.sleep(0.05)
    writer.write(body[100:])
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert await stored(pool) == 1


async def test_http_1_0_and_connection_close_are_answered_and_closed(web: Listening, pool: Pool) -> None:
    for number, head in enumerate(("HTTP/1.0\r\nHost: x", "HTTP/1.1\r\nHost: x\r\nConnection: close")):
        body = event(f"evt_{number}")
        reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
        lines = (
            f"POST /stripe/webhook {head}\r\nContent-Length: {len(body)}\r\nStripe-Signature: {signature(body)}\r\n\r\n"
        )
        writer.write(lines.encode() + body)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert b" 200 OK\r\n" in answer
        assert answer.endswith(b"stored\n")
        writer.close()
    assert await stored(pool) == 2


async def test_several_requests_in_one_segment_are_answered_in_order(web: Listening, pool: Pool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
    for body in (event("evt_1"), b"{}", event("evt_2")):
        head = f"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nStripe-Signature: {signature(body)}\r\n\r\n"
        writer.write(head.encode() + body)
    answers = b""
    while answers.count(b"HTTP/1.1 ") < 3 or not answers.endswith(b"stored\n"):
        answers += await asyncio.wait_for(reader.read(65_536), 5)
    assert [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400", b"200"]
    writer.close()
    assert await stored(pool) == 2


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_another_method_is_405_and_says_which_is_right(method: str, sender: Sender) -> None:
    async with sender.session.request(method, f"{sender.base}/stripe/webhook") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON;charset=UTF-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_a_content_that_is_clearly_not_json_is_415(content_type: str, status: int, sender: Sender) -> None:
    assert (await sender.deliver(event(), **{"Content-Type": content_type}))[0] == status


async def test_a_compressed_body_is_neither_unpacked_nor_believed(sender: Sender, pool: Pool) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert (await sender.deliver(bomb, header=signature(event()), **{"Content-Encoding": "gzip"}))[0] == 400
    assert await stored(pool) == 0


async def test_refusals_are_counted_by_reason_and_tell_an_attacker_nothing(
    sender: Sender, web: Listening, pool: Pool
) -> None:
    body = event()
    now = int(time.time())
    cases = {
        "signature_missing": "",
        "signature_malformed": "t=1,t=1,v1=" + "0" * 64,
        "signature_mismatch": f"t={now},v1={'0' * 64}",
        "signature_time": signature(body, signed_at=now - 1000),
    }
    for header in cases.values():
        status, text, _ = await sender.deliver(body, header=header)
        assert status == 400
        assert "whsec" not in text
    assert web.webhook.counts == dict.fromkeys(cases, 1)
    _, metrics = await sender.get("/metrics")
    for reason in cases:
        assert f'finalsale_intake_answers_total{{outcome="{reason}"}} 1.0' in metrics
    assert await stored(pool) == 0


async def test_forged_posts_touch_no_database(settings: Settings, pool: Pool) -> None:
    async with listening(settings) as running, aiohttp.ClientSession() as session:
        await eventually(running.watch.ready)
        sender = Sender(running.port, session)
        body = event()
        for _ in range(20):
            answers = await asyncio.gather(
                *(sender.deliver(body, header=f"t={int(time.time())},v1={'f' * 64}") for _ in range(100))
            )
            assert {status for status, _, _ in answers} == {400}
        names = await pool.fetch("select application_name from pg_stat_activity where datname = current_database()")
        assert "finalsale intake" not in {row["application_name"] for row in names}
    assert await stored(pool) == 0


async def test_a_sender_that_leaves_before_the_answer_disturbs_nobody(
    sender: Sender, web: Listening, pool: Pool
) -> None:
    async def leave(number: int) -> None:
        body = event(f"evt_gone_{number}")
        _, writer = await asyncio.open_connection("127.0.0.1", web.port)
        head = f"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nStripe-Signature: {signature(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.transport.abort()

    stays = [sender.deliver(event(f"evt_{number}")) for number in range(50)]
    answers = await asyncio.gather(*stays, *(leave(number) for number in range(50)))
    assert [answer[0] for answer in answers[:50] if answer] == [200] * 50
    assert await pool.fetchval("select count(*) from inbox where event_id not like 'evt_gone%'") == 50


async def test_readiness_is_told_to_machines(sender: Sender) -> None:
    await asyncio.sleep(0.2)
    assert await sender.get("/healthz") == (200, {"status": "ok"})
    status, told = await sender.get("/readyz")
    assert (status, told) == (
        200,
        {
            "ready": True,
            "postgres": "ok",
            "migrations": "current",
            "backlog": 0,
            "backlog_limit": 500_000,
            "redis": "ok",
        },
    )


async def test_a_backlog_over_its_limit_is_503_and_goes_away_by_itself(settings: Settings, pool: Pool) -> None:
    async with (
        listening(settings.model_copy(update={"intake_backlog_limit": 3})) as running,
        aiohttp.ClientSession() as session,
    ):
        await eventually(running.watch.ready)
        sender = Sender(running.port, session)
        for number in range(3):
            assert (await sender.deliver(event(f"evt_{number}")))[0] == 200
        await eventually(running.watch.overloaded)
        status, _, headers = await sender.deliver(event("evt_late"))
        assert (status, headers["Retry-After"]) == (503, "5")
        assert (await sender.get("/readyz"))[0] == 503
        await pool.execute("update inbox set state = 'done'")
        await eventually(lambda: not running.watch.overloaded())
        assert (await sender.deliver(event("evt_late")))[0] == 200


async def test_smuggled_requests_are_refused_and_closed(web: Listening, pool: Pool) -> None:
    body = event()
    plain = f"POST /stripe/webhook HTTP/1.1\r\nHost: x\r\nStripe-Signature: {signature(body)}\r\n"
    heads = [
        plain + f"Content-Length: {len(body)}\r\nTransfer-Encoding: chunked\r\n",
        plain + f"Content-Length: {len(body)}\r\nContent-Length: 5\r\n",
        plain + f"Content-Length : {len(body)}\r\n",
        plain + "Transfer-Encoding: xchunked\r\n",
        plain + f"Content-Length: +{len(body)}\r\n",
        plain + f"Content-Length: {len(body)}\r\nX: a\0b\r\n",
        plain + f"Content-Length: {len(body)}\r\n folded: yes\r\n",
    ]
    for head in heads:
        reader, writer = await asyncio.open_connection("127.0.0.1", web.port)
        writer.write(head.encode() + b"\r\n" + body)
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(
            b"HTTP/1.0 400 "
        ) or b" 400 " in await reader.readline(), head
        writer.close()
    assert await stored(pool) == 0


async def test_silent_connections_do_not_keep_an_honest_sender_out(sender: Sender) -> None:
    held: list[socket.socket] = []
    try:
        for _ in range(1100):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", sender.port))
            held.append(connection)
            if len(held) % 100 == 0:
                await asyncio.sleep(0.02)
        began = time.monotonic()
        assert (await sender.deliver(event()))[0] == 200
        assert time.monotonic() - began < 1
        await asyncio.sleep(0.1)
        assert 50 <= sum(_is_closed(connection) for connection in held) <= 200  # the oldest had to make room
    finally:
        for connection in held:
            connection.close()


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


async def test_nothing_that_is_secret_or_personal_reaches_answers_or_metrics(sender: Sender) -> None:
    canaries = ["canary@example.com", "sk_live_canary", "4242424242424242"]
    body = event(data={"object": {"receipt_email": canaries[0], "note": canaries[1], "number": canaries[2]}})
    seen = json.dumps(
        [await sender.deliver(body), await sender.deliver(body + b"}"), await sender.deliver(body, header="")]
    )
    seen += str(await sender.get("/metrics")) + str(await sender.get("/readyz"))
    assert not [canary for canary in canaries if canary in seen]
