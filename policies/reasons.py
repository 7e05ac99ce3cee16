"""The catalogue of reason codes. PURE. An agent, a record and a metric use the same code.

Codes are kebab-case and never reused. `title` and `advice` go to the agent: no host, address, rule
text or version may appear in them. docs/reasons.md is printed from this table (`document`).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason: what the agent is told, and what the operator can do."""

    code: str
    status: int  # HTTP status the agent sees
    title: str  # RFC 9457 `title`: the same for every occurrence
    advice: str  # RFC 9457 `detail` ends with it: what the agent, or its model, can do
    remedy: str  # for the operator; docs/reasons.md
    retryable: bool = False
    since: str = "0.1.0"


_ALL = (
    # identity
    Reason("credential-missing", 407, "Proxy credentials are required",
           "Set the proxy URL to http://AGENT:TOKEN@HOST:PORT.",
           "run `tollkeeper agent add NAME` and put the printed line into the agent's environment"),
    Reason("credential-wrong", 407, "The proxy credentials are not valid",
           "Ask the operator of this proxy for a valid token.",
           "`tollkeeper agent list` shows the known agents; rotate a lost token"),
    Reason("credential-expired", 407, "The proxy credentials have expired",
           "Ask the operator of this proxy for a new token.", "`tollkeeper agent rotate NAME`"),
    Reason("credential-revoked", 407, "The proxy credentials have been revoked",
           "Ask the operator of this proxy for a new token.",
           "`tollkeeper agent add` a new name, or rotate"),
    Reason("agent-unknown", 403, "This agent is not in the policy",
           "Do not retry; the operator has to add the agent to the policy.",
           "add the agent under `agents:` in policies.yaml"),
    # policy
    Reason("no-rule-matched", 403, "No rule allows this request",
           "Do not retry the same request; it is denied by default.",
           "add an allow rule, or widen the nearest one in `tollkeeper policy explain`"),
    Reason("host-not-allowed", 403, "No rule allows this destination",
           "Do not retry; use a destination that the operator has allowed.",
           "add an allow rule for the host; nothing was resolved or contacted"),
    Reason("denied-by-rule", 403, "A rule denies this request",
           "Do not retry; the operator has denied this explicitly.",
           "the record names the rule; a deny wins over every allow"),
    Reason("rule-conflict", 403, "Two rules disagree about this request",
           "Do not retry; the operator has to resolve the conflict.",
           "`tollkeeper policy check` reports it as AP301"),
    Reason("rate-limited", 429, "Too many requests",
           "Wait for the time in Retry-After, then try again.",
           "the rate is named in the record; raise it under `rates:`", retryable=True),
    Reason("request-too-large", 403, "The request body is larger than allowed",
           "Send less; the limit is set by the operator.",
           "`with: { max_request: … }` of the matched rule"),
    Reason("response-too-large", 403, "The response is larger than allowed",
           "Ask for less; the limit is set by the operator.",
           "`with: { max_response: … }` of the matched rule"),
    Reason("policy-changed", 403, "The policy changed while the request was under way",
           "Try once more; the new policy will judge the request.",
           "nothing: a reload took effect", retryable=True),
    Reason("policy-stale", 403, "The policy is out of date",
           "Do not retry until the operator has fixed the policy.",
           "the last reload failed: see the log and `/readyz`; fix the file"),
    Reason("observed", 403, "Allowed by observe mode only",
           "Nothing to do.",
           "observe mode forwards what no rule allows; it is recorded as `would: deny`"),
    Reason("allowed", 200, "A rule allows this request", "Nothing to do.", "nothing"),
    # canonical form
    Reason("malformed", 400, "The message could not be parsed",
           "Send a well-formed HTTP message.",
           "the record holds the first bytes; look at the client"),
    Reason("head-too-large", 400, "The message head is too large",
           "Send fewer or shorter header fields.",
           "the limit is `header_bytes_max` in docs/settings.md"),
    Reason("host-not-canonical", 403, "The host name is not in canonical form",
           "Use the plain lower-case host name.",
           "numbers, odd Unicode and escapes in hosts are refused"),
    Reason("path-not-canonical", 403, "The path is not in canonical form",
           "Send a plain path: no encoded slash, no backslash, no dot segment above the root.",
           "see policy language, canonical form"),
    Reason("query-not-canonical", 403, "The query is not in canonical form",
           "Encode the query with UTF-8 percent escapes.", "see policy language, canonical form"),
    Reason("method-not-allowed", 403, "The method is not known",
           "Use GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS, in upper case.",
           "other methods never pass"),
    Reason("method-override", 403, "Method override is refused",
           "Send the method you mean.", "X-HTTP-Method-Override and its kin never pass"),
    Reason("header-refused", 403, "A header field is refused",
           "Remove duplicate or malformed header fields.",
           "the record's `findings` name the field"),
    Reason("trailer-refused", 403, "Trailers are refused",
           "Send the request without trailers.", "request trailers never pass"),
    Reason("host-mismatch", 403, "The names of the destination disagree",
           "Use the same host for the tunnel, TLS and the Host header.",
           "CONNECT host, SNI and Host / :authority must be equal"),
    Reason("upgrade-refused", 403, "The protocol upgrade is refused",
           "Use plain HTTP, or WebSocket version 13.", "only WebSocket upgrades can be allowed"),
    Reason("protocol-refused", 403, "This protocol is refused",
           "Speak HTTP inside the tunnel.", "anything but HTTP and TLS inside a tunnel is closed"),
    # destination
    Reason("address-not-public", 403, "The destination is not a public address",
           "Do not retry; private destinations are refused.",
           "name the range in `match: { dest_ip: […] }` of the allow rule if this is meant"),
    Reason("dns-failed", 502, "The destination could not be resolved",
           "Check the host name; try again later.", "the proxy's resolver gave no usable answer",
           retryable=True),
    Reason("upstream-unreachable", 502, "The destination could not be reached",
           "Try again later.", "no connection to the vetted address", retryable=True),
    Reason("upstream-timeout", 504, "The destination did not answer in time",
           "Try again later.", "connect or first-byte deadline passed", retryable=True),
    Reason("upstream-tls-failed", 502, "The destination's TLS could not be verified",
           "Do not retry; the certificate is not trusted.", "`--upstream-ca` adds a private CA"),
    Reason("upstream-protocol", 502, "The destination sent a malformed answer",
           "Try again later.", "the answer broke HTTP's framing rules and was not passed on",
           retryable=True),
    Reason("upgrade-unapproved", 502, "The destination switched protocols without permission",
           "Do not retry.",
           "an origin answered 101 to a request that was not an allowed WebSocket handshake"),
    # the house itself
    Reason("audit-unavailable", 403, "The request could not be recorded",
           "Try again later.", "the audit log cannot be written: see `/readyz` and the log",
           retryable=True),
    Reason("audit-backpressure", 403, "The request could not be recorded in time",
           "Try again later, more slowly.",
           "the audit queue was full; the disk is slower than the traffic",
           retryable=True),
    Reason("audit-disk-full", 403, "The request could not be recorded",
           "Try again later.", "free space on the log's volume; the writer resumes by itself",
           retryable=True),
    Reason("ledger-unavailable", 403, "The budget ledger did not answer",
           "Try again later.", "the ledger is locked, slow or corrupt", retryable=True),
    Reason("deadline-exceeded", 403, "The decision took too long",
           "Try again later.",
           "a step of the decision passed its deadline; see tollkeeper_faults_total",
           retryable=True),
    Reason("internal-error", 403, "The request could not be judged",
           "Try again later.", "a bug or an outage; the log has the traceback", retryable=True),
    Reason("contract-broken", 403, "The request could not be judged",
           "Do not retry.",
           "an invariant did not hold; the log has the traceback; please report it"),
    Reason("overloaded", 403, "The proxy is at its limit",
           "Try again later, with fewer connections.", "`--max-connections`", retryable=True),
    Reason("draining", 403, "The proxy is shutting down",
           "Try again later.", "the server was told to stop", retryable=True),
    Reason("quarantined", 403, "This agent is in quarantine",
           "Do not retry; only what the operator keeps open for quarantined agents still passes.",
           "`tollkeeper budget show` names the cause; `quarantine: { keep_rules: […] }` says what"
           " stays open"),
    Reason("budget-exhausted", 403, "The budget of this agent is used up",
           "Do not retry; `remaining` says what is left, `guidance` whether a new period begins.",
           "`tollkeeper budget show`; edit the limit, then `tollkeeper budget raise`"),
    Reason("halted", 403, "This agent has been halted",
           "Do not retry; the halt cannot be undone.", "a new agent id is the way back"),
    Reason("client-gone", 403, "The client went away",
           "Nothing to do.",
           "the client closed the connection before the request could be forwarded"),
)  # fmt: skip

REASONS: dict[str, Reason] = {reason.code: reason for reason in _ALL}


def document() -> str:
    """The text of docs/reasons.md."""
    out = [
        "# Reasons",
        "",
        "Printed from `policies/reasons.py`; a test holds the two equal. The same code stands in",
        "the answer (`reason`, and `type` as `urn:tollkeeper:reason:<code>`), in the record and in",
        "the metric `tollkeeper_requests_total`. Codes are never reused. An agent should try again",
        "only where *again* says yes. 407 asks for proxy credentials; 502 and 504 are the",
        "destination's.",
        "",
        "| reason | status | the agent reads | again | what the operator can do | since |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for entry in _ALL:
        again = "yes" if entry.retryable else "no"
        said = f"{entry.title}. {entry.advice}"
        cells = (f"`{entry.code}`", entry.status, said, again, entry.remedy, entry.since)
        out.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*out, ""])
