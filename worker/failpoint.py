"""Named points at which a test can make a real process fail: raise, or die on the spot. Off unless the environment names one."""

from __future__ import annotations

import os

POINTS = frozenset(
    [
        *("after_claim", "after_fold", "after_decide", "after_accounts", "before_commit", "after_commit"),
        *("after_last_look", "after_sending_commit", "after_http", "before_sent_commit", "after_sent_commit"),
    ]
)
"""Every point there is; a test goes through all of them."""


class FailpointReached(RuntimeError):
    """Raised where a test asked for it."""


def failpoint(name: str) -> None:
    """Do what `FINALSALE_FAILPOINT=name:raise|exit` says, once; nothing where it says nothing."""
    wanted = os.environ.get("FINALSALE_FAILPOINT")
    if not wanted:
        return
    assert name in POINTS, f"{name} is not listed in POINTS"
    point, _, deed = wanted.partition(":")
    if point != name:
        return
    del os.environ["FINALSALE_FAILPOINT"]
    if deed == "exit":
        os._exit(70)
    raise FailpointReached(name)
