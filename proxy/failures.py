"""What keeps a server from starting, in one line each: place, cause, remedy.

    exception of a part  --explain_failure-->  text for the person who typed `tollkeeper serve`

Rule 1: only failures that the parts name are explained; anything else is a bug and keeps its
        traceback.
Rule 2: the parts' own texts say where and why; what is added here is what to do.
"""

import errno

from audit.writer import LogBroken, LogBusy, LogMissing, LogUnavailable
from policies.findings import render
from policies.ledger import LedgerUnavailable
from policies.model import PolicyRejected
from policies.sources import PolicyUnreadable
from proxy.fold import FoldBroken
from proxy.settings import Settings


def explain_failure(error: Exception, settings: Settings) -> str | None:
    """Place, cause and remedy, without a full stop; None where the failure has no name of ours."""
    log = settings.log_folder
    match error:
        case LogMissing():
            return (
                f"{error}; restore the log; if it never existed, run `tollkeeper audit init {log}`"
            )
        case LogBusy():
            return f"{error}; a server is running on this state directory: stop it first"
        case LogBroken():
            return (
                f"{error}; the log was changed by something else than us; keep a copy, see"
                f" `tollkeeper audit verify {log}`, then move it away and run `tollkeeper audit"
                f" init {log}`"
            )
        case LogUnavailable():
            return f"{error}; nothing can be recorded, so nothing may be forwarded; free the disk"
        case LedgerUnavailable():
            return (
                f"{error}; stop what else uses it, or move `{settings.state / 'ledger.db'}` away:"
                " it is made anew from the log"
            )
        case FoldBroken():
            return f"{error}; budgets cannot be told from this log; keep a copy and report it"
        case PolicyRejected():
            return f"{settings.policies}: the policy has errors; see `tollkeeper policy check`"
        case PolicyUnreadable():
            return f"{error}; run `tollkeeper init`, or give --policies"
        case OSError():
            return _explain_os(error)
        case _:
            return _explain_adapter(error)


def render_findings(rejected: PolicyRejected) -> str:
    """Every finding with its line, as `policy check` prints them."""
    lines = {file: text.splitlines() for file, text in rejected.sources.items()}
    return "\n".join(render(one, lines.get(one.file, ())) for one in rejected.findings)


def _explain_os(error: OSError) -> str:
    cause = error.strerror or str(error)
    place = f"`{error.filename}`: " if error.filename else ""
    if error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES) and not place:
        return f"{cause}; choose another address or port with --listen or --admin"
    return f"{place}{cause[:1].lower()}{cause[1:]}; `tollkeeper doctor` looks at the usual causes"


def _explain_adapter(error: Exception) -> str | None:
    """Failures of proxy/mitm and proxy/admin: imported here, for what they bring along."""
    from proxy.admin.api import AdminUnusable
    from proxy.mitm.ca import CaUnusable
    from proxy.mitm.gates import GateClosed
    from proxy.mitm.options import OptionsTampered
    from proxy.mitm.selftest import SelfTestFailed
    from proxy.mitm.tls import UpstreamCaUnusable

    if isinstance(error, AdminUnusable | CaUnusable | GateClosed | UpstreamCaUnusable):
        return str(error)
    if isinstance(error, SelfTestFailed | OptionsTampered):
        return f"{error}; the gate does not hold, so no port was opened; please report it"
    return None
