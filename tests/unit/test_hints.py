"""Commands in logs and findings work as they are printed."""

from __future__ import annotations

import pytest

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
