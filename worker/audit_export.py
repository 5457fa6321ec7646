"""The audit chain in a file for an auditor, and digests of it that are kept elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from worker.audit import ENCODER, GENESIS, Digest, links
from worker.db import Connection, queries
from worker.errors import Permanent
from worker.reading import Document, fetch


class DigestUnreadable(Permanent):
    """What the chain should be compared with is no digest of it; the message says what is."""

    error_code = "digest_unreadable"


async def exported(conn: Connection) -> AsyncIterator[bytes]:
    """The chain as JSON lines, each link with the row as it is now where this is the newest word about it. Must run in a snapshot.

    The same chain and rows give the same bytes. What customers wrote is left out.
    """
    async for rows in links(conn):
        by_source: dict[str, list[str]] = {}
        for row in rows:
            by_source.setdefault(row["source"], []).append(row["row_id"])
        found: dict[tuple[str, str], Any] = {}
        for source, ids in by_source.items():
            for one in await fetch(conn, queries.export_rows, source=source, ids=ids):
                found[source, one["row_id"]] = one["document"]
        for row in rows:
            document = {
                "seq": row["seq"],
                "at_us": row["at_us"],
                "source": row["source"],
                "realm": row["realm"],
                "id": row["row_id"],
                "content": row["content"].hex(),
                "hash": row["hash"].hex(),
                "row": msgspec.Raw(found.get((row["source"], row["row_id"]), "null").encode()),
            }
            yield ENCODER.encode(document) + b"\n"


async def export(conn: Connection, path: Path) -> Document:
    """Write the chain into a file, and a detached digest of the file, of the chain's length and head into FILE.sha256."""
    hasher, length, last = hashlib.sha256(), 0, b""
    with path.open("wb") as file:
        async for line in exported(conn):
            file.write(line)
            hasher.update(line)
            length, last = length + 1, line
    head_ = json.loads(last)["hash"] if length else GENESIS.hex()
    digest = path.with_name(path.name + ".sha256")
    digest.write_text(f"{hasher.hexdigest()}  {path.name}\nlength {length}\nhead {head_}\n", encoding="utf-8")
    return {"file": str(path), "digest": str(digest), "sha256": hasher.hexdigest(), "length": length, "head": head_}


def read_digest(told: str) -> Digest:
    """A chain's earlier state: a hash, LENGTH:HASH, an exported file or the digest beside it. Raises DigestUnreadable."""
    if plain := re.fullmatch(r"(?:(\d{1,18}):)?([0-9a-f]{64})", told):
        return Digest(int(plain[1]) if plain[1] else None, bytes.fromhex(plain[2]))
    path = Path(told)
    beside = Path(f"{told}.sha256")
    try:
        text = (beside if beside.exists() else path).read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        raise DigestUnreadable(
            f"{told!r} is neither a hash of 64 digits, nor LENGTH:HASH, nor a file that can be read."
        ) from None
    length, head_ = re.search(r"^length (\d{1,18})$", text, re.M), re.search(r"^head ([0-9a-f]{64})$", text, re.M)
    if length is None or head_ is None:
        raise DigestUnreadable(
            f"{told} has no lines `length N` and `head HASH`: name the .sha256 that `audit export` wrote."
        )
    return Digest(int(length[1]), bytes.fromhex(head_[1]))
