"""Annotations of tasks as classes give them; a worker has them by ``task_annotations``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import ledger

_ACT = "tests.proj.actions.act"


def _on_failure(self: Any, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
    ledger.write("annotated", task_id, what="on_failure")


def _around_run(fun: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        ledger.write("annotated", self.request.id, what="run")
        return fun(self, *args, **kwargs)

    return run


class Annotations:
    """For one task by its name, and for every task."""

    def annotate(self, task: Any) -> dict[str, Any] | None:
        """Return what one task gets."""
        if task.name != _ACT:
            return None
        return {"on_failure": _on_failure, "@run": _around_run, "soft_time_limit": 1, "max_retries": 1}

    def annotate_any(self) -> dict[str, Any]:
        """Return what all tasks get."""
        return {"track_started": True}
