"""An upstream is read no faster than its agent takes: what lags is held up at the origin.

    agent opens no window -> its wire layer holds bytes -> HTTP/1 upstream: not read any further
                                                        -> HTTP/2 upstream: no new window

mitmproxy acknowledges at once, under windows of 2 GiB (house.md 2.4). A fast origin then has us
hold whatever an HTTP/2 agent has not taken yet, and past `h2_buffer_bytes_max` its download ends in
a reset, though nobody did anything wrong. Towards an HTTP/1 agent TCP does the same by itself.

Rule 1: below `HELD_BYTES` nobody waits. Above it only the stream that lags waits, not its
        neighbours on the same connection.
Rule 2: windows begin small and grow while the agent keeps up: many slow streams together stay
        below the cap, and one fast stream is not held up by the distance to its origin.
"""

import asyncio
from collections.abc import Callable, MutableMapping
from weakref import WeakKeyDictionary

import h2.config
from mitmproxy.connection import Server
from mitmproxy.proxy.layers.http._http_h2 import BufferedH2Connection

HELD_BYTES = 64 * 1024
RETRY_S = 0.01  # until a stream that lags is looked at again
_WINDOW_BYTES = 64 * 1024  # what a stream begins with
_WINDOW_BYTES_MAX = 1024 * 1024  # 80 Mbit/s over 100 ms
_GRANTED_BYTES_MAX = 2 * 1024 * 1024  # beyond the first windows, per upstream connection
_CONNECTION_BYTES = 2**31 - 1  # streams are what is bounded


class Lag:
    """What one agent has not taken yet, by stream of its connection."""

    def __init__(self) -> None:
        self._count: Callable[[int], int] = lambda _stream_id: 0
        self._streams: MutableMapping[Server, int] = WeakKeyDictionary()
        self._moved = asyncio.Event()

    def watch(self, count: Callable[[int], int]) -> None:
        """`count(stream_id)` is what the agent's wire layer holds. Without it: nothing."""
        self._count = count

    def serve(self, server: Server, stream_id: int) -> None:
        """From now on `server` answers this stream, and, where it speaks HTTP/1, no other."""
        self._streams[server] = stream_id

    def is_behind(self, stream_id: int) -> bool:
        """Whether the agent has to take something before the upstream may send more."""
        return self._count(stream_id) > HELD_BYTES

    def move(self) -> None:
        """The agent sent something: a window, maybe."""
        self._moved.set()

    async def wait(self, server: Server) -> None:
        """Before an upstream is read again. An HTTP/2 one never waits: its windows do."""
        while server.alpn != b"h2" and self.is_behind(self._streams.get(server, 0)):
            self._moved.clear()
            await self._moved.wait()


class MeteredConnection(BufferedH2Connection):
    """The upstream's side of HTTP/2: a stream's window opens when `settle` says so, not on
    receipt."""

    def __init__(self, config: h2.config.H2Configuration) -> None:
        super().__init__(config)
        self.local_settings.enable_push = 0
        self.local_settings.initial_window_size = _WINDOW_BYTES
        self.local_settings.acknowledge()  # else the settings of before are sent
        self.owed: dict[int, int] = {}  # received and not acknowledged, by stream
        self._granted: dict[int, int] = {}

    def acknowledge_received_data(self, acknowledged_size: int, stream_id: int) -> None:
        """Only note it; the connection's own window stays wide open."""
        self.owed[stream_id] = self.owed.get(stream_id, 0) + acknowledged_size
        spent = _CONNECTION_BYTES - self.inbound_flow_control_window
        if spent > _CONNECTION_BYTES // 2:
            self.increment_flow_control_window(spent)

    def settle(self, stream_id: int) -> None:
        """The agent keeps up: give the window back, and something beyond it."""
        size = self.owed.pop(stream_id)
        stream = self.streams.get(stream_id)
        if stream is None or not stream.open:
            self._granted.pop(stream_id, None)
            return
        granted = self._granted.get(stream_id, 0)
        room = _GRANTED_BYTES_MAX - sum(self._granted.values())
        more = max(0, min(size, _WINDOW_BYTES_MAX - _WINDOW_BYTES - granted, room))
        self._granted[stream_id] = granted + more
        if size + more:
            self.increment_flow_control_window(size + more, stream_id)
