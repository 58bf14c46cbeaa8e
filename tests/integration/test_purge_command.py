"""``celery-streams purge``: the lists and the streams of a queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_streams import streams_of
from celery_streams.bin.purge import purge
from celery_streams.bin.terminal import EXIT_CONFIG, EXIT_USAGE
from celery_streams.inspect import queue_status


def run(project: Celery, *words: str, answer: str | None = None) -> Result:
    context = CLIContext(app=project, no_color=True, workdir=None)
    return CliRunner().invoke(purge, list(words), obj=context, input=answer)


def test_purge_empties_the_list_and_the_stream_of_a_queue(app: Callable[..., Celery]) -> None:
    project: Any = app(streams_queues=["chat"])
    project.send_task("t", queue="chat")
    project.send_task("t", queue="chat", countdown=3600)
    project.conf.streams_enabled = False
    project.send_task("t", queue="chat")

    result = run(project, "-f", "-Q", "chat")

    assert result.exit_code == 0, result.output
    assert "Purged 1 message from 1 known task queue." in result.output
    assert "Purged 2 waiting and delayed messages from the streams of chat." in result.output
    status = queue_status(streams_of(project).broker, "chat")
    assert (status.waiting, status.delayed) == (0, 0)


def test_purge_without_names_empties_every_queue_that_is_known(app: Callable[..., Celery]) -> None:
    publisher: Any = app(streams_queues="*")
    publisher.send_task("t", queue="chosen")
    publisher.send_task("t", queue="used")

    project = app(streams_queues=["chosen"])
    result = run(project, "-f")

    assert result.exit_code == 0, result.output
    assert "Purged 2 waiting and delayed messages from the streams of chosen, used." in result.output
    assert [queue_status(streams_of(project).broker, name).waiting for name in ("chosen", "used")] == [0, 0]


def test_purge_with_a_wrong_setting_empties_nothing(app: Callable[..., Celery]) -> None:
    app(installed=False).send_task("t", queue="celery")
    project: Any = app(streams_delivery_limit=0)

    result = run(project, "-f")

    assert result.exit_code == EXIT_CONFIG
    assert len(result.stderr.splitlines()) == 1
    with project.connection_for_write() as connection:
        assert connection.default_channel.queue_purge("celery") == 1


def test_purge_that_is_not_confirmed_empties_nothing(app: Callable[..., Celery]) -> None:
    project: Any = app(streams_queues=["chat"])
    project.send_task("t", queue="chat")

    result = run(project, "-Q", "chat", answer="n\n")

    assert result.exit_code == 1
    assert queue_status(streams_of(project).broker, "chat").waiting == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-f", "chat"], "purge chat: name queues with -Q chat"),
        (["-f", "-Q", "chat", "-X", "chat"], "-X leaves no queue to purge"),
        (["-f", "-X", "chat,celery"], "-X leaves no queue to purge"),
        (["-f", "-Q", ""], "-Q has an empty name"),
        (["-f", "-Q", "chat,"], "-Q has an empty name"),
        (["-f", "-X", ""], "-X has an empty name"),
        (["-f", "-Q", "chta"], "did you mean 'chat'?"),
        (["-f", "-X", "chatt"], "did you mean 'chat'?"),
        (["-f", "-X", "ch*"], "-X takes no patterns"),
        (["-f", "-Q", "c*"], "-Q takes no patterns"),
        (["-f", "-X", "celery, chat"], "-X leaves no queue to purge"),
    ],
)
def test_purge_that_is_not_what_was_meant_erases_nothing(
    app: Callable[..., Celery], words: list[str], said: str
) -> None:
    project: Any = app(streams_queues=["chat"])
    project.send_task("t", queue="chat")
    project.send_task("t", queue="celery")  # on Celery's list

    result = run(project, *words)

    assert result.exit_code == EXIT_USAGE
    assert said in result.stderr
    assert queue_status(streams_of(project).broker, "chat").waiting == 1
    with project.connection_for_write() as connection:
        assert connection.default_channel.client.llen("celery") == 1
