"""MIGRATION.md names whatever Celery has: its settings and the options of its worker."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from celery.app.defaults import NAMESPACES, flatten
from celery.bin.worker import worker as celery_worker

from celery_streams import scripts
from celery_streams.bin.worker import worker
from celery_streams.worker.program import NO_EFFECT

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "MIGRATION.md").read_text()

#: Heading of a table of settings -> what begins after it.
SETTINGS = {
    "**Same meaning.**": "**Different.**",
    "**Different.**": "**Without effect.**",
    "**Without effect.**": "## ",
}

#: Scripts of `migrate` and `adopt`, which also need the commands of lists.
OF_LISTS = {"adopt", "arrive", "depart", "forget_tags", "peek", "recall", "surrender", "undelay"}

VERBS = {path.stem for path in (Path(scripts.__file__).parent / "lua").glob("*.lua")}

#: Longest name -> option; Celery's, and those that we add.
OPTIONS = {max(param.opts, key=len): param for param in (*worker.params, *celery_worker.params)}


def between(start: str, end: str) -> str:
    """Return the part of the guide between two lines, of which ``end`` is the first after ``start``."""
    return GUIDE.split(f"\n{start}", 1)[1].split(f"\n{end}", 1)[0]


def first_column(text: str) -> list[str]:
    """Return what the first cells of a part's tables name."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def named(setting: str, names: list[str]) -> int:
    """Return how often ``names``, of which some end with a star, name a setting."""
    return sum(setting.startswith(name[:-1]) if name.endswith("_*") else setting == name for name in names)


@pytest.mark.parametrize("setting", sorted(name for name, _ in flatten(NAMESPACES)))
def test_each_setting_of_celery_stands_in_one_table_of_the_guide(setting: str) -> None:
    tables = [heading for heading, end in SETTINGS.items() if named(setting, first_column(between(heading, end)))]

    assert len(tables) == 1


def test_settings_that_the_banner_names_are_those_without_effect_in_the_guide() -> None:
    names = first_column(between("**Without effect.**", SETTINGS["**Without effect.**"]))

    assert sorted(names) == sorted(NO_EFFECT)


@pytest.mark.parametrize("param", OPTIONS.values(), ids=OPTIONS)
def test_each_option_of_the_worker_stands_in_the_guide(param: click.Parameter) -> None:
    names = {name.split()[0] for name in first_column(between("## Options of the worker", "## "))}

    assert names & set(param.opts)


def test_log_lines_that_the_troubleshooting_quotes_are_said() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "celery_streams").rglob("*.py"))
    quoted = [
        line
        for row in between("## Troubleshooting", "## ").splitlines()
        if "the log:" in row
        for line in re.findall(r'"([^"]+)"', row.split("|")[2])
    ]

    assert quoted
    assert [line for line in quoted if line not in code] == []


def test_contents_of_the_guide_lead_to_its_parts() -> None:
    parts = {re.sub(r"[^\w -]", "", part.lower()).replace(" ", "-") for part in re.findall(r"^## (.+)$", GUIDE, re.M)}
    linked = re.findall(r"\]\(#([^)]+)\)", GUIDE.split("\n## ", 1)[0])

    assert [link for link in linked if link not in parts] == []


@pytest.mark.parametrize("verb", sorted(VERBS - OF_LISTS))
def test_each_command_of_a_script_is_permitted_by_the_acl_line_of_the_guide(verb: str) -> None:
    (line,) = re.findall(r"^ACL SETUSER streams on >PASSWORD (.+)$", GUIDE, re.MULTILINE)
    permitted = {word[1:].partition("|")[0] for word in line.split() if word.startswith("+")}

    said = re.findall(r"(?:redis\.p?call|look)\(\s*'([A-Z]+)'", scripts.load(verb).text)

    assert {name.lower() for name in said} <= permitted
