"""A real Prometheus, which scrapes what it is told and evaluates our alert rules, in a folder of
its own; and promtool, which comes with it (Debian package `prometheus`)."""

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

_CONFIGURATION = """
global: {{ scrape_interval: {interval}, evaluation_interval: {interval} }}
rule_files: {rules}
scrape_configs:
  - job_name: tollkeeper
    authorization: {{ type: Bearer, credentials_file: "{token_file}" }}
    static_configs: [ {{ targets: ["{target}"] }} ]
"""


def find_tool(name: str) -> str:
    """The path of `prometheus` or `promtool`.

    Raises:
        LookupError: it is not installed; the text says what to do.
    """
    found = shutil.which(name)
    if found is None:
        raise LookupError(f"`{name}` is not installed: `make test` installs it as root on Debian")
    return found


def check(*arguments: str, given: str = "", cwd: Path | None = None) -> tuple[int, str]:
    """Run promtool: exit code and everything it says."""
    done = subprocess.run(
        [find_tool("promtool"), *arguments],
        input=given,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """Start with `with`; waits until it answers. Stores below `folder`, listens on loopback."""

    def __init__(
        self,
        folder: Path,
        target: str,
        *,
        token_file: Path,
        rules: Sequence[Path] = (),
        interval: str = "1s",
    ) -> None:
        self.folder = folder
        self.port = 0
        listed = json.dumps([str(path) for path in rules])
        self._text = _CONFIGURATION.format(
            interval=interval, rules=listed, target=target, token_file=token_file
        )

    def __enter__(self) -> Self:
        binary = find_tool("prometheus")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "prometheus.yml"
        path.write_text(self._text, encoding="utf-8")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        with (self.folder / "stderr").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={path}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + 15
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                said = (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"prometheus did not start:\n{said}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # nobody reads its data again
        self._process.wait(10)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self._get("/-/ready")[0] == 200
        return False

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of the HTTP API.

        Raises:
            ValueError: Prometheus refuses the question; the text is its own.
        """
        query = urllib.parse.urlencode(parameters)
        _, body = self._get(f"/api/v1/{path}?{query}")
        answer = json.loads(body)
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """An instant vector: labels and values.

        Raises:
            ValueError: it does not parse, or is no vector.
        """
        found = self.ask("query", query=expression)
        if found["resultType"] != "vector":
            raise ValueError(f"a {found['resultType']}, no vector: {expression}")
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def alerts(self) -> dict[str, dict[str, Any]]:
        """Every alert rule by its name, as the rules API shows it."""
        groups = self.ask("rules", type="alert")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}
