"""The scripts as they are put together: what each needs stands in front of it, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from celery_streams import scripts

ROOT = Path(__file__).parents[2]
LUA = ROOT / "celery_streams" / "lua"
VERBS = sorted(path.stem for path in LUA.glob("*.lua"))
PRELUDE = sorted(path.stem for path in (LUA / "prelude").glob("*.lua"))


def used(text: str) -> set[str]:
    code = re.sub(r"--.*", "", text)
    return {name for name in PRELUDE if re.search(rf"(?<![\w.]){name}\(|pcall\({name},", code)}


def needed(text: str) -> set[str]:
    return {name for line in re.findall(r"^-- Needs +(.+)$", text, re.MULTILINE) for name in line.split(", ")}


@pytest.mark.parametrize("path", [*LUA.rglob("*.lua")], ids=lambda path: path.stem)
def test_script_names_what_it_uses_of_the_prelude_and_no_more(path: Path) -> None:
    text = path.read_text()

    assert needed(text) == used(text) - ({path.stem} if path.parent.name == "prelude" else set())


@pytest.mark.parametrize("verb", VERBS)
def test_each_function_stands_once_and_in_front_of_those_that_need_it(verb: str) -> None:
    text = scripts.load(verb).text
    uses = used(re.sub(r"local function \w+", "", text))

    for name in PRELUDE:
        assert text.count(f"local function {name}(") == (name in uses)
        if name in uses:
            assert text.index(f"local function {name}(") < min(
                found.start() for found in re.finditer(rf"(?<!function )(?<![\w.]){name}\(|pcall\({name},", text)
            )


@pytest.mark.parametrize("verb", ["ack", "read", "extend"])
def test_what_runs_for_each_message_has_nothing_in_front(verb: str) -> None:
    assert scripts.load(verb).text == (LUA / f"{verb}.lua").read_text()


@pytest.mark.parametrize("name", PRELUDE)
def test_file_of_the_prelude_is_one_function_of_its_name(name: str) -> None:
    assert re.findall(
        r"^(?!--|    |end$)(.*)$", (LUA / "prelude" / f"{name}.lua").read_text().strip(), re.MULTILINE
    ) == [f"local function {name}({signature(name)})"]


def signature(name: str) -> str:
    match = re.search(rf"local function {name}\((.*)\)$", (LUA / "prelude" / f"{name}.lua").read_text(), re.MULTILINE)
    assert match is not None
    return match[1]


@pytest.mark.skipif(shutil.which("luacheck") is None, reason="luacheck is not installed")
def test_luacheck_finds_nothing() -> None:
    ended = subprocess.run(["luacheck", "--quiet", "celery_streams/lua"], cwd=ROOT, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stdout
