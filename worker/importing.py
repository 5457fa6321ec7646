"""Events from a file, through the same statement as Stripe's deliveries; unsigned, since an operator vouches for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from worker.desk import Desk, ask, settings_of_environment
from worker.inbox import NotAnEvent, Row, read_event, store_rows
from worker.reading import Document, NotUnderstood

MAX_IMPORT_ROWS, MAX_IMPORT_BYTES = 500, 8 * 1024 * 1024


def import_events(file: Path) -> Document:
    """Store a file's events and count what became of them. Raises NotUnderstood where the file cannot be read."""
    mode = settings_of_environment().mode
    rows: list[Row] = []
    refused: list[Document] = []
    for place, body in _bodies(file):
        try:
            rows.append(read_event(body, mode))
        except NotAnEvent as error:
            refused.append({"at": place, "why": str(error)})

    async def store(desk: Desk) -> int:
        new, batch, size = 0, list[Row](), 0
        for row in rows:
            batch.append(row)
            size += len(row.payload)
            if len(batch) >= MAX_IMPORT_ROWS or size >= MAX_IMPORT_BYTES:
                new += await store_rows(desk.conn, batch)
                batch, size = [], 0
        return new + await store_rows(desk.conn, batch)

    new = ask(store, change=True) if rows else 0
    ignored = sum(row.kind.ignored_because is not None for row in rows)
    return {
        "read": len(rows) + len(refused),
        "new": new,
        "known": len(rows) - new,
        "ignored": ignored,
        "refused": refused,
    }


def _bodies(file: Path) -> Iterator[tuple[str, bytes]]:
    """Every event of a file with its place, byte for byte as it stands there. Raises NotUnderstood."""
    try:
        text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise NotUnderstood(f"{file} cannot be read ({error.strerror}).") from None
    try:
        whole = msgspec.json.decode(text, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    except (ValueError, RecursionError):  # not one document: one event a line
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield f"line {number}", line
        return
    if isinstance(whole, dict):
        is_page = bytes(whole.get("object", b"")) == b'"list"'
        listed = (
            msgspec.json.decode(whole["data"], type=list[msgspec.Raw])
            if is_page and "data" in whole
            else [msgspec.Raw(text)]
        )
    else:
        listed = whole
    for number, raw in enumerate(listed, 1):
        yield f"event {number}", bytes(raw)
