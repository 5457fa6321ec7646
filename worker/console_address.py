"""Where people open the console."""

from __future__ import annotations

from worker.settings import Settings


def console_address(settings: Settings, port: int | None = None) -> str:
    """FINALSALE_CONSOLE_URL, or the public address, or this machine's loopback with the port that is served."""
    base = settings.console_url or settings.public_url or f"http://localhost:{port or settings.port}"
    return base.rstrip("/").removesuffix("/console") + "/console/"
