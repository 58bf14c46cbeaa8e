"""A proxy that takes no command of more than 3,999 arguments, as ElastiCache Serverless; one thread a connection."""

from __future__ import annotations

import contextlib
import socket
import threading

#: Arguments of a command that are taken, its name included.
MOST = 3_999

#: What goes to the server in the place of a longer one, for it to refuse.
_REFUSED = b"*1\r\n$15\r\nTOOMANYARGUMENT\r\n"


class Serverless:
    """Forwards connections to ``port``; a context manager. ``longest`` is the longest command so far."""

    def __init__(self, port: int) -> None:
        self.longest = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self._open: list[socket.socket] = [self._listener]

    def __enter__(self) -> Serverless:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._open += [client, server]
                threading.Thread(target=self._commands, args=(client, server), daemon=True).start()
                threading.Thread(target=_copy, args=(server, client), daemon=True).start()

    def _commands(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError), client.makefile("rb") as said:
            while head := said.readline():
                words = int(head[1:])
                self.longest = max(self.longest, words)
                parts = [head]
                for _ in range(words):
                    length = said.readline()
                    parts += [length, said.read(int(length[1:]) + 2)]
                server.sendall(b"".join(parts) if words <= MOST else _REFUSED)
            server.shutdown(socket.SHUT_WR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
