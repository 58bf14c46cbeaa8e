"""Help texts as a terminal of eighty columns shows them."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from celery_streams.bin.commands import streams
from celery_streams.bin.dead import dead
from celery_streams.bin.limits import limits
from celery_streams.bin.root import celery_streams


@pytest.mark.parametrize("group", [celery_streams, streams, dead, limits], ids=lambda group: group.name)
def test_no_line_of_a_list_of_commands_is_cut_at_eighty_columns(group: click.Group) -> None:
    shown = CliRunner(env={"COLUMNS": "80"}).invoke(group, ["--help"])

    commands = shown.output.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(commands) == len(group.list_commands(click.Context(group)))
    assert [line for line in commands if line.endswith("...")] == []


@pytest.mark.parametrize("group", [streams, dead, limits], ids=lambda group: group.name)
def test_first_line_of_each_help_is_a_sentence(group: click.Group) -> None:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        first = (command.help or "").strip().partition("\n")[0]

        assert first.endswith("."), name
