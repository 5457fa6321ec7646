"""The sender of the benchmarks: signed events over keep-alive connections, from a process of its own.

A closed loop: each connection sends its next event when the answer to the last one is there. Every event has an id of its own;
only the last bytes of a body differ, so that signing needs a copied hash state and not the whole body, and everything is signed
before the clock starts: the sender shares the machine with what it measures and must cost little.
"""

from __future__ import annotations

import gc
import hashlib
import hmac
import itertools
import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator

BODY_BYTES = 6 * 1024
WARM_UP_S = 0.5
MOST_PER_S = 50_000  # requests are signed before the clock starts


def charge_event(size: int = BODY_BYTES) -> bytes:
    """A `charge.succeeded` event of `size` bytes, pretty-printed as Stripe does, up to the value of its `id`."""
    charge: dict[str, object] = {
        "id": "ch_3PbenchAAAAAAAAAA0000000",
        "object": "charge",
        "amount": 2000,
        "amount_captured": 2000,
        "amount_refunded": 0,
        "balance_transaction": "txn_3PbenchAAAAAAAAAA0000000",
        "billing_details": {
            "address": {"city": None, "country": "DE", "line1": None},
            "email": None,
            "name": None,
            "phone": None,
        },
        "captured": True,
        "created": 1_764_000_000,
        "currency": "eur",
        "customer": "cus_bench00000000",
        "disputed": False,
        "livemode": False,
        "paid": True,
        "payment_intent": "pi_3PbenchAAAAAAAAAA0000000",
        "payment_method_details": {
            "card": {"brand": "visa", "checks": {"cvc_check": "pass"}, "fingerprint": "bench"},
            "type": "card",
        },
        "refunded": False,
        "status": "succeeded",
        "metadata": {},
    }
    event = {
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": 1_764_000_000,
        "data": {"object": charge},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": "charge.succeeded",
    }
    metadata = charge["metadata"]
    assert isinstance(metadata, dict)
    for number in itertools.count():
        if len(json.dumps(event, indent=2)) + 100 > size:
            break
        metadata[f"order_line_{number}"] = "article 4711, one piece"
    return json.dumps(event, indent=2).removesuffix("\n}").encode() + b',\n  "id": "'


class Sender:
    """One keep-alive connection: a blocking socket that is only touched when it has something to read."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self.received = b""

    def send(self, request: list[bytes]) -> None:
        self.sent_at = time.perf_counter()
        sent = self.socket.sendmsg(request)
        if sent < sum(map(len, request)):
            self.socket.sendall(b"".join(request)[sent:])

    def answer(self) -> int | None:
        """The status of a complete answer, 0 of a broken connection, None while more has to come."""
        part = self.socket.recv(65536)
        if not part:
            return 0
        self.received += part
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0):
            return None
        self.received = b""
        return int(head[9:12])


def signed_requests(prefix: str, secret: bytes, count: int) -> Iterator[list[bytes]]:
    """Requests in parts that are sent with one call: the head with its signature, the shared body, the id at its end."""
    body = charge_event()
    signed_at = str(int(time.time())).encode()
    mac = hmac.new(secret, signed_at + b"." + body, hashlib.sha256)
    length = len(body) + len(prefix) + 8 + len(b'"\n}')
    head = (
        b"POST /stripe/webhook HTTP/1.1\r\nHost: bench\r\nUser-Agent: Stripe/1.0\r\nAccept: */*\r\n"
        b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\nStripe-Signature: t=%b,v1="
        % (length, signed_at)
    )
    for number in range(count):
        tail = b'%b%08d"\n}' % (prefix.encode(), number)
        signature = mac.copy()
        signature.update(tail)
        yield [b"%b%b\r\n\r\n" % (head, signature.hexdigest().encode()), body, tail]


def run_load(port: int, prefix: str, secret: bytes, seconds: float, connections: int) -> dict[str, object]:
    """Send for WARM_UP_S and then `seconds`; the figures of the second part, and all answers by status (0: broken)."""
    requests = list(signed_requests(prefix, secret, int(MOST_PER_S * (WARM_UP_S + seconds))))
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        sender = Sender(port)
        selector.register(sender.socket, selectors.EVENT_READ, sender)
    gc.freeze()
    gc.disable()  # nothing here is cyclic, and a collection would pause all connections at once
    began = time.perf_counter()
    cpu_began = time.process_time()
    measure_from, until = began + WARM_UP_S, began + WARM_UP_S + seconds
    latencies: list[float] = []
    statuses: dict[int, int] = {}
    for key in list(selector.get_map().values()):
        key.data.send(requests.pop())
    while selector.get_map():
        for key, _ in selector.select(10):
            sender = key.data
            status = sender.answer()
            if status is None:
                continue
            now = time.perf_counter()
            statuses[status] = statuses.get(status, 0) + 1
            if measure_from <= now < until:
                latencies.append(now - sender.sent_at)
            if now < until and status and requests:
                sender.send(requests.pop())
            else:
                selector.unregister(sender.socket)
                sender.socket.close()
    cpu_s = time.process_time() - cpu_began
    latencies.sort()
    return {
        "per_s": len(latencies) / seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
        "sender_cpu_us": cpu_s / sum(statuses.values()) * 1e6,
        "statuses": statuses,
    }


def main() -> None:
    """`python -m bench.load PORT PREFIX SECRET SECONDS CONNECTIONS`: the figures as one JSON document."""
    port, prefix, secret, seconds, connections = sys.argv[1:]
    print(json.dumps(run_load(int(port), prefix, secret.encode(), float(seconds), int(connections))))


if __name__ == "__main__":
    main()
