"""A project that sets its logging up by itself; a worker gets this module with the setting ``imports``."""

from __future__ import annotations

import logging
import sys
from typing import Any

from celery.signals import setup_logging


@setup_logging.connect(weak=False)
def configure(loglevel: int | None = None, **_: Any) -> None:
    logging.basicConfig(level=loglevel, format="ours: %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
