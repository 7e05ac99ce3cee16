"""Origins and gates of the adapter's tests."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Pin, Settings
from tests.kit.certificates import Authority
from tests.kit.gate import Gate
from tests.kit.origin import Origin

LOOPBACK = ip_address("127.0.0.1")
OpenGate = Callable[..., Gate]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the origins' certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def origin() -> Iterator[Origin]:
    """An origin without TLS."""
    with Origin() as made:
        yield made


@pytest.fixture
def secure_origin(authority: Authority) -> Iterator[Origin]:
    """An origin with TLS, as `api.test`."""
    with Origin(tls=authority.server_context("api.test")) as made:
        yield made


@pytest.fixture
def open_gate(tmp_path: Path, authority: Authority) -> Iterator[OpenGate]:
    """Opens a gate: `plain` and `secure` are the ports behind http and https of `api.test`."""
    with ExitStack() as stack:

        def open_it(
            *, plain: int = 9, secure: int = 9, rules: str = "", explain: bool = False, **knobs: Any
        ) -> Gate:
            pins = (
                Pin("api.test", 80, LOOPBACK, plain),
                Pin("api.test", 443, LOOPBACK, secure),
            )
            settings = Settings(resolve=pins, **({"connect_timeout_s": 2.0} | knobs))
            made = Gate(
                tmp_path / f"gate{len(list(tmp_path.iterdir()))}",
                rules,
                settings=settings,
                trusted=(authority.pem,),
                explain=explain,
            )
            return stack.enter_context(made)

        yield open_it
