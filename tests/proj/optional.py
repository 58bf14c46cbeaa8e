"""One task for each way to declare one, which does what ``actions`` do; plain Celery. For comparisons of options."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from .actions import ActionError, ExpectedError, Recorded, TransientError, run_action

#: Options of the tasks, by their names.
DECLARED: dict[str, dict[str, Any]] = {
    "plain": {},
    "tracked": {"track_started": True},
    "ignored": {"ignore_result": True},
    "errors_kept": {"ignore_result": True, "store_errors_even_if_ignored": True},
    "late": {"acks_late": True},
    "late_unless_failed": {"acks_late": True, "acks_on_failure_or_timeout": False},
    "late_and_lost": {"acks_late": True, "reject_on_worker_lost": True},
    "endless": {"max_retries": None},
    "throws": {"throws": (ActionError, ExpectedError)},
    "again": {
        "autoretry_for": (Exception,),
        "dont_autoretry_for": (ExpectedError,),
        "retry_kwargs": {"max_retries": 1, "countdown": 0},
    },
    "backing_off": {
        "autoretry_for": (TransientError,),
        "retry_backoff": True,
        "retry_jitter": False,
        "retry_backoff_max": 1,
    },
}


def _declare(name: str, options: dict[str, Any]) -> None:
    @shared_task(bind=True, base=Recorded, name=f"{__name__}.{name}", **options)
    def act(self: Any, action: str, value: Any = None, **more: Any) -> Any:
        return run_action(self, action, value, **more)


for _name, _options in DECLARED.items():
    _declare(_name, _options)
