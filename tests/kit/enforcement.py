"""A whole enforcer of real parts, and the messages that go into it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import structlog

from audit.denials import DenialBudget
from policies.canonical import RawHead
from policies.compile import compile_text
from policies.ledger.memory import MemoryLedger
from policies.model import Scheme
from policies.policy_set import PolicySet
from proxy.bookkeeper import Bookkeeper
from proxy.call import Call, Tunnel
from proxy.credentials import CredentialStore
from proxy.destination import Resolver
from proxy.enforcer import Enforcer, Generation
from proxy.metrics import Metrics
from proxy.settings import Pin, Settings
from proxy.vocabulary import Stage
from tests.kit.recorder import MemoryRecorder

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOST = "api.test"
POLICY = """
version: 1
defaults: { explain_denials: false }
agents: { local: { identity: { source: ["127.0.0.0/8"] } } }
rates: { slow: { each: agent, allow: 1, per: 1h } }
rules:
  - { id: read, verdict: allow, match: { host: api.test, methods: [GET, POST], path: "/ok/**" } }
  - { id: small, verdict: allow, match: { host: api.test, methods: [GET, POST], path: "/small" },
      with: { max_request: 10B, max_response: 10B } }
  - { id: hidden, verdict: allow, match: { host: api.test, methods: GET, path: "/u/*/x" },
      with: { redact_path: [2] } }
  - { id: rated, verdict: allow, match: { host: api.test, methods: GET, path: "/rated" },
      with: { rate: slow } }
  - { id: inside, verdict: allow, match: { host: inside.test, methods: GET, path: "/**" } }
  - { id: never, verdict: deny, match: { host: api.test, path: "/ok/never" } }
"""
SETTINGS = Settings(
    hook_deadline_s=0.4,
    ledger_deadline_s=0.1,
    audit_deadline_s=0.2,
    dns_timeout_s=0.2,
    resolve=(
        Pin(HOST, 443, ip_address("93.184.216.34"), 443),
        Pin(HOST, 80, ip_address("93.184.216.34"), 80),
        Pin("inside.test", 443, ip_address("10.0.0.8"), 443),
    ),
)


def compiled(text: str = POLICY) -> PolicySet:
    """A policy set from YAML."""
    return compile_text(text).policy_set


def furnish(
    text: str = POLICY,
    *,
    recorder: Any = None,
    settings: Settings = SETTINGS,
    **parts: Any,
) -> tuple[Enforcer, MemoryRecorder]:
    """An enforcer with the real parts, except those that are given."""
    # tracebacks of injected faults, drawn in colour, cost a second each
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[_drop])
    recorder = recorder or MemoryRecorder()
    policy_set = compiled(text)
    metrics = parts.pop("metrics", None) or Metrics()
    metrics.show_policy(
        policy_set.digest, 1, agents=policy_set.agents, rules=[rule.id for rule in policy_set.rules]
    )
    bookkeeper = parts.pop("bookkeeper", None) or Bookkeeper(
        parts.pop("ledger", None) or MemoryLedger(),
        recorder=recorder,
        metrics=metrics,
        now_ms=parts.pop("now_ms", None) or (lambda: int(NOW.timestamp() * 1000)),
        deadline_s=settings.ledger_deadline_s,
    )
    enforcer = Enforcer(
        settings,
        parts.pop("generation", None) or Generation(policy_set, 1),
        recorder=recorder,
        bookkeeper=bookkeeper,
        resolver=parts.pop("resolver", None)
        or Resolver(settings.resolve, timeout_s=settings.dns_timeout_s, lookup=find_nothing),
        credentials=parts.pop("credentials", None) or CredentialStore(Path("/nonexistent/c.json")),
        metrics=metrics,
        denials=parts.pop("denials", None) or DenialBudget(),
        quiet=True,
        now=parts.pop("now", None) or (lambda: NOW),
        **parts,
    )
    return enforcer, recorder


def _drop(_logger: Any, _method: str, _event: Any) -> str:
    return ""


def find_nothing(_host: str) -> list[str]:
    """A resolver that never answers with an address; no test asks a real one."""
    raise OSError("no DNS in tests")


@dataclass(frozen=True)
class Message:
    """One head as an agent sends it inside a TLS tunnel to `host`."""

    path: str = "/ok/1"
    method: str = "GET"
    host: str = HOST
    fields: tuple[tuple[bytes, bytes], ...] = ()
    client: str = "127.0.0.1"
    version: Literal["1.0", "1.1", "2"] = "1.1"

    def call(self, **changes: Any) -> Call:
        """As the adapter hands it over."""
        scheme: Scheme = "https"
        head = RawHead(
            self.method.encode(),
            self.path.encode("latin-1"),
            ((b"Host", self.host.encode()), *self.fields),
            self.version,
        )
        known: dict[str, Any] = {
            "scheme": scheme,
            "tunnel": Tunnel(self.host, 443, None),
            "sni": self.host,
            "tls": True,
        }
        return Call(Stage.REQUEST, self.client, head, **(known | changes))


def connect(host: str = HOST, port: int = 443, *fields: tuple[bytes, bytes]) -> Call:
    """A CONNECT."""
    target = f"{host}:{port}".encode()
    head = RawHead(b"CONNECT", target, ((b"Host", target), *fields))
    return Call(Stage.CONNECT, "127.0.0.1", head)


def absolute(url: str, *fields: tuple[bytes, bytes], method: str = "GET") -> Call:
    """A request in absolute form on the plain proxy port."""
    authority = url.partition("://")[2].partition("/")[0].encode()
    head = RawHead(method.encode(), url.encode("latin-1"), ((b"Host", authority), *fields))
    return Call(Stage.REQUEST, "127.0.0.1", head)


class Faulty:
    """A part whose named methods do something else: raise what is given, or call it."""

    def __init__(self, part: Any, **changes: BaseException | Callable[..., Any]) -> None:
        self._part = part
        self._changes: Mapping[str, BaseException | Callable[..., Any]] = changes

    def __getattr__(self, name: str) -> Any:
        change = self._changes.get(name)
        if change is None:
            return getattr(self._part, name)
        if isinstance(change, BaseException):

            def fail(*_args: object, **_keywords: object) -> Any:
                raise change

            return fail
        return change
