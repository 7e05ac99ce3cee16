"""A hook that ended without what it was asked for has failed."""

from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.layers import tls

from policies.model import ContractBroken
from proxy.denial import deny
from proxy.enforcer import Admitted, Refused
from proxy.exchange import Exchange
from proxy.mitm.choice import SNIFF_BYTES
from proxy.mitm.hooks import Extend, Judge, require_answer
from proxy.vocabulary import RequestSent, Stage
from tests.kit.enforcement import compiled

EXCHANGE = Exchange("0" * 32, Stage.REQUEST, compiled())
ADMITTED = Admitted(EXCHANGE, None, None)
REFUSED = Refused(EXCHANGE, deny("internal-error", decision_id=EXCHANGE.id))


def judge(verdict: object) -> commands.StartHook:
    stream: Any = SimpleNamespace(verdict=verdict)
    return Judge(stream)


def next_layer(found: object, seen_bytes: int) -> commands.StartHook:
    data: Any = SimpleNamespace(layer=found, data_client=lambda: b"x" * seen_bytes)
    return layer.NextLayerHook(data)


def start_tls(kind: Any, connection: object) -> commands.StartHook:
    hook: commands.StartHook = kind(SimpleNamespace(ssl_conn=connection))
    return hook


CASES: dict[str, tuple[commands.StartHook, bool]] = {
    "a verdict that admits": (judge(ADMITTED), True),
    "a verdict that refuses": (judge(REFUSED), True),
    "no verdict": (judge(None), False),
    "something else for a verdict": (judge(object()), False),
    "a layer": (next_layer(object(), SNIFF_BYTES), True),
    "no layer, and little was seen": (next_layer(None, SNIFF_BYTES - 1), True),
    "no layer, and enough was seen": (next_layer(None, SNIFF_BYTES), False),
    "TLS towards the agent": (start_tls(tls.TlsStartClientHook, object()), True),
    "no TLS towards the agent": (start_tls(tls.TlsStartClientHook, None), False),
    "TLS towards the origin": (start_tls(tls.TlsStartServerHook, object()), True),
    "no TLS towards the origin": (start_tls(tls.TlsStartServerHook, None), False),
    "an extension, whose answer the exchange has": (Extend(EXCHANGE, RequestSent(1)), True),
}


@pytest.mark.parametrize(("hook", "answered"), CASES.values(), ids=CASES)
def test_a_hook_is_answered_by_what_it_was_asked_for(
    hook: commands.StartHook, answered: bool
) -> None:
    if answered:
        require_answer(hook)
        return
    with pytest.raises(ContractBroken, match="gave no answer"):
        require_answer(hook)


def test_our_hooks_block_their_layer_and_have_names_of_their_own() -> None:
    hooks = [judge(None), Extend(EXCHANGE, RequestSent(1))]
    assert [hook.name for hook in hooks] == ["judge", "extend"]
    assert all(hook.blocking for hook in hooks)
