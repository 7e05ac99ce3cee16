"""Windows towards an upstream open when the agent keeps up, and stay shut while it does not."""

import asyncio

import h2.config
import h2.connection
import h2.events
from mitmproxy.connection import Server

from proxy.mitm.window import HELD_BYTES, Lag, MeteredConnection

BLOCK = 16_384


class Pair:
    """Our side of a connection to an origin, and the origin."""

    def __init__(self) -> None:
        self.ours = MeteredConnection(h2.config.H2Configuration(client_side=True))
        self.origin = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.ours.initiate_connection()  # type: ignore[no-untyped-call]  # mitmproxy's
        self.origin.initiate_connection()
        self.exchange()

    def exchange(self) -> None:
        """Carry bytes both ways until nobody has any; ours notes what it received."""
        while True:
            there, back = self.ours.data_to_send(), self.origin.data_to_send()
            if not there and not back:
                return
            self.origin.receive_data(there)
            for event in self.ours.receive_data(back):
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    self.ours.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id or 0
                    )

    def request(self) -> int:
        """An open request whose answer has begun."""
        stream: int = self.ours.get_next_available_stream_id()
        head = [(":method", "GET"), (":scheme", "https"), (":authority", "a.com"), (":path", "/")]
        self.ours.send_headers(stream, head, end_stream=True)
        self.exchange()
        self.origin.send_headers(stream, [(":status", "200")])
        self.exchange()
        return stream

    def pour(self, stream: int) -> int:
        """The origin sends as much as it may; returns how many bytes."""
        sent = 0
        while room := min(self.origin.local_flow_control_window(stream), BLOCK):
            self.origin.send_data(stream, b"x" * room)
            sent += room
        self.exchange()
        return sent


def test_what_is_not_settled_holds_the_origin_up() -> None:
    pair = Pair()
    stream = pair.request()
    first = pair.pour(stream)
    assert 0 < first <= 64 * 1024
    assert pair.pour(stream) == 0
    assert pair.ours.owed == {stream: first}


def test_what_is_settled_opens_the_window_wider_up_to_a_bound() -> None:
    pair = Pair()
    stream = pair.request()
    sizes = []
    for _ in range(10):
        sizes.append(pair.pour(stream))
        pair.ours.settle(stream)
        pair.exchange()
    assert sizes == sorted(sizes)
    assert sizes[-1] == sizes[-2] == 1024 * 1024


def test_many_streams_together_stay_bounded() -> None:
    pair = Pair()
    streams = [pair.request() for _ in range(20)]
    for _ in range(10):
        for stream in streams:
            pair.pour(stream)
            pair.ours.settle(stream)
            pair.exchange()
    assert sum(pair.pour(stream) for stream in streams) <= 20 * 64 * 1024 + 2 * 1024 * 1024


def test_a_stream_that_is_held_up_holds_up_no_other() -> None:
    pair = Pair()
    held, other = pair.request(), pair.request()
    pair.pour(held)
    for _ in range(100):
        assert pair.pour(other) > 0
        pair.ours.settle(other)
        pair.exchange()
    assert pair.pour(held) == 0


def test_settling_a_stream_that_ended_changes_nothing() -> None:
    pair = Pair()
    stream = pair.request()
    pair.pour(stream)
    pair.origin.reset_stream(stream)
    pair.exchange()
    pair.ours.settle(stream)
    assert pair.ours.owed == {}
    pair.exchange()


async def test_an_upstream_waits_until_its_stream_was_taken() -> None:
    held = {1: HELD_BYTES + 1, 3: 0}
    lag = Lag()
    lag.watch(lambda stream: held.get(stream, 0))
    slow, quick = server(), server()
    lag.serve(slow, 1)
    lag.serve(quick, 3)
    await lag.wait(quick)
    waiting = asyncio.ensure_future(lag.wait(slow))
    lag.move()
    await asyncio.sleep(0)
    assert not waiting.done()
    held[1] = HELD_BYTES
    lag.move()
    await asyncio.wait_for(waiting, 5)


async def test_nothing_waits_where_nobody_counts_or_windows_do() -> None:
    lag = Lag()
    upstream = server()
    lag.serve(upstream, 1)
    await lag.wait(upstream)
    lag.watch(lambda _stream: HELD_BYTES + 1)
    upstream.alpn = b"h2"
    await lag.wait(upstream)
    await lag.wait(server("h2"))


def server(alpn: str = "") -> Server:
    """An upstream connection that was never opened."""
    return Server(address=("a.com", 443), alpn=alpn.encode() or None)
