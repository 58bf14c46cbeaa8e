"""QueueChoice: which queues are on streams, as ``streams_queues`` says it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from .chance import chance
from .exceptions import ConfigurationError
from .setting_values import json_names

__all__ = ("QueueChoice",)

#: Characters that make a name of ``streams_queues`` a shell pattern.
_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class QueueChoice:
    """Which queues are on streams: exact names, shell patterns, and shares for a canary."""

    patterns: tuple[str, ...] = ("*",)
    shares: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Any) -> QueueChoice:
        """Read ``streams_queues``: a name, names (in the environment comma separated or JSON), or name -> share.

        Raises:
            ConfigurationError: the value is none of these, or a share lies outside 0.0 to 1.0.
        """
        if isinstance(value, str):
            text = value.strip()
            if text.startswith("{"):
                try:
                    value = json.loads(text)
                except ValueError as exc:
                    raise ConfigurationError(f"streams_queues is not valid JSON: {exc}") from exc
            else:
                value = json_names(text)
                if value is None:
                    value = [part.strip() for part in text.split(",") if part.strip()]
        if isinstance(value, Mapping):
            shares: dict[str, float] = {}
            for name, share in value.items():
                try:
                    shares[str(name)] = float(share)
                except (TypeError, ValueError):
                    raise ConfigurationError(
                        f"streams_queues: the share of queue {name!r} must be a number from 0.0 to 1.0, got {share!r}"
                    ) from None
                if not 0.0 <= shares[str(name)] <= 1.0:
                    raise ConfigurationError(
                        f"streams_queues: the share of queue {name!r} must lie between 0.0 and 1.0, got {share!r}"
                    )
            return cls(patterns=tuple(shares), shares=shares)
        if isinstance(value, Iterable) and not isinstance(value, bytes):
            patterns = tuple(value)
            for name in patterns:
                if not isinstance(name, str) or not name:
                    raise ConfigurationError(f"streams_queues must hold queue names, got {name!r}")
            return cls(patterns=patterns)
        raise ConfigurationError(
            f"streams_queues must be a name, a list of names or patterns, or a mapping of name to share, got {value!r}"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The queues that are chosen by their exact name, in the order of the setting."""
        return tuple(name for name in self.patterns if not _WILDCARDS.intersection(name) and self.share(name) > 0.0)

    def matches(self, queue: str) -> bool:
        """Return whether any share of ``queue`` is on streams."""
        return self.share(queue) > 0.0

    def share(self, queue: str) -> float:
        """Return the share (0.0 to 1.0) of ``queue`` that is published to its stream."""
        if self.shares and queue in self.shares:
            return self.shares[queue]
        for pattern in self.patterns:
            if pattern == queue or fnmatchcase(queue, pattern):
                return self.shares.get(pattern, 1.0)
        return 0.0

    def draw(self, queue: str, *, chance: Callable[[], float] = chance.random) -> bool:
        """Return whether this one message of ``queue`` goes to the stream."""
        share = self.share(queue)
        return share >= 1.0 or (share > 0.0 and chance() < share)
