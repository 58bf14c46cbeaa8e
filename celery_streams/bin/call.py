"""``call``: Celery's own command, which answers times that no clock can show with a stack trace."""

from __future__ import annotations

import copy
from datetime import datetime, timedelta, timezone
from typing import Any

import click
from celery.bin.call import call as celery_call

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


call: click.Command = copy.copy(celery_call)
call.params = [_our_param(param) for param in celery_call.params]
