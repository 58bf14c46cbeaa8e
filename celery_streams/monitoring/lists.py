"""Lists: the other side of each queue, Celery's own list: how much is on it, who writes there, and who consumes it.

Stock workers say nothing of themselves in Redis, so they are asked by remote control; only when something is on a list,
and only when Redis knows of workers that could answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kombu.exceptions import OperationalError

from ..app import Streams
from ..connection import RedisClient
from ..exceptions import BrokerError, ConfigurationError
from ..installation import is_installed
from ..kombu_lists import list_keys
from ..probes import list_lengths, set_size
from ..redis_url import place
from ..said import Said, say
from .workers import WORKERS_AWAY, find_workers

__all__ = ("ListSide", "look_at_lists")

#: Seconds for workers to answer.
_PATIENCE = 1.0


@dataclass(frozen=True, slots=True)
class ListSide:
    """Celery's list of one queue at one moment."""

    #: Messages on it; None when Celery's broker is no Redis, or did not answer.
    length: int | None = None
    #: Share of what publishers write that goes to the stream (0.0 to 1.0), as this process sees it.
    share: float = 0.0
    #: Node names of the stock workers that consume it; None when nothing is on it, or they could not be asked.
    stock_workers: tuple[str, ...] | None = None


def look_at_lists(
    streams: Streams, queues: Sequence[str], *, ask_workers: bool = True
) -> tuple[dict[str, ListSide], Said | None]:
    """Return the list of each queue, and why they could not be looked at, if so.

    Without ``ask_workers`` nobody knows which stock workers consume them.
    """
    lengths: dict[str, int] = {}
    trouble: Said | None = None
    client: RedisClient | None = None
    own = False
    try:
        client, own = _client(streams)
        names = [list_keys(queue, _options(streams)) for queue in queues]
        lengths.update(zip(queues, list_lengths(client, names), strict=True))
    except ConfigurationError:
        pass  # another broker's queues are nothing that we could look at
    except BrokerError as exc:
        trouble = say("Celery's lists cannot be read: %(error)s", error=str(exc))
    stock = _stock_workers(streams, client) if client is not None and ask_workers and any(lengths.values()) else None
    if client is not None and own:
        client.close()
    on = is_installed(streams.app) and streams.enabled()
    return {
        queue: ListSide(
            lengths.get(queue),
            streams.conf.queues.share(queue) if on else 0.0,
            stock.get(queue, ()) if stock is not None and lengths.get(queue) else None,
        )
        for queue in queues
    }, trouble


def _client(streams: Streams) -> tuple[RedisClient, bool]:
    """Return a client for Celery's lists, and whether it is for us alone."""
    made = streams.new_list_client()
    if place(made.url) == place(streams.url):
        return streams.broker.client, False
    return made, True


def _stock_workers(streams: Streams, client: RedisClient) -> dict[str, tuple[str, ...]] | None:
    """Return the stock workers by the queue that they consume; None when it cannot be known."""
    app = streams.app
    if not app.conf.worker_enable_remote_control:
        return None
    mailboxes = list_keys("", _options(streams)).bindings % f"{app.conf.control_exchange}.pidbox"
    try:
        count = set_size(client, mailboxes)
        return dict(find_workers(streams, timeout=_PATIENCE, limit=count).stock) if count else {}
    except (*WORKERS_AWAY, BrokerError, OperationalError):
        return None


def _options(streams: Streams) -> dict[str, object]:
    return dict(streams.app.conf.broker_transport_options or {})
