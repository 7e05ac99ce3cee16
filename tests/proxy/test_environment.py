"""The lines for an agent's environment: every spelling, the right file, safe to paste."""

import shlex
import subprocess
from pathlib import Path

import pytest

from proxy.environment import (
    format_exports,
    format_proxy_exports,
    format_proxy_url,
    list_variables,
)
from proxy.settings import parse_listen

CA, BUNDLE = Path("/srv/a b/ca.pem"), Path("/srv/a b/bundle.pem")
URLS = {
    "an address and a port": ("127.0.0.1:8080", "http://coder:tk_x@127.0.0.1:8080"),
    "IPv6 keeps its brackets": ("[::1]:3128", "http://coder:tk_x@[::1]:3128"),
    "every address is reached on loopback": ("0.0.0.0:80", "http://coder:tk_x@127.0.0.1:80"),
    "every IPv6 address too": ("[::]:80", "http://coder:tk_x@[::1]:80"),
}


@pytest.mark.parametrize(("listen", "url"), URLS.values(), ids=URLS)
def test_the_proxy_url_names_place_agent_and_token(listen: str, url: str) -> None:
    assert format_proxy_url(parse_listen(listen), "coder", "tk_x") == url


def test_an_agent_that_is_known_by_its_address_needs_no_credentials() -> None:
    assert format_proxy_url(parse_listen("127.0.0.1:8080")) == "http://127.0.0.1:8080"


def test_both_spellings_of_each_proxy_variable_are_there_and_no_way_round() -> None:
    variables = list_variables("http://p:1", CA, BUNDLE)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        assert variables[name] == variables[name.lower()] == "http://p:1"
    assert not [name for name in variables if name.upper() == "NO_PROXY"]


def test_replacing_variables_get_the_bundle_and_adding_ones_our_certificate() -> None:
    variables = list_variables("http://p:1", CA, BUNDLE)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"):
        assert variables[name] == str(BUNDLE)
    for name in ("NODE_EXTRA_CA_CERTS", "DENO_CERT"):
        assert variables[name] == str(CA)


def test_a_shell_reads_the_lines_as_they_were_meant() -> None:
    variables = list_variables("http://p:1", CA, BUNDLE)
    script = format_exports(variables) + '\nprintf %s "$NODE_EXTRA_CA_CERTS"'
    run = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == str(CA)
    assert all(shlex.split(line)[0] == "export" for line in format_exports(variables).splitlines())


def test_a_new_token_replaces_the_proxy_under_every_spelling() -> None:
    before = format_exports(list_variables("http://p:1", CA, BUNDLE))
    after = format_proxy_exports("http://coder:tk_x@p:1")
    shown = "env | grep -ci '^[a-z]*_proxy=http://coder:tk_x@p:1$'"
    run = subprocess.run(
        ["/bin/sh", "-c", f"{before}\n{after}\n{shown}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert run.stdout == "6\n"
