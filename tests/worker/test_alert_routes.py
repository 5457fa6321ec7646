"""Alert URLs: read and named without their secrets, refused where they are unsafe, and no connection to what is not public."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.worker.receivers import HOST, closed_port, mailbox, webhook
from worker import alert_routes
from worker.alert_routes import Outcome, near_of, read_routes, routes_of, send
from worker.errors import SettingsInvalid
from worker.public_address import Near, why_not_public
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
BOTH = ["critical", "warning"]


def given(urls: str, private: str | None = None) -> Settings:
    return Settings(alert_urls=SecretStr(urls), alert_private_hosts=private)


# which addresses are public ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "this network"),
        ("0.1.2.3", "this network"),
        ("10.0.0.1", "private"),
        ("10.255.255.255", "private"),
        ("100.64.0.1", "carrier"),
        ("100.127.255.255", "carrier"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("169.254.169.254", "link-local"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.0.0.170", "protocols"),
        ("192.0.2.1", "documentation"),
        ("192.88.99.1", "relay"),
        ("192.168.1.1", "private"),
        ("198.18.0.1", "benchmarks"),
        ("198.19.255.255", "benchmarks"),
        ("198.51.100.7", "documentation"),
        ("203.0.113.7", "documentation"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "mapped"),
        ("::ffff:8.8.8.8", "mapped"),
        ("::127.0.0.1", "compatible"),
        ("64:ff9b::7f00:1", "translated"),
        ("64:ff9b:1::a00:1", "translated"),
        ("100::1", "discard"),
        ("2001::1", "teredo"),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "teredo"),
        ("2001:db8::1", "documentation"),
        ("2002:7f00:1::", "6to4"),
        ("3fff::1", "documentation"),
        ("5f00::1", "segments"),
        ("fc00::1", "private"),
        ("fd12:3456::1", "private"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
        ("4000::1", "unassigned"),
        ("1.1.1.1", None),
        ("8.8.8.8", None),
        ("9.255.255.255", None),
        ("11.0.0.0", None),
        ("100.63.255.255", None),
        ("100.128.0.0", None),
        ("126.255.255.255", None),
        ("128.0.0.0", None),
        ("172.15.255.255", None),
        ("172.32.0.0", None),
        ("192.0.1.0", None),
        ("198.17.255.255", None),
        ("198.20.0.0", None),
        ("223.255.255.255", None),
        ("2606:4700:4700::1111", None),
        ("2a00:1450:4001:81b::200e", None),
        ("2001:4860:4860::8888", None),
    ],
)
def test_an_address_is_public_or_lies_in_a_range_that_is_set_apart(address: str, reason: str | None) -> None:
    assert why_not_public(ipaddress.ip_address(address)) == reason


def test_near_hosts_are_addresses_networks_and_names() -> None:
    near = Near(["10.1.0.0/16", "[::1]", "Mail.Internal."])
    assert near.has_host("10.1.2.3")
    assert near.has_host("[::1]")
    assert near.has_host("mail.internal")
    assert not near.has_host("10.2.0.1")
    assert not near.has_host("internal")
    assert not near.has_address(ipaddress.ip_address("::ffff:10.1.2.3"))
    with pytest.raises(SettingsInvalid, match="PRIVATE_HOSTS: entry 2"):
        near_of(given("", "10.0.0.1, http://x/"))


# reading ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("", []),
        ("json://a/x", [("json://a/x", BOTH)]),
        ("json://a/x json://b/y\n\tjson://c/", [("json://a/x", BOTH), ("json://b/y", BOTH), ("json://c/", BOTH)]),
        ("json://a/x,json://b/y", [("json://a/x", BOTH), ("json://b/y", BOTH)]),
        ("json://a/x, json://b/y,", [("json://a/x", BOTH), ("json://b/y", BOTH)]),
        (
            "mailtos://u:p@h?to=a@b.c,d@e.f,critical=json://b/",
            [("mailtos://u:p@h?to=a@b.c,d@e.f", BOTH), ("json://b/", ["critical"])],
        ),
        ("critical=json://a/", [("json://a/", ["critical"])]),
        ("critical+note=json://a/?x=y", [("json://a/?x=y", ["critical", "note"])]),
        ("note=json://a/ warning=json://a/", [("json://a/", ["note", "warning"])]),
    ],
)
def test_routes_are_read_with_their_severities(written: str, read: list[tuple[str, list[str]]]) -> None:
    assert [(r.url, sorted(r.severities)) for r in read_routes(given(written))] == read


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("json://ok/ hunter2", "entry 2 is no URL"),
        ("json://ok/,loud=json://hunter2/", "entry 2 is for a severity that does not exist"),
        ("jsons://example.com/ nonsense://hunter2/", "entry 2 cannot be used: apprise does not understand it"),
        ("slack://hunter2", "entry 1 cannot be used: apprise does not understand it"),
        ("json://example.com/hunter2", "entry 1 cannot be used: it would be sent unencrypted"),
        ("mailto://hunter2:x@example.com", "entry 1 cannot be used: it would be sent unencrypted"),
        ("mailtos://u:hunter2@example.com?mode=insecure", "entry 1 cannot be used"),
        ("jsons://example.com/hunter2?verify=no", "entry 1 cannot be used: it asks not to verify the certificate"),
        ("jsons://10.1.2.3/hunter2", "its address is not public .private."),
        ("jsons://[::1]/hunter2", "its address is not public .loopback."),
        ("jsons://localhost/hunter2", "its address is not public .loopback."),
        ("mailtos://u:hunter2@example.com?smtp=169.254.169.254", "its address is not public .link-local."),
        ("file:///hunter2", "alerts may not use file://"),
        ("syslog://hunter2", "alerts may not use syslog://"),
        ("rsyslog://hunter2", "alerts may not use rsyslog://"),
        ("dbus://hunter2", "alerts may not use dbus://"),
        ("gnome://hunter2", "alerts may not use gnome://"),
        ("macosx://hunter2", "alerts may not use macosx://"),
        ("windows://hunter2", "alerts may not use windows://"),
        ("growl://hunter2", "alerts may not use growl://"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_the_start_by_its_place_and_is_never_quoted(
    written: str, says: str
) -> None:
    with pytest.raises(SettingsInvalid, match=says) as refused:
        routes_of(given(written))
    assert "hunter2" not in str(refused.value)


def test_services_over_tls_and_near_hosts_in_the_clear_can_be_used_and_are_named_without_their_secrets() -> None:
    urls = [
        "discord://123456789/hunter2_hunter2",
        "mailtos://u:hunter2@gmail.com",
        "mailto://127.0.0.1:2525?from=a@example.com&to=b@example.com",
        "json://hooks.internal/hunter2",
        "jsons://u:hunter2@example.com/path?+X-Token=hunter2",
    ]
    routes = routes_of(given("\n".join(urls), "127.0.0.1,hooks.internal"))
    assert [r.url for r in routes] == urls
    assert [r.name.partition("-")[0] for r in routes] == ["discord", "mailtos", "mailto", "json", "jsons"]
    assert len({r.name for r in routes}) == 5
    assert "hunter2" not in repr(routes)


# sending ----------------------------------------------------------------------------------------------------------------


async def sent(url: str, private: str | None = HOST, **told: str) -> Outcome:
    settings = given(url, private)
    (route,) = read_routes(settings)
    message = {"id_": "alm_1", "title": "A title", "body": "A body", "severity": "critical", **told}
    return await send(route, near_of(settings), **message)


async def test_a_message_reaches_mail_and_webhook_with_its_id() -> None:
    async with mailbox() as box, webhook() as hook:
        assert await sent(box.url) == Outcome(True)
        assert await sent(hook.url) == Outcome(True)
        assert await sent(hook.url.replace(HOST, "localhost"), "localhost") == Outcome(True)
        assert [tuple(m) for m in box.heard] == [("alm_1", "A title", "A body\n")]
        assert [tuple(m) for m in hook.heard] == [("alm_1", "A title", "A body")] * 2
        assert hook.bodies[0]["type"] == "failure"


async def test_what_the_service_says_is_told_in_our_own_words() -> None:
    async with webhook() as hook:
        hook.answer = lambda: 401
        assert await sent(hook.url) == Outcome(False, "the service answered 401", refused=True)
    silent = await sent(f"json://{HOST}:{closed_port()}/hunter2")
    assert silent == Outcome(False, "the service could not be reached or refused it")


async def test_a_redirect_is_not_followed_even_where_the_url_asks_for_it() -> None:
    async with webhook() as hook, webhook() as other:
        hook.answer, hook.to = lambda: 307, other.url.replace("json:", "http:")
        assert not (await sent(f"{hook.url}?redirect=yes")).sent
        assert (len(hook.requests), other.requests) == (1, [])


async def test_a_service_that_never_answers_is_left_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_routes, "SEND_WITHIN_S", 2.0)
    async with webhook() as hook:
        hook.slow_s = 4
        url = f"{hook.url}?rto=60"
        assert await sent(url) == Outcome(False, "no answer within 2 s")


async def test_a_name_that_resolves_to_this_machine_is_refused_when_it_is_connected_to() -> None:
    """A machine's own name says nothing about its address in the URL's text; what counts is the address."""
    name = socket.gethostname()
    try:
        reason = why_not_public(ipaddress.ip_address(socket.gethostbyname(name)))
    except OSError:
        reason = None
    if reason is None:
        pytest.skip("this machine's name does not resolve to an address of its own network")
    async with webhook() as hook:
        outcome = await sent(hook.url.replace("json:", "jsons:").replace(HOST, name), None)
        assert outcome.problem is not None
        assert outcome.problem.startswith(f"refused: its address is not public ({reason})")
        assert hook.requests == []


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001", "017700000001", "[::ffff:127.0.0.1]"])
async def test_no_way_of_writing_this_machines_address_reaches_it(host: str) -> None:
    async with webhook() as hook:
        assert not (await sent(f"jsons://{host}:{hook.port}/", None)).sent
        assert hook.requests == []


def in_a_guarded_process(script: str, near: list[str] | None = None) -> Any:
    """Run a script behind the real guard and read what it prints."""
    prelude = f"""
        import json, os, socket, subprocess, sys
        from worker import alert_send
        from worker.public_address import Near
        guard = alert_send.Guard(Near({near or []!r}))
        def tried(do):
            try:
                do()
            except OSError as error:
                return type(error).__name__
            return "done"
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


