"""What ``-A`` names: an app, or one line on what is wrong with the name, or the traceback of the project's own code."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from celery_streams.bin.app_name import load_app
from celery_streams.bin.root import celery_streams

GOOD = "from celery import Celery\napp = Celery('x', set_as_current=False)\n"

#: Makes a package with a ``celery.py`` of this source below the working directory, and returns its name.
MakePackage = Callable[..., str]

_numbers = itertools.count()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePackage:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(source: str = GOOD, **others: str) -> str:
        name = f"someproject{next(_numbers)}"
        (tmp_path / name).mkdir()
        for module, text in {"__init__": "", "celery": source, **others}.items():
            (tmp_path / name / f"{module}.py").write_text(text.replace("PROJECT", name))
        return name

    return make


def refused(name: str) -> str:
    with pytest.raises(click.UsageError) as caught:
        load_app(name)
    text = caught.value.message
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["{}", "{}.celery", "{}.celery:app", "{}.celery.app"])
def test_app_is_found_by_every_form_of_its_name(package: MakePackage, name: str) -> None:
    assert load_app(name.format(package())).main == "x"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "not the name of a module"),
        ("./{}", "did you mean -A {}?"),
        ("..{}", "did you mean -A {}?"),
        ("{}.", "did you mean -A {}?"),
        ("{}/celery.py", "did you mean -A {}.celery?"),
        ("{}.celery.py", "a name has no .py: -A {}.celery"),
        ("{}x", "there is no module '{}x' (looked in"),
        ("{}x", "did you mean '{}'?"),
        ("{}.celry", "did you mean 'celery'?"),
        ("{}.celery:ap", "module '{}.celery' has no attribute 'ap'; did you mean 'app'?"),
        ("{}.other", "no Celery app there"),
        ("{}.other:number", "that is no Celery app, but of type int"),
        ("{}.other:create_app", "that is the function create_app; name a module that calls it"),
    ],
)
def test_wrong_name_is_one_line_with_what_may_be_meant(package: MakePackage, name: str, said: str) -> None:
    made = package(other="number = 5\ndef create_app(): ...\n")

    assert said.format(made) in refused(name.format(made))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import nosuchpackage", "ModuleNotFoundError: No module named 'nosuchpackage'"),
        ("import PROJECT.nosuchmodule", "ModuleNotFoundError: No module named 'PROJECT.nosuchmodule'"),
        (f"{GOOD}app.no_such_method()", "AttributeError: 'Celery' object has no attribute 'no_such_method'"),
        ("import os\nos.environ['NO_SUCH_URL']", "KeyError: 'NO_SUCH_URL'"),
        ("from PROJECT.other import x", "most likely due to a circular import"),
        ("app = Celery(", "SyntaxError"),
    ],
)
@pytest.mark.parametrize("form", ["{}", "{}.celery", "{}.celery:app"])
def test_fault_of_the_project_is_shown_where_it_is_and_without_our_frames(
    package: MakePackage, source: str, error: str, form: str
) -> None:
    name = package(source, other="from PROJECT.celery import app")

    with pytest.raises(click.ClickException) as caught:
        load_app(form.format(name))

    text = caught.value.message
    assert not isinstance(caught.value, click.UsageError)
    assert error.replace("PROJECT", name) in text
    assert f"{name}/celery.py" in text
    assert "find_app" not in text
    assert "kombu" not in text
    assert "During handling" not in text


def test_what_a_fault_was_raised_from_is_shown(package: MakePackage) -> None:
    name = package("try:\n    int('x')\nexcept ValueError as exc:\n    raise RuntimeError('no port') from exc\n")

    with pytest.raises(click.ClickException) as caught:
        load_app(name)

    assert "ValueError: invalid literal" in caught.value.message
    assert "RuntimeError: no port" in caught.value.message


@pytest.mark.parametrize("words", [["status", "--help"], ["limits", "set", "--help"], ["limits", "reset", "--help"]])
@pytest.mark.parametrize("app", [None, "no_such_project"])
def test_help_is_there_without_an_app_and_with_a_wrong_one(
    words: list[str], app: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))

    done = CliRunner().invoke(celery_streams, words, env={"CELERY_APP": app}, auto_envvar_prefix="CELERY")

    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"Usage: celery-streams {' '.join(words[:-1])}")
