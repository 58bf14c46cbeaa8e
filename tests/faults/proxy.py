"""A TCP proxy that misbehaves when it is told to: black hole, reset, latency, lost replies; one thread."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Pair:
    """One connection: the client's side and the server's."""

    client: socket.socket
    server: socket.socket
    #: Bytes on their way: (due, from, to, data).
    delayed: list[tuple[float, socket.socket, bytes]] = field(default_factory=list)
    hole: bool = False


class Proxy:
    """Forwards connections to ``port``; a context manager.

    ``latency``      seconds that each piece of data takes, each way
    ``drop_replies`` swallow what the server says from now on, to connections that exist and new ones
    ``cut_replies``  of each so many pieces of what the server says one is cut in its middle, and its connection reset
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.latency = 0.0
        self.drop_replies = False
        self.cut_replies = 0
        #: Replies that were cut.
        self.cut = 0
        self._pieces = 0
        #: New connections become black holes too.
        self.swallow_new = False
        #: New connections are closed at once, as by a host whose server is gone.
        self.refuse_new = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._pairs: list[_Pair] = []
        self._lock = threading.RLock()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(5)
        for pair in list(self._pairs):
            self._close(pair)
        self._selector.close()
        self._listener.close()

    @property
    def connections(self) -> int:
        return len(self._pairs)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    # -- harm

    def black_hole(self) -> int:
        """Let nothing through on the connections of this moment and close none: a peer gone without a word."""
        with self._lock:
            for pair in self._pairs:
                pair.hole = True
            return len(self._pairs)

    def reset(self) -> int:
        """End all connections with RST."""
        with self._lock:
            pairs = list(self._pairs)
            for pair in pairs:
                with contextlib.suppress(OSError):
                    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._close(pair)
            return len(pairs)

    # -- work

    def _run(self) -> None:
        while not self._stop:
            ready = self._selector.select(0.005 if self.latency else 0.05)
            with self._lock:
                for key, _ in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.data in self._pairs:
                        self._forward(key.data, key.fileobj)
                self._deliver()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        if self.refuse_new:
            client.close()
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=2)
        except OSError:
            client.close()
            return
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(5)
        pair = _Pair(client, server, hole=self.swallow_new)
        self._pairs.append(pair)
        self._selector.register(client, selectors.EVENT_READ, pair)
        self._selector.register(server, selectors.EVENT_READ, pair)

    def _forward(self, pair: _Pair, source: socket.socket) -> None:
        try:
            data = source.recv(65536)
        except OSError:
            data = b""
        if not data:
            if not pair.hole:
                self._close(pair)
            else:
                self._selector.unregister(source)
            return
        if pair.hole or (self.drop_replies and source is pair.server):
            return
        target = pair.server if source is pair.client else pair.client
        if self.cut_replies and source is pair.server:
            self._pieces += 1
            if self._pieces % self.cut_replies == 0:
                self.cut += 1
                with contextlib.suppress(OSError):
                    pair.client.sendall(data[: len(data) // 2])
                self._close(pair)
                return
        pair.delayed.append((time.monotonic() + self.latency, target, data))

    def _deliver(self) -> None:
        now = time.monotonic()
        for pair in list(self._pairs):
            while pair.delayed and pair.delayed[0][0] <= now:
                _, target, data = pair.delayed.pop(0)
                try:
                    target.sendall(data)
                except OSError:
                    self._close(pair)
                    break

    def _close(self, pair: _Pair) -> None:
        if pair not in self._pairs:
            return
        self._pairs.remove(pair)
        for sock in (pair.client, pair.server):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(sock)
            sock.close()
