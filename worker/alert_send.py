"""The process that sends one alert: apprise behind a guard that lets it reach public addresses and do nothing else.

`python -m worker.alert_send` reads one request on standard input and writes one answer, both JSON:

    {"do": "check", "urls": [...], "near": [...]}                                 -> [null or what is wrong, ...]
    {"do": "send", "url": ..., "near": [...], "id", "title", "body", "severity"}  -> [sent, null or what went wrong, refused]

apprise and the libraries below it open connections as they like. What decides is therefore not the URL but an audit hook, which
sees every address that a socket is really to be connected to: neither a name that answers differently the second time nor a
redirect gets round it. The hook cannot be taken off, so it lives in a process of its own, which ends with the message.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import signal
import socket
import sys
from typing import Any

import apprise
import msgspec
from apprise.common import OverflowMode
from apprise.plugins.email import base as email_plugin

from worker.public_address import Near, why_not_public

END_AFTER_S = 25
"""If whoever started this process is gone: longer than it would wait."""
MAX_MEMORY = 512 * 1024 * 1024
NOT_FOR_GOOD = ("408", "425", "429")
"""What a service answers that would take the same message later."""
SHORT_MESSAGES = 1000
"""Services that take less than so many characters (text messages) get the beginning; others get all of it, in parts."""
TYPES = {
    "critical": apprise.NotifyType.FAILURE,
    "warning": apprise.NotifyType.WARNING,
    "note": apprise.NotifyType.INFO,
    "resolved": apprise.NotifyType.SUCCESS,
}
# Services that show something on this machine, or speak to the network in the clear whatever their scheme promises.
# fmt: off
_LOCAL = frozenset({
    "aprs", "blink1", "dbus", "deltachat", "file", "gio", "glib", "gnome", "growl", "kde", "macosx", "qt", "rsyslog", "sendmail",
    "smpp", "smpps", "syslog", "windows",
})
_FORBIDDEN = {
    **dict.fromkeys(("socket.bind", "socket.sendto", "socket.sendmsg"), "it would speak to the network without a connection"),
    **dict.fromkeys(("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
                     "os.startfile", "pty.spawn", "ctypes.dlopen"), "it would start a program"),
    **dict.fromkeys(("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
                     "os.truncate", "os.utime", "shutil.move"), "it would change a file"),
}
# fmt: on
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


class Refused(OSError):
    """The guard did not let it happen. An OSError, because that is what the libraries expect of a failing network."""


class Guard:
    """What may be reached: public addresses, and the near ones that were allowed on purpose."""

    def __init__(self, near: Near) -> None:
        self.near = near
        self.refused: list[str] = []
        """Why something was refused, in our own words."""
        self._resolved_near: set[str] = set()

    def install(self) -> None:
        """Guard this process from now on, for good."""
        resolve = socket.getaddrinfo

        def resolve_and_note(host: Any, *args: Any, **kwargs: Any) -> Any:
            found = resolve(host, *args, **kwargs)
            if isinstance(host, str) and host.lower().rstrip(".") in self.near.names:
                self._resolved_near.update(str(entry[4][0]) for entry in found)
            return found

        socket.getaddrinfo = resolve_and_note
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Raises Refused for what this process must not do."""
        if event == "socket.connect":
            self._connect(args[1])
        elif event in _FORBIDDEN:
            self._refuse(_FORBIDDEN[event])
        elif event == "open" and _is_writing(args[1], args[2]):
            self._refuse("it would write a file")

    def _connect(self, to: Any) -> None:
        try:
            address = ipaddress.ip_address(to[0] if isinstance(to, tuple) else "")
        except ValueError:
            self._refuse("it would connect to something that is no address")
        if self.near.has_address(address) or str(address) in self._resolved_near:
            return
        if (reason := why_not_public(address)) is not None:
            self._refuse(f"its address is not public ({reason}); FINALSALE_ALERT_PRIVATE_HOSTS allows one on purpose")

    def _refuse(self, why: str) -> Any:
        self.refused.append(why)
        raise Refused(why)


def _is_writing(mode: Any, flags: Any) -> bool:
    return bool(isinstance(flags, int) and flags & _WRITES) or (isinstance(mode, str) and bool(set(mode) & set("wax+")))


