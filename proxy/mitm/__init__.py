"""The only room that imports mitmproxy: its layers, driven by our own connection handler.

    master.py      accepts connections, counts them, drains
    handler.py     the fail-closed choke point: hooks, crashes, every byte upstream
    handshake.py   the TLS hooks; tls_layers.py  TLS layers with an end
    dial.py        reaching the vetted addresses of a ticket
    choice.py      what is spoken inside a tunnel
    layers.py      HTTP over one client connection: which stream, which upstream connection
    stream.py      one exchange: events to the enforcer, effects to the wire
    wire1.py wire2.py   HTTP/1.1 and HTTP/2 bytes, read strictly
    message.py     mitmproxy's message objects
    websocket.py   frames, metered as they pass
    window.py pressure.py   who is not read on while somebody cannot keep up
    session.py     what the layers of one client connection share
    ca.py tls.py options.py gates.py selftest.py   what must hold before the port opens

mitmproxy's addon manager is not used at all (docs/adr/0004-no-addons.md): a hook that raises there
lets the flow go on.
"""
