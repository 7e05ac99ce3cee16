"""The only room that imports mitmproxy: its layers, driven by our own connection handler.

    master.py    accepts connections, counts them, drains
    handler.py   the fail-closed choke point: hooks, crashes, dialling, every byte upstream
    layers.py    HTTP over one client connection: which stream, which upstream connection
    stream.py    one exchange: events to the enforcer, effects to the wire
    wire1.py wire2.py   HTTP/1.1 and HTTP/2 bytes, read strictly
    websocket.py  frames, metered as they pass
    ca.py tls.py options.py gates.py  certificates, TLS settings, frozen options, start-up gates

mitmproxy's addon manager is not used at all (docs/adr/0004-no-addons.md): a hook that raises there
lets the flow go on.
"""