class _Said(logging.Handler):
    """The status that a service answered, out of what apprise logs; nothing else of it, for it may quote the URL."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = False
        """Whether that was an answer, and the same one is to be expected the next time."""
        self.status: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.levelno >= logging.WARNING:
            found = re.search(r"error=(\d{3})\b", said)
        else:  # of a mail server only the refusals for good; everything else at this level may quote what is sent
            found = re.search(r"\((5\d\d), b['\"]", said) if said.startswith("Socket Exception: ") else None
        if found:
            self.status = found[1]
            self.refused = record.levelno < logging.WARNING or (found[1][0] == "4" and found[1] not in NOT_FOR_GOOD)


# which URLs may be used --------------------------------------------------------------------------------------------------


def check(url: str, near: Near) -> str | None:
    """What is wrong with a URL, in our own words, or None."""
    scheme = url.partition("://")[0].lower()
    if scheme in _LOCAL:
        return f"alerts may not use {scheme}://, which is for this machine or unprotected"
    service = _service(url)
    if service is None:
        return "apprise does not understand it (its scheme is unknown, or something that the service needs is missing)"
    host = str(getattr(service, "smtp_host", None) or service.host or "")
    allowed = near.has_host(host)
    if not allowed and not _is_encrypted(service, scheme):
        return (
            "it would be sent unencrypted: use the scheme with TLS, or name its host in FINALSALE_ALERT_PRIVATE_HOSTS"
        )
    if not allowed and not service.verify_certificate:
        return "it asks not to verify the certificate, which is for hosts of FINALSALE_ALERT_PRIVATE_HOSTS only"
    try:
        reason = why_not_public(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        reason = "loopback" if host == "localhost" or host.endswith(".localhost") else None
    if reason and not allowed:
        return f"its address is not public ({reason}): name it in FINALSALE_ALERT_PRIVATE_HOSTS if that is meant"
    return None


def _service(url: str) -> Any:
    asset = apprise.AppriseAsset(
        app_id="finalsale", app_desc="finalsale", app_url="", storage_mode=apprise.PersistentStoreMode.MEMORY
    )
    asset.http_redirects = False
    try:
        return apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
    except Exception:  # a plugin's own bug with an odd URL is as good as a URL that is not understood
        return None


def _is_encrypted(service: Any, scheme: str) -> bool:
    if isinstance(service, email_plugin.NotifyEmail):
        return bool(service.secure) and str(service.secure_mode) != "insecure"
    if str(getattr(service, "notify_url", "")).startswith("https://"):
        return True
    secure = type(service).secure_protocol or ()
    return scheme in ((secure,) if isinstance(secure, str) else secure)


# sending -----------------------------------------------------------------------------------------------------------------


def send(asked: dict[str, Any], guard: Guard) -> tuple[bool, str | None, bool]:
    """Send one message, with its id where the service has a place for it; guarded from before the URL is used.

    Whether it was sent, what went wrong, and whether the service refused it for good.
    """
    if (wrong := check(asked["url"], guard.near)) is not None:
        return False, wrong, False
    service = _service(asked["url"])
    _mark(service, asked["id"])
    said = _Said()
    library = logging.getLogger("apprise")
    library.addHandler(said)
    library.propagate = False
    library.setLevel(logging.DEBUG)
    guard.install()
    try:
        sent = service.notify(
            title=asked["title"],
            body=asked["body"],
            notify_type=TYPES.get(asked["severity"], apprise.NotifyType.WARNING),
            body_format=apprise.NotifyFormat.TEXT,
        )
    except Exception as error:  # whatever a plugin does wrong: the message was not sent
        sent, said.status = False, said.status or type(error).__name__
    if sent:
        return True, None, False
    if guard.refused:
        return False, f"refused: {guard.refused[0]}", False
    if said.status:
        return False, f"the service answered {said.status}", said.refused
    return False, "the service could not be reached or refused it", False


def _mark(service: Any, id_: str) -> None:
    """Whoever gets the same message twice can tell by its id; redirects are never followed, whatever the URL says."""
    service.redirects = False
    if service.overflow_mode == OverflowMode.UPSTREAM:
        service.overflow_mode = OverflowMode.SPLIT if service.body_maxlen >= SHORT_MESSAGES else OverflowMode.TRUNCATE
    service.request_rate_per_sec = min(service.request_rate_per_sec, 1)
    if isinstance(getattr(service, "headers", None), dict):
        service.headers["X-Finalsale-Message"] = id_
    if isinstance(getattr(service, "payload_extras", None), dict):
        service.payload_extras["id"] = id_

    def same_id(idstring: str | None = None, domain: str | None = None) -> str:
        return f"<{id_}@{domain or 'finalsale.invalid'}>"

    vars(email_plugin)["make_msgid"] = same_id  # apprise would make a new Message-ID each time


def main() -> None:
    """One request, one answer."""
    if sys.platform != "win32":
        import resource

        signal.alarm(END_AFTER_S)
        resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))  # a service's endless answer ends here
    asked = msgspec.json.decode(sys.stdin.buffer.read())
    near = Near(asked["near"])
    answer = [check(url, near) for url in asked["urls"]] if asked["do"] == "check" else send(asked, Guard(near))
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
