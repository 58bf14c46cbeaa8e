"""A command that fails prints nothing to stdout, with ``--json`` too: it has a line on stderr, and an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_streams.bin.commands import streams
from celery_streams.bin.terminal import EXIT_CONFIG, EXIT_CRITICAL, EXIT_UNAVAILABLE, EXIT_USAGE

MakeApp = Callable[..., Celery]

#: What each command with ``--json`` is told besides. A new one belongs here.
WORDS: dict[str, tuple[str, ...]] = {
    "status": (),
    "alerts": (),
    "health": (),
    "doctor": (),
    "limits": (),
    "dead list": (),
    "dead show": ("jobs", "1-0"),
    "dead replay": ("--all",),
    "dead purge": ("--yes", "--all"),
    "migrate": ("jobs", "--to", "lists"),
    "adopt": ("orders", "--task", "t", "--map", "a=b"),
}


def every(group: click.Group) -> list[click.Command]:
    """Return the commands of a group, imported."""
    ctx = click.Context(group)
    return [found for name in group.list_commands(ctx) if (found := group.get_command(ctx, name)) is not None]


def with_json(commands: Any, before: str = "") -> Iterator[tuple[str, click.Command]]:
    for command in commands:
        if any("--json" in one.opts for one in command.params):
            yield f"{before}{command.name}", command
        if isinstance(command, click.Group):
            yield from with_json(every(command), f"{before}{command.name} ")


COMMANDS = every(streams)
FOUND = dict(with_json(COMMANDS))


def nothing(a: int) -> None:
    pass


def invoke(name: str, app: Celery, *more: str) -> Any:
    app.task(nothing, name="t", shared=False)
    root = next(one for one in COMMANDS if one.name == name.split()[0])
    words = [*name.split()[1:], *WORDS.get(name, ()), "--json", *more]
    return CliRunner().invoke(root, words, obj=CLIContext(app=app, no_color=True, workdir=None))


def failed(result: Any, code: int) -> None:
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert result.stderr.strip().splitlines()[-1].startswith("Error: "), result.stderr


def test_every_command_that_prints_json_is_tried_here() -> None:
    assert FOUND.keys() == WORDS.keys()


@pytest.mark.parametrize("name", FOUND)
def test_redis_that_is_away(app: MakeApp, name: str) -> None:
    away = "redis://127.0.0.1:1/0"

    result = invoke(name, app(broker_url=away, streams_url=away, streams_queues=["jobs"]))

    if name == "alerts":  # that is one
        [alert] = json.loads(result.stdout)["alerts"]
        assert (result.exit_code, result.stderr, alert["name"]) == (EXIT_CRITICAL, "", "redis")
    else:
        failed(result, EXIT_UNAVAILABLE)


@pytest.mark.parametrize("name", FOUND)
def test_setting_that_is_wrong(app: MakeApp, name: str) -> None:
    failed(invoke(name, app(streams_visibility_timeout="soon")), EXIT_CONFIG)


@pytest.mark.parametrize("name", FOUND)
def test_command_line_that_is_wrong(app: MakeApp, name: str) -> None:
    failed(invoke(name, app(), "--no-such-option"), EXIT_USAGE)
