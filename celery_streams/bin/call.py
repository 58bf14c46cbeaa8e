"""``call``: Celery's own command, which answers odd times, and a result backend that is away, with a stack trace."""

from __future__ import annotations

import copy
from datetime import datetime, timedelta, timezone
from typing import Any

import click
from celery.backends.asynchronous import E_RETRY_LIMIT_EXCEEDED
from celery.bin.call import call as celery_call
from celery.exceptions import CeleryCommandException

from .terminal import EXIT_UNAVAILABLE, one_line_errors

__all__ = ("call",)

#: Options that are, or may be, seconds from now.
_FROM_NOW = ("countdown", "expires")


def _check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if isinstance(value, float):
        try:
            datetime.now(timezone.utc) + timedelta(seconds=value)
        except (ValueError, OverflowError) as exc:
            raise click.BadParameter(f"{value} seconds from now is no time", ctx, param) from exc
    return value


def _our_param(param: click.Parameter) -> click.Parameter:
    if param.name in _FROM_NOW:
        param = copy.copy(param)
        param.callback = _check
    return param


@one_line_errors
def _run(*args: Any, **options: Any) -> Any:
    assert celery_call.callback is not None
    try:
        return celery_call.callback(*args, **options)
    except RuntimeError as exc:
        if str(exc) != E_RETRY_LIMIT_EXCEEDED:
            raise
        # It is asked for the result before the task is published.
        raise CeleryCommandException(
            f"The result backend cannot be reached, and the task was not published: {exc.__cause__}", EXIT_UNAVAILABLE
        ) from exc


call: click.Command = copy.copy(celery_call)
call.callback = _run
call.params = [_our_param(param) for param in celery_call.params]
