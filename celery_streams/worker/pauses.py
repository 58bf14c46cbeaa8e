"""PauseWatch: notices that queues were paused or resumed, says so in the log, and has the readers look.

1. It looks at each heartbeat round, and when remote control says so, which may be off.
2. What changed is announced to the crew as if its queues were new: readers that block are called back, and look. Then
   it is said in the log: whoever reads there that a queue is paused may rely on it.

Called by the services thread of the parent, and by its main thread for remote control. Whether a message is read is
not decided here: the script that reads looks for itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from ..broker import StreamBroker
from ..exceptions import BrokerError
from ..hints import command
from ..partitions import by_queue, is_partition
from ..pauses import Pause, follow, paused_queues

__all__ = ("PauseWatch",)

logger = logging.getLogger(__name__)


class PauseWatch:
    """Watches the queues that ``queues`` names at each look.

    Args:
        on_change: called when it is not as it was, with what says so in the log once the readers are called back.
    """

    def __init__(
        self,
        broker: StreamBroker,
        queues: Callable[[], Sequence[str]],
        on_change: Callable[[Callable[[], None]], None],
    ) -> None:
        self._broker = broker
        self._queues = queues
        self._on_change = on_change
        self._known: dict[str, Pause] = {}
        self._lock = threading.Lock()

    def run_once(self) -> list[str]:
        """Look once; returns the names of the paused queues.

        Raises:
            BrokerError: Redis is away, or refused; what other nodes of a cluster say was taken.
        """
        error: BrokerError | None = None
        with self._lock:
            queues = list(self._queues())
            found: dict[str, Pause] = {}
            for part in self._broker.by_slot(queues):
                try:
                    found.update(paused_queues(self._broker, part))
                except BrokerError as exc:
                    error = error or exc
                    found.update((name, self._known[name]) for name in part if name in self._known)
            began = [pause for name, pause in found.items() if name not in self._known]
            ended = [name for name in self._known if name not in found and name in queues]
            self._known = found
        if began or ended:
            several = {queue: names for queue, names in by_queue(queues).items() if len(names) > 1}
            if several:
                follow(self._broker, several)
            self._on_change(partial(_say, began, ended))
        if error is not None:
            raise error
        return sorted(name for name in found if not is_partition(name))


def _say(began: Sequence[Pause], ended: Sequence[str]) -> None:
    for pause in began:
        if is_partition(pause.queue):
            continue
        logger.warning(
            "Queue %s is paused%s: its tasks do not start. Resume it with: %s",
            pause.queue,
            f" ({pause.reason})" if pause.reason else "",
            command("resume", pause.queue),
        )
    for name in ended:
        if not is_partition(name):
            logger.info("Queue %s is resumed.", name)
