"""What an agent's environment must say so that its clients find the proxy and trust its CA. PURE.

    proxy URL + two certificate files --list_variables--> NAME=value --format_exports--> shell lines

Rule 1: both spellings of every proxy variable: curl takes only `http_proxy` in lower case, others
        only upper case.
Rule 2: a variable that replaces a client's roots gets the bundle (public roots and ours); one that
        adds to them gets our certificate alone.
Rule 3: no `NO_PROXY`: what is named there goes round the proxy.

Which client reads what: threats.md section 5.
"""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from proxy.settings import Endpoint

_PROXY = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_REPLACING = (  # the client forgets its own roots
    "SSL_CERT_FILE",  # OpenSSL, Python, Go, Ruby, cargo
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CODEX_CA_CERTIFICATE",
    "npm_config_cafile",
)
_ADDING = ("NODE_EXTRA_CA_CERTS", "DENO_CERT")
_SWITCHES = ("NODE_USE_ENV_PROXY",)  # Node.js looks at proxy variables only when told to


def format_proxy_url(listen: Endpoint, agent: str = "", token: str = "") -> str:
    """The value of HTTPS_PROXY. A proxy that listens on every address is reached on loopback
    from here; agents elsewhere replace the host."""
    host = str(listen.address)
    if listen.address.is_unspecified:
        host = "127.0.0.1" if listen.address.version == 4 else "::1"
    place = f"[{host}]" if listen.address.version == 6 else host
    who = f"{agent}:{token}@" if agent else ""
    return f"http://{who}{place}:{listen.port}"


def list_variables(proxy_url: str, certificate: Path, bundle: Path) -> Mapping[str, str]:
    """Every variable to set, in the order in which a person reads them."""
    variables = {spelling: proxy_url for name in _PROXY for spelling in (name, name.lower())}
    variables |= dict.fromkeys(_SWITCHES, "1")
    variables |= dict.fromkeys(_REPLACING, str(bundle))
    return variables | dict.fromkeys(_ADDING, str(certificate))


def format_proxy_exports(proxy_url: str) -> str:
    """Lines for a POSIX shell that change the proxy and nothing else: all spellings at once, since
    clients that find several prefer the lower-case one."""
    names = (spelling for name in _PROXY for spelling in (name, name.lower()))
    others = " ".join(f'{name}="$HTTPS_PROXY"' for name in names if name != "HTTPS_PROXY")
    return f"export HTTPS_PROXY={quote(proxy_url)}\nexport {others}"


def format_exports(variables: Mapping[str, str]) -> str:
    """Lines for a POSIX shell, without a final newline."""
    return "\n".join(f"export {name}={quote(value)}" for name, value in variables.items())
