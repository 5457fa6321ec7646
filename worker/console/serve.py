"""How the console is served: every request's way from the browser through session, role and transaction to a page and back."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from urllib.parse import urlsplit

from aiohttp import web

from worker import audit, reading
from worker.console import sessions
from worker.console.page import Answer, File, Gone, Page, Shown, Visit
from worker.console.rendering import NAV, Frame, compile_all, render
from worker.console.requests import form_of, inside, is_https, is_loopback, query_of, same_site, source_of
from worker.console.sessions import Busy, Gate, Session
from worker.console.troubles import Forbidden, Trouble, trouble_of
from worker.db import Connection, Pool, connect_pool, connection, queries
from worker.jobs import court_of
from worker.log import get_logger
from worker.settings import Settings

log = get_logger()

PREFIX = "/console"
POOL_SIZE = 4
POOL_WAIT_S = 2.0
STATEMENT_TIMEOUT_S = 5.0
LIVE_HEADER = "Finalsale-Live"
"""The page asks for itself again: nobody has touched anything, so the session goes on ageing."""
SECURE_COOKIE, LOOPBACK_COOKIE = "__Host-finalsale", "finalsale"
TELL_FAILURES_S = 60.0
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers send `Origin: null` on our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATIC = {"console.css": "text/css", "live.js": "text/javascript"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Asked:
    """One request as far as it was understood; also what a page that says no is made of."""

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.query: Mapping[str, str] = {}
        self.form: dict[str, str] = {}
        self.session: Session | None = None
        self.paused: Mapping[str, object] | None = None

    @property
    def changes(self) -> bool:
        """Whether it is a change."""
        return self.request.method not in ("GET", "HEAD")

    @property
    def is_live(self) -> bool:
        """Whether a page refreshes itself."""
        return LIVE_HEADER in self.request.headers

    def typed(self) -> dict[str, str]:
        """What the person wrote, to show it again where it was not kept."""
        return {name: text for name, text in self.form.items() if name not in ("csrf", "token", "to") and text.strip()}


class Console:
    """The pages, their own few connections, and who may see them."""

    pool: Pool

    def __init__(self, settings: Settings, pages: Sequence[Page]) -> None:
        self.settings, self.pages = settings, pages
        self.court = court_of(settings)
        self.gate = Gate()
        self._untold = Counter[str]()
        self._told_at = dict.fromkeys(("failures", "throttled"), float("-inf"))
        compile_all()

    def mount(self, app: web.Application) -> None:
        """Put all pages on `app`; what is under /console and no page says so itself."""
        for page in self.pages:
            for method in ("GET", "HEAD") if page.method == "GET" else (page.method,):
                app.router.add_route(method, PREFIX + page.path, self._handler(page))
        for name, content_type in _STATIC.items():
            app.router.add_get(f"{PREFIX}/{name}", _static(name, content_type))
        app.router.add_get(PREFIX + "/signin", self._guarded(self._show_signin))
        app.router.add_post(PREFIX + "/signin", self._guarded(self._sign_in))
        app.router.add_post(PREFIX + "/signout", self._guarded(self._sign_out))
        app.router.add_get(PREFIX, _to_first_page)
        app.router.add_route("*", PREFIX + r"/{rest:[\s\S]*}", self._handler(None))
        app.cleanup_ctx.append(self._connected)

    async def _connected(self, _: web.Application) -> AsyncIterator[None]:
        self.pool = await connect_pool(
            self.settings.database_dsn(),
            role="console",
            min_size=0,  # a web process has to start without Postgres
            max_size=POOL_SIZE,
            statement_timeout_s=STATEMENT_TIMEOUT_S,
            lock_timeout_s=STATEMENT_TIMEOUT_S / 2,
            parallel=False,
        )
        yield
        self.pool.terminate()

    # from a request to an answer ----------------------------------------------------------------------------------------

    def _handler(self, page: Page | None) -> Handler:
        async def handle(asked: Asked) -> web.Response:
            return await self._shown(asked, page)

        return self._guarded(handle)

    def _guarded(self, handle: Callable[[Asked], Awaitable[web.Response]]) -> Handler:
        """`handle`, with every failure as a page and the headers of safety on every answer."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            asked = Asked(request)
            try:
                asked.query = query_of(request)
                if asked.changes:
                    same_site(request, self.settings)
                    asked.form = await form_of(request)
                response = await handle(asked)
            except Exception as error:
                trouble = trouble_of(error, changes=asked.changes)
                if trouble.status >= 500:
                    log.error("console.failed", page=_path_of(request), status=trouble.status, exc_info=error)
                response = await self._trouble(asked, trouble)
            for name, value in _HEADERS.items():
                response.headers.setdefault(name, value)
            if is_https(request, self.settings):
                response.headers["Strict-Transport-Security"] = "max-age=31536000"
            return response

        return guarded

    async def _shown(self, asked: Asked, page: Page | None) -> web.Response:
        async with connection(self.pool, timeout_s=POOL_WAIT_S) as conn:
            asked.session = session = await self._session(conn, asked)
            if session is None:
                return await self._ask_who(asked)
            if page is None:
                raise reading.NotFound("The console has no such page.")
            if not session.operator.role.allows(page.role):
                raise Forbidden(
                    f"This needs the role {page.role}; {session.operator.name} has {session.operator.role}."
                )
            if asked.changes:
                _check_csrf(asked, session)
                answer = await self._changed(conn, asked, session, page)
            else:
                async with conn.transaction(isolation="repeatable_read", readonly=True):
                    answer = await page.show(await self._visit(conn, asked, session))
        return await self._response(asked, answer)

    async def _changed(self, conn: Connection, asked: Asked, session: Session, page: Page) -> Answer:
        visit = await self._visit(conn, asked, session)
        if page.own_transaction:
            answer = await page.show(visit)
            await _leave_word(conn, session, answer)
        else:
            async with conn.transaction():
                answer = await page.show(visit)
                await _leave_word(conn, session, answer)
        log.info("console.changed", page=page.path, role=str(session.operator.role))
        return answer

    async def _visit(self, conn: Connection, asked: Asked, session: Session) -> Visit:
        paused = await reading.pause_switch(conn)
        asked.paused = paused if paused["on"] else None
        return Visit(
            conn=conn,
            settings=self.settings,
            court=self.court,
            realms=await reading.realms_of(conn, self.settings.mode),
            operator=session.operator,
            now=datetime.now(UTC),
            path=dict(asked.request.match_info),
            query=asked.query,
            form={name: text for name, text in asked.form.items() if name != "csrf"},
        )

    async def _session(self, conn: Connection, asked: Asked) -> Session | None:
        cookie = _cookie_of(asked.request, self.settings)
        session = await sessions.find(conn, cookie) if cookie else None
        if session and not asked.is_live and (session.is_stale or (session.said and not asked.changes)):
            await queries.touch_session(conn, hash=session.hash)
        return session

    # answers ------------------------------------------------------------------------------------------------------------

    async def _response(self, asked: Asked, answer: Answer) -> web.Response:
        match answer:
            case Shown(template, context, status):
                return await self._page(asked, template, context, status)
            case Gone(to, _):
                return web.Response(status=303, headers={"Location": inside(to)})
            case File(body, content_type, name):
                kept = re.sub(r"[^A-Za-z0-9._-]", "_", name)
                headers = {"Content-Disposition": f'attachment; filename="{kept}"', "Content-Type": content_type}
                return web.Response(body=body, headers=headers)

    async def _page(self, asked: Asked, template: str, context: Mapping[str, object], status: int) -> web.Response:
        session = asked.session
        frame = Frame(mode=self.settings.mode)
        if session is not None:
            paths = {
                page.path for page in self.pages if page.method == "GET" and session.operator.role.allows(page.role)
            }
            nav = [(path, word) for path, word in NAV if path.removeprefix(PREFIX) in paths]
            here = [path for path, _ in nav if (asked.request.path + "/").startswith(path.rstrip("/") + "/")]
            said = None if asked.changes or asked.is_live else session.said
            frame = Frame(frame.mode, session.operator, nav, max(here, key=len, default=""), asked.paused, said)
        # in a thread: the intake of this process must not wait for a long table
        body = await asyncio.to_thread(render, template, frame, session.csrf if session else "", context)
        return web.Response(body=body, status=status, headers={"Content-Type": "text/html; charset=utf-8"})

    async def _trouble(self, asked: Asked, trouble: Trouble) -> web.Response:
        back = asked.request.headers.get("Referer", "")
        told = urlsplit(back)
        where = (
            inside(told.path + (f"?{told.query}" if told.query else "")) if told.netloc == asked.request.host else None
        )
        context = {
            "heading": trouble.heading,
            "sentence": trouble.sentence,
            "typed": asked.typed(),
            "back": where or "/console/",
            "back_word": "Back to the page you came from" if where else "To the overview",
        }
        response = await self._page(asked, "trouble.html.j2", context, trouble.status)
        if trouble.status == 503:
            response.headers["Retry-After"] = "5"
        return response

    # who is it ----------------------------------------------------------------------------------------------------------

    async def _ask_who(
        self, asked: Asked, sentence: str = "", status: int = 401, to: str | None = None
    ) -> web.Response:
        """The page to sign in at, on the way to what was asked for."""
        request = asked.request
        if not asked.changes and request.headers.get("Sec-Fetch-Site") == "cross-site":
            # a strict cookie does not come with a link from elsewhere: let this site ask for itself
            return await self._page(asked, "arrive.html.j2", {"to": inside(request.path_qs)}, 200)
        if to is None:
            to = inside(urlsplit(request.headers.get("Referer", "")).path if asked.changes else request.path_qs)
        if asked.changes and not sentence:
            sentence = "Your session has ended: sign in again. Nothing was changed."
        context = {"sentence": sentence, "to": to, "typed": asked.typed()}
        return await self._page(asked, "signin.html.j2", context, status)

    async def _show_signin(self, asked: Asked) -> web.Response:
        async with connection(self.pool, timeout_s=POOL_WAIT_S) as conn:
            if await self._session(conn, asked) is not None:
                return web.Response(status=303, headers={"Location": "/console/"})
        return await self._ask_who(asked, status=200, to="/console/")

    async def _sign_in(self, asked: Asked) -> web.Response:
        to, token = inside(asked.form.get("to", "")), asked.form.get("token", "")
        if not (is_https(asked.request, self.settings) or is_loopback(asked.request)):
            return await self._ask_who(asked, "Open the console over https: a token is not sent in the clear.", 400, to)
        try:
            found = await self.gate.check(self.pool, token)
        except Busy:
            return await self._ask_later(asked, "Many people sign in at this moment: try again.", 503, 5, to)
        if found is not None:
            return await self._begin(asked, *found, to)
        throttled = self.gate.throttle.refuses(source_of(asked.request))
        await self._tell_failure(throttled)
        if throttled:
            return await self._ask_later(asked, "Too many tries: wait a minute, then try again.", 429, 60, to)
        return await self._ask_who(asked, "This token is not valid here.", 401, to)

    async def _ask_later(self, asked: Asked, sentence: str, status: int, after_s: int, to: str) -> web.Response:
        response = await self._ask_who(asked, sentence, status, to)
        response.headers["Retry-After"] = str(after_s)
        return response

    async def _begin(self, asked: Asked, token_id: str, name: str, role: str, to: str) -> web.Response:
        async with connection(self.pool, timeout_s=POOL_WAIT_S) as conn, conn.transaction():
            if old := _cookie_of(asked.request, self.settings):
                await queries.end_session(conn, hash=sessions.hash_of_cookie(old))
            cookie = await sessions.begin(conn, name, token_id)
            await _record(conn, name, "signin", name, role, {"token": token_id})
        log.info("console.signed_in", token_id=token_id)
        response = web.Response(status=303, headers={"Location": to})
        _set_cookie(response, asked.request, self.settings, cookie)
        return response

    async def _tell_failure(self, throttled: bool) -> None:
        """One line and one entry of the audit a minute, with how many there were; one more as soon as somebody is throttled."""
        self._untold.update(failures=1, throttled=int(throttled))
        now = time.monotonic()
        if now - self._told_at["throttled" if throttled else "failures"] < TELL_FAILURES_S:
            return
        self._told_at["failures"] = now
        if throttled:
            self._told_at["throttled"] = now
        told, self._untold = dict(self._untold), Counter()
        log.warning("console.signin_failed", failures=told["failures"], throttled=told["throttled"])
        async with connection(self.pool, timeout_s=POOL_WAIT_S) as conn, conn.transaction():
            await _record(conn, "nobody", "signin.failed", "console", "", told)

    async def _sign_out(self, asked: Asked) -> web.Response:
        async with connection(self.pool, timeout_s=POOL_WAIT_S) as conn:
            session = await self._session(conn, asked)
            if session is not None:
                _check_csrf(asked, session)
                async with conn.transaction():
                    await queries.end_session(conn, hash=session.hash)
                    name, role = session.operator
                    await _record(conn, name, "signout", name, role, None)
        headers = {"Location": "/console/signin", "Clear-Site-Data": '"storage"'}  # half-written notes as well
        response = web.Response(status=303, headers=headers)
        for name, secure in ((SECURE_COOKIE, True), (LOOPBACK_COOKIE, False)):
            response.set_cookie(name, "", max_age=0, path="/", httponly=True, secure=secure, samesite="Strict")
        return response


