"""``python -m celery_streams`` is ``celery-streams``."""

from __future__ import annotations

from .bin.base import main

if __name__ == "__main__":
    main(prog_name="celery-streams")
