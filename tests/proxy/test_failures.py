"""What keeps a server from starting: each known failure has its place, cause and remedy."""

import errno
import os
from pathlib import Path

import pytest

from audit.writer import LogBroken, LogBusy, LogMissing, LogUnavailable
from policies.compile import compile_text
from policies.model import PolicyRejected
from policies.sources import PolicyUnreadable
from proxy.admin.api import AdminUnusable
from proxy.failures import explain_failure, render_findings
from proxy.mitm.ca import CaUnusable
from proxy.mitm.gates import GateClosed
from proxy.mitm.tls import UpstreamCaUnusable
from proxy.settings import Settings

SETTINGS = Settings(state=Path("/srv/state"))
TAKEN = OSError(errno.EADDRINUSE, "address already in use")
DENIED = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/srv/state/log")

KNOWN: dict[str, tuple[Exception, str, str]] = {
    "no log": (LogMissing("`/srv/state/log` does not exist"), "does not exist", "audit init"),
    "a second server": (LogBusy("`/srv/state/log` is in use"), "is in use", "stop it first"),
    "a broken log": (
        LogBroken(Path("/srv/state/log/x.jsonl"), 5, 900, "the hash does not match"),
        "x.jsonl:5: the hash does not match (byte 900)",
        "audit verify",
    ),
    "a full disk": (LogUnavailable("audit-disk-full", "0 bytes free"), "0 bytes", "free the disk"),
    "a bad policy": (PolicyRejected(()), "policies.yaml: the policy has errors", "policy check"),
    "no policy": (PolicyUnreadable("p.yaml", "no such file"), "cannot read `p.yaml`", "init"),
    "no CA": (CaUnusable("/srv/state/ca: no ca.pem; restore"), "no ca.pem", "restore"),
    "an old library": (GateClosed("h11 0.14 is installed"), "h11 0.14", ""),
    "an admin port that is taken": (AdminUnusable("`--admin x`: taken"), "--admin x", "taken"),
    "an upstream CA that is none": (UpstreamCaUnusable("`--upstream-ca f`: x"), "f", "x"),
    "a port that is taken": (TAKEN, "address already in use", "--listen"),
    "a file that may not be read": (DENIED, "`/srv/state/log`: permission denied", "doctor"),
}


@pytest.mark.parametrize(("failure", "cause", "remedy"), KNOWN.values(), ids=KNOWN)
def test_a_known_failure_is_one_line(failure: Exception, cause: str, remedy: str) -> None:
    text = explain_failure(failure, SETTINGS)
    assert text is not None
    assert cause in text
    assert remedy in text
    assert not text.endswith(".")


def test_a_bug_is_not_explained_away() -> None:
    assert explain_failure(KeyError("x"), SETTINGS) is None


def test_findings_are_shown_as_policy_check_shows_them() -> None:
    with pytest.raises(PolicyRejected) as caught:
        compile_text("version: 1\nrulez: []\n", "p.yaml")
    assert render_findings(caught.value).startswith("p.yaml:2:1: error[AP006]: ")