async def _record(conn: Connection, by: str, act: str, subject: str, role: str, after: reading.Document | None) -> None:
    await audit.record(conn, audit.EVERYWHERE, by=by, via="console", act=act, subject=subject, role=role, after=after)


async def _leave_word(conn: Connection, session: Session, answer: Answer) -> None:
    if isinstance(answer, Gone) and answer.said:
        await queries.say_in_session(conn, hash=session.hash, said=answer.said)


def _check_csrf(asked: Asked, session: Session) -> None:
    if not hmac.compare_digest(asked.form.get("csrf", "").encode(), session.csrf.encode()):
        raise Forbidden("The form is not one of this session: reload the page and send it again.")


def _is_bare(request: web.Request, settings: Settings) -> bool:
    """Whether the browser asks this machine over http: not every browser takes a secure cookie then."""
    return is_loopback(request) and not is_https(request, settings)


def _cookie_of(request: web.Request, settings: Settings) -> str | None:
    """The session's cookie: with the prefix that only https can set, or without it on this machine."""
    cookie = request.cookies.get(LOOPBACK_COOKIE if _is_bare(request, settings) else SECURE_COOKIE)
    return cookie if cookie and len(cookie) <= 100 else None


def _set_cookie(response: web.Response, request: web.Request, settings: Settings, cookie: str) -> None:
    secure = not _is_bare(request, settings)
    name = SECURE_COOKIE if secure else LOOPBACK_COOKIE
    response.set_cookie(name, cookie, path="/", httponly=True, secure=secure, samesite="Strict")


def _path_of(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource else "none"


def _static(name: str, content_type: str) -> Handler:
    body = resources.files("worker").joinpath("templates", "console", name).read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": etag, "Content-Type": f"{content_type}; charset=utf-8"}

    async def handle(request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers)

    return handle


async def _to_first_page(_: web.Request) -> web.Response:
    return web.Response(status=308, headers={"Location": "/console/", **_HEADERS})
