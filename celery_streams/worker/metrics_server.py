"""Metrics server: a port on which Prometheus reads a registry; it is opened before the worker starts, served later.

A forked child closes what it inherits of it: the port must be free when the worker is gone, whatever its children do.
"""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import threading
from typing import Any
from weakref import WeakSet
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from ..exceptions import ConfigurationError
from ..poll import readable

__all__ = ("MetricsServer",)

logger = logging.getLogger(__name__)

#: Seconds that a client may take for its request, and that the end of the worker waits for one that is being served.
_PATIENCE = 5.0


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the log free of scrapes."""
        logger.debug(format, *args)


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    allow_reuse_port = False

    def __init__(self, family: socket.AddressFamily, address: Any) -> None:
        self.address_family = family
        self.open: set[Any] = set()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the name server for this host, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.open.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A boundary: of a client that went away, or was too slow, nobody needs a stack trace on stderr.
        logger.debug("A request for metrics from %s failed.", client_address, exc_info=True)


class MetricsServer:
    """Listens at once, so that a port which is taken is known before the worker starts.

    Args:
        port: 0 lets the system choose one.

    Raises:
        ConfigurationError: the address cannot be listened at.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
            )[0]
            self._server = _Server(family, address)
        except OSError as exc:
            raise ConfigurationError(
                f"--metrics-port {_shown(host, port)}: cannot listen there: {exc.strerror or exc}"
            ) from exc
        self.url = f"http://{_shown(host, self._server.server_port)}/metrics"
        self._thread: threading.Thread | None = None
        self._stop_in, self._stop_out = os.pipe()
        self._closed = False
        _servers.add(self)

    def start(self, registry: CollectorRegistry) -> None:
        """Serve a registry, in threads of its own."""
        self._server.set_app(make_wsgi_app(registry))
        self._thread = threading.Thread(target=self._serve, name="celery-streams-metrics", daemon=True)
        self._thread.start()
        logger.info("Metrics are at %s", self.url)

    def _serve(self) -> None:
        while self._stop_in not in (found := readable([self._server.fileno(), self._stop_in], timeout=3600.0)):
            if found:
                self._server.handle_request()

    def close(self) -> None:
        """Listen no more."""
        if self._closed:
            return
        self._closed = True
        os.write(self._stop_out, b".")
        if self._thread is not None:
            self._thread.join(timeout=_PATIENCE)
        self._server.socket.close()
        os.close(self._stop_in)
        os.close(self._stop_out)

    def forget(self) -> None:
        """Close, in a forked child, the parent's descriptors; the connections themselves live on."""
        if not self._closed:
            self._closed = True
            self._server.socket.close()
            for request in list(self._server.open):
                request.close()


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_servers: WeakSet[MetricsServer] = WeakSet()


def _forget_all() -> None:
    for server in list(_servers):
        server.forget()


os.register_at_fork(after_in_child=_forget_all)
