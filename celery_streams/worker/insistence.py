"""Insistence: carries out what must be carried out, however long Redis is away or refuses it.

While it is away the call is repeated with growing pauses, because a task that ran must not run again. What Redis
refuses for one queue alone is set aside, where there is room. Whoever must end asks it to give up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from ..chance import chance
from ..entries import Entry
from ..exceptions import (
    BrokerFull,
    BrokerUnavailable,
    GroupMissing,
    LoginRefused,
)
from .set_aside import OF_ONE_QUEUE, SetAside

__all__ = ("PAUSES", "Aside", "Insistence")

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds: least and greatest pause between two attempts while Redis is away.
PAUSES = (0.05, 2.0)

#: Refusals that last until a person fixes something. The task ran: if its process ended over them it would run again,
#: and be refused again.
_LASTING = (LoginRefused, *OF_ONE_QUEUE)


class Aside(NamedTuple):
    """What is set aside when Redis refuses for good."""

    entries: Sequence[Entry]
    #: What is tried every few seconds from then on.
    action: Callable[[], object]
    #: That puts back what could not start; see :meth:`SetAside.add`.
    goes_back: bool = False


class Insistence:
    """Insists for one consumer.

    Args:
        insists: off lets what Redis says pass.
        give_up: asked before each new attempt; says yes when the process must end at once.
        aside: where refusals of one queue wait; None: they are insisted on.
    """

    def __init__(
        self,
        consumer: str,
        *,
        insists: bool,
        give_up: Callable[[], bool],
        sleep: Callable[[float], None],
        aside: SetAside | None,
    ) -> None:
        #: Something could not be carried out before this process had to end.
        self.gave_up = False
        self._consumer = consumer
        self._insists = insists
        self._give_up = give_up
        self._sleep = sleep
        self._aside = aside

    def insist(
        self, action: Callable[[], T], verb: str, what: object, *, aside: Aside | None = None
    ) -> tuple[T | None, bool]:
        """Carry out ``action`` however long Redis is unreachable, or refuses; ``verb`` and ``what`` are for the log.

        Returns the result, and whether an earlier attempt may have been carried out too.

        Args:
            aside: what is set aside when Redis refuses for good; the result is None, as after a repetition.
        """
        pause, repeated = PAUSES[0], False
        told = ""
        while True:
            try:
                return action(), repeated
            except (BrokerUnavailable, BrokerFull, *_LASTING) as exc:
                if not self._insists:
                    raise
                if self._give_up():
                    self.gave_up = True
                    logger.warning(
                        "Cannot %s %s: %s. The worker stops; what stays pending is taken over by another worker.",
                        verb,
                        what,
                        exc,
                    )
                    return None, True
                if isinstance(exc, OF_ONE_QUEUE) and aside and self._aside is not None and self._aside.has_room():
                    self._aside.add(verb, aside.entries, exc, aside.action, goes_back=aside.goes_back)
                    return None, True
                self._say(verb, what, exc, pause, again=str(exc) == told)
                told = str(exc)
                self._sleep(pause * chance.uniform(0.5, 1.0))
                pause, repeated = min(pause * 2, PAUSES[1]), True
            except GroupMissing:
                return None, repeated

    def _say(self, verb: str, what: object, exc: Exception, pause: float, *, again: bool) -> None:
        if again:
            logger.debug("Still cannot %s %s; trying again in %.1fs.", verb, what, pause)
        elif isinstance(exc, _LASTING):
            logger.error("Cannot %s %s: %s. %s runs nothing else until this is fixed.", verb, what, exc, self._consumer)
        else:
            logger.warning("Cannot %s %s: %s. Trying again until it is done.", verb, what, str(exc).rstrip("."))
