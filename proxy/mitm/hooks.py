"""The two questions a stream asks of our handler, as mitmproxy's layers ask: by a blocking hook;
and what counts as an answer to any hook."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.layers import tls

from policies.model import ContractBroken
from proxy.allowance import Passing
from proxy.enforcer import Admitted, Refused
from proxy.exchange import Exchange
from proxy.mitm.choice import SNIFF_BYTES

if TYPE_CHECKING:
    from proxy.mitm.stream import Stream


@dataclass
class Judge(commands.StartHook):
    """Ask for the verdict; the handler sets `stream.verdict`."""

    stream: "Stream"


@dataclass
class Extend(commands.StartHook):
    """Wait until what `event` needs is held and recorded, or cannot be."""

    exchange: Exchange
    event: Passing


def require_answer(hook: commands.StartHook) -> None:
    """A hook that ended without what it was asked for has failed, too.

    Raises:
        ContractBroken: there is no verdict, no layer although enough was seen, or no TLS.
    """
    match hook:
        case Judge():
            given = isinstance(hook.stream.verdict, Admitted | Refused)
        case layer.NextLayerHook():
            given = hook.data.layer is not None or len(hook.data.data_client()) < SNIFF_BYTES
        case tls.TlsStartClientHook() | tls.TlsStartServerHook():
            given = hook.data.ssl_conn is not None
        case _:
            given = True
    if not given:
        raise ContractBroken(f"{hook.name} gave no answer")
