"""The admin port: is it alive, is it ready, what does it count. An agent can never reach it.

    GET /healthz             200 while the event loop turns; says nothing else, needs no token
    GET /readyz              200 or 503, with every check and its problem
    GET /metrics             Prometheus text (docs/metrics.md)
    GET /v1/openapi.json     this table, for machines

Rule 1: on a loopback address no token is needed, but a `Host` that is a name is refused: a web page
        that rebinds its own name to 127.0.0.1 reads nothing.
Rule 2: on any other address everything but /healthz needs `Authorization: Bearer`, the token of
        `state/admin.token`.
Rule 3: nothing here changes anything.

FastAPI and uvicorn are imported when first needed: they cost every command 0.3 s otherwise.
"""

import asyncio
import contextlib
import hmac
import os
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.metrics import CONTENT_TYPE, Metrics
from proxy.settings import Endpoint

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

TOKEN_BYTES = 24  # 192 random bits
_TOKEN_CHARS_MAX = 256
_CONNECTIONS_MAX = 64
_HEAD_BYTES_MAX = 16 * 1024
_CLOSE_TIMEOUT_S = 1


class AdminUnusable(ValueError):  # noqa: N818  named after the failure
    """The port or the token of the admin side cannot be used. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Status:
    """The server's own view of itself."""

    checks: dict[str, str]  # name -> what is wrong, "" when nothing is
    details: dict[str, str] = field(default_factory=dict)  # to be shown, never judged

    @property
    def ready(self) -> bool:
        """Would a request that the policy allows be forwarded?"""
        return not any(self.checks.values())


@dataclass(frozen=True, slots=True)
class Health:
    """The answer of /healthz."""

    alive: bool


@dataclass(frozen=True, slots=True)
class Readiness:
    """The answer of /readyz."""

    ready: bool
    checks: dict[str, str]
    details: dict[str, str]


async def _nothing() -> None:
    """No figures have to be fetched."""


def build(
    status: Callable[[], Status],
    metrics: Metrics,
    *,
    token: str | None = None,
    refresh: Callable[[], Awaitable[object]] = _nothing,
) -> "FastAPI":
    """The application. With a `token`, requests must carry it; without, listen on loopback only.

    `refresh` fetches what /metrics will show.
    """
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, Response

    app = FastAPI(
        title="tollkeeper admin", openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None
    )

    @app.middleware("http")
    async def guard(
        request: "Request", proceed: "Callable[[Request], Awaitable[Response]]"
    ) -> Response:
        refusal = _refuse(request, token)
        if refusal is not None:
            code, detail = refusal
            headers = {"WWW-Authenticate": "Bearer"} if code == 401 else None
            return JSONResponse({"detail": detail}, code, headers)
        answer = await proceed(request)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @app.get("/healthz", summary="Is the event loop turning?")
    async def healthz() -> Health:
        return Health(alive=True)

    @app.get("/readyz", summary="Would an allowed request be forwarded?", responses=_NOT_READY)
    async def readyz(response: Response) -> Readiness:
        found = _ask(status)
        response.status_code = 200 if found.ready else 503
        details = {**found.details, "metrics_failures": str(metrics.failures)}
        return Readiness(found.ready, found.checks, details)

    @app.get("/metrics", summary="Prometheus text", response_class=Response)
    async def show_metrics() -> Response:
        await refresh()
        return Response(metrics.exposition(), media_type=CONTENT_TYPE)

    return app


def open_listener(endpoint: Endpoint) -> socket.socket:
    """A listening socket for `serve_admin`; opened first, so that a taken port ends the start.

    Raises:
        ValueError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((endpoint.host, endpoint.port))
        listening.listen(_CONNECTIONS_MAX)
        listening.setblocking(False)
    except OSError as failure:
        listening.close()
        cause = (failure.strerror or "cannot listen").lower()
        raise AdminUnusable(f"`--admin {endpoint}`: {cause}; choose another port") from failure
    return listening


async def serve_admin(app: "FastAPI", listening: socket.socket) -> None:
    """Serve until cancelled, in the running loop: no signal handlers, no log lines, no lifespan."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        log_level="warning",
        lifespan="off",
        http="h11",
        ws="none",
        server_header=False,
        limit_concurrency=_CONNECTIONS_MAX,
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
        h11_max_incomplete_event_size=_HEAD_BYTES_MAX,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]  # ours stay
    try:
        await server.serve(sockets=[listening])
    except asyncio.CancelledError:
        if server.started:
            await server.shutdown(sockets=[listening])
        raise
    finally:
        listening.close()


def ensure_token(path: Path) -> str:
    """The bearer token in this file (mode 0600), made now if there is none.

    Raises:
        ValueError: others can read the file, or it holds no token.
        OSError: it can be neither read nor made.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as new:
            new.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            new.flush()
            os.fsync(new.fileno())
    except FileExistsError:
        pass
    with path.open() as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise AdminUnusable(f"`{path}`: others may read it; run `chmod 600 {path}`")
        token = file.read(_TOKEN_CHARS_MAX).strip()
    if len(token) < TOKEN_BYTES or not token.isascii():
        raise AdminUnusable(f"`{path}`: holds no token; delete the file, and a new one is made")
    return token


_NOT_READY: dict[int | str, dict[str, object]] = {
    503: {"model": Readiness, "description": "It would be denied; `checks` says why."}
}


def _ask(status: Callable[[], Status]) -> Status:
    try:
        return status()
    except Exception as failure:  # noqa: BLE001  who cannot say that he is ready is not
        return Status({"status": f"the server cannot describe itself: {type(failure).__name__}"})


def _refuse(request: "Request", token: str | None) -> tuple[int, str] | None:
    """Status code and detail, or None if the request may pass."""
    if token is None:
        if _is_local_name(request.headers.get("host", "")):
            return None
        return 421, "use the address of this port, not a name for it"
    if request.url.path == "/healthz":
        return None
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
    if scheme.lower() == "bearer" and same:
        return None
    return 401, "a bearer token is needed; the server keeps it in admin.token"


def _is_local_name(host: str) -> bool:
    """`localhost` or an IP address, with or without a port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
