"""The source of random numbers: the operating system's, so that the tasks' own, which may be seeded, is left alone."""

from __future__ import annotations

import random

__all__ = ("chance",)

#: Used for pauses that shall differ among workers, and for shares of messages.
chance = random.SystemRandom()