async def test_a_resolver_that_answers_public_first_and_this_machine_second_never_gets_a_connection() -> None:
    """DNS rebinding: the stand-in is the system's resolver; the guard, apprise and the sockets are the real ones."""
    async with webhook() as hook:
        script = f"""
            answers = iter(["93.184.216.34", "{HOST}", "{HOST}", "{HOST}"])
            asked = []
            def resolver(host, port, *rest, **more):
                address = next(answers)
                asked.append(address)
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, {hook.port}))]
            socket.getaddrinfo = resolver
            first = socket.getaddrinfo("rebinding.example.com", {hook.port})[0][4][0]
            request = {{"url": "jsons://rebinding.example.com:{hook.port}/?retry=2&wait=0", "id": "x", "title": "t", "body": "b",
                        "severity": "note"}}
            outcome = alert_send.send(request, guard)
            print(json.dumps([first, asked, outcome]))
        """
        first, asked, outcome = await asyncio.to_thread(in_a_guarded_process, script)
        assert (first, asked[:2]) == ("93.184.216.34", ["93.184.216.34", HOST])
        assert outcome[0] is False
        assert outcome[1].startswith("refused: its address is not public (loopback)")
        assert hook.requests == []


async def test_the_guard_refuses_connections_datagrams_programs_and_files(tmp_path: Path) -> None:
    async with webhook() as hook:
        script = f"""
            def connect(address, family=socket.AF_INET):
                with socket.socket(family) as s:
                    s.settimeout(1)
                    s.connect(address)
            attempts = {{
                "loopback": lambda: connect(("{HOST}", {hook.port})),
                "by name": lambda: connect(("localhost", {hook.port})),
                "any": lambda: connect(("0.0.0.0", {hook.port})),
                "metadata": lambda: connect(("169.254.169.254", 80)),
                "v6": lambda: connect(("::1", {hook.port}), socket.AF_INET6),
                "mapped": lambda: connect(("::ffff:{HOST}", {hook.port}), socket.AF_INET6),
                "unix": lambda: connect("/tmp/.s.PGSQL.5432", socket.AF_UNIX),
                "connect_ex": lambda: socket.socket().connect_ex(("{HOST}", {hook.port})),
                "datagram": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53)),
                "listen": lambda: socket.socket().bind(("{HOST}", 0)),
                "run": lambda: subprocess.run(["true"]),
                "system": lambda: os.system("true"),
                "write": lambda: open("{tmp_path}/a", "w"),
                "low write": lambda: os.open("{tmp_path}/a", os.O_CREAT | os.O_WRONLY),
                "mkdir": lambda: os.mkdir("{tmp_path}/d"),
                "remove": lambda: os.remove("{tmp_path}/kept"),
                "read": lambda: open("{tmp_path}/kept").close(),
            }}
            guard.install()
            print(json.dumps({{name: tried(do) for name, do in attempts.items()}}))
        """
        (tmp_path / "kept").write_text("")
        found = await asyncio.to_thread(in_a_guarded_process, script)
        assert found.pop("read") == "done"
        assert set(found.values()) == {"Refused"}, found
        assert hook.requests == []
        assert sorted(os.listdir(tmp_path)) == ["kept"]


async def test_an_allowed_network_is_reached_and_the_rest_of_this_machine_is_not() -> None:
    async with webhook() as hook:
        script = f"""
            def connect(host):
                with socket.socket() as s:
                    s.connect((host, {hook.port}))
            guard.install()
            print(json.dumps([tried(lambda: connect("{HOST}")), tried(lambda: connect("127.0.0.2"))]))
        """
        assert await asyncio.to_thread(in_a_guarded_process, script, [HOST]) == ["done", "Refused"]


async def test_the_sending_process_sees_no_proxy_and_none_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIPE_API_KEY", "sk_live_hunter2")
    async with webhook() as hook, webhook() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{HOST}:{proxy.port}")
        assert await sent(hook.url) == Outcome(True)
        assert (len(hook.requests), proxy.requests) == (1, [])
    assert not [name for name in alert_routes._environment() if "STRIPE" in name or "proxy" in name]
