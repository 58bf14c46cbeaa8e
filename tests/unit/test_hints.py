"""Commands in logs and findings work as they are printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from celery_streams.bin.base import hoist
from celery_streams.bin.root import celery_streams
from celery_streams.hints import command


@pytest.mark.parametrize(
    ("argv", "environ", "program"),
    [
        (["python", "/venv/bin/celery-streams", "-A", "proj", "worker", "-c", "2"], {}, "celery-streams -A proj"),
        (
            ["python", "-m", "celery_streams", "worker", "--app=proj.celery:app"],
            {},
            "celery-streams -A proj.celery:app",
        ),
        (["celery", "-Aproj", "streams", "worker"], {}, "celery-streams -A proj"),
        (["celery", "--app", "proj", "streams", "worker"], {"CELERY_APP": "other"}, "celery-streams -A proj"),
        (["python", "manage.py", "celery_streams", "worker"], {}, "python manage.py celery_streams"),
        (["python", "/srv/my chat/manage.py", "celery_streams"], {}, "python '/srv/my chat/manage.py' celery_streams"),
        (["celery-streams", "worker"], {"CELERY_APP": "proj"}, "celery-streams"),
        (["gunicorn", "chat.wsgi"], {}, "celery-streams -A APP"),
    ],
)
def test_hint_names_the_app_as_this_process_was_told_of_it(
    argv: list[str], environ: dict[str, str], program: str
) -> None:
    assert command("dead", "list", argv=argv, environ=environ) == f"{program} dead list"


def test_queue_that_a_shell_would_split_is_quoted() -> None:
    argv = ["celery-streams", "-A", "proj"]

    assert (
        command("dead", "show", "my queue; rm", "1-0", argv=argv)
        == "celery-streams -A proj dead show 'my queue; rm' 1-0"
    )


def commands(group: click.Group) -> dict[str, click.Command]:
    """Return the commands of a group, also those that nobody asked for yet."""
    ctx = click.Context(group)
    found = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    return {name: one for name, one in found.items() if one is not None}


#: A command in a text: up to what no command has, or a comment behind it.
_COMMAND = re.compile(
    r"(?:celery-streams|manage\.py celery_streams|celery -A \w+ streams)((?: +(?:'[^'\n]*'|[^\s`'#|;()]+))+)"
)


def commands_of(text: str) -> Iterator[list[str]]:
    """Yield the words behind the program's name of each command that a text names."""
    for match in _COMMAND.finditer(re.sub(r"\\\n\s*", " ", text)):
        words = hoist(shlex.split(match[1].rstrip(".,:\\")), celery_streams.params)
        while words and words[0].startswith("-"):  # global options, which have all one value
            words = words[2:]
        if words and words[0] in commands(celery_streams):
            yield words


def misunderstood(words: list[str]) -> str | None:
    """Return why a command line cannot be parsed; values are not looked at."""
    command: click.Command = celery_streams
    rest = words
    while isinstance(command, click.Group) and rest and (found := commands(command).get(rest[0])) is not None:
        command, rest = found, rest[1:]
    try:
        given, left, _ = command.make_parser(click.Context(command)).parse_args(list(rest))
    except click.UsageError as exc:
        return f"{' '.join(words)}: {exc.message}"
    takes_more = command.context_settings.get("allow_extra_args")
    missing = [one.name for one in command.params if one.required and not given.get(str(one.name))]
    if (left and not takes_more) or missing:
        return f"{' '.join(words)}: too many {left}, missing {missing}"
    return None


def test_each_command_that_the_documents_and_the_help_name_can_be_run_as_it_is_printed() -> None:
    root = Path(__file__).parents[2]
    texts = [path.read_text() for path in (root / "README.md", root / "MIGRATION.md", *root.glob("docs/*.md"))]
    groups: list[click.Command] = [celery_streams]
    while groups:
        one = groups.pop()
        texts.append(f"{one.help or ''}\n{one.epilog or ''}")
        groups += commands(one).values() if isinstance(one, click.Group) else ()

    found = [words for text in texts for words in commands_of(text)]

    assert len(found) > 100
    # A word of the command alone names it.
    assert [said for words in found if len(words) > 1 and (said := misunderstood(words))] == []
