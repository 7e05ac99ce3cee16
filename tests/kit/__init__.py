"""Real parts for tests: origins over TLS that record every byte, and the proxy as a process of its
own."""
