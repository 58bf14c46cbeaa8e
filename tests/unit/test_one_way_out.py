"""Who may settle a message: one object, by one decision."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import celery_streams

PACKAGE = Path(celery_streams.__file__).parent

#: What takes a message off its stream, or puts it elsewhere, in the broker.
VERBS = {"ack", "ack_command", "put_back", "put_back_all", "requeue", "retry", "reject"}

#: Functions that do so, too: they need more keys than those of the entry's stream.
FUNCTIONS = {"admit", "give_back", "hand_over", "store_retry"}

SETTLER = PACKAGE / "worker" / "settle.py"


def calls(path: Path) -> list[str]:
    """Return the settle verbs that a module calls, on a broker or as functions, with their lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.func.id}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in VERBS:
            owner = ast.unparse(node.func.value)
            if owner.lower().endswith("broker"):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {owner}.{node.func.attr}")
    return found


def test_only_the_settler_calls_the_settle_verbs_of_the_broker() -> None:
    elsewhere = [call for path in PACKAGE.rglob("*.py") if path != SETTLER for call in calls(path)]

    assert [call for call in elsewhere if not call.startswith("broker.py:")] == []
    assert len(calls(SETTLER)) >= len(VERBS) + len(FUNCTIONS)


def test_neither_path_of_a_message_knows_the_other_or_the_executor() -> None:
    around = {"executor", "fast_path", "slow_path", "inline_request"}
    known = {name: _imports(PACKAGE / "worker" / f"{name}.py") & around for name in around}

    assert known == {
        "executor": {"fast_path", "slow_path"},
        "fast_path": set(),
        "slow_path": {"inline_request"},
        "inline_request": set(),
    }


def test_only_who_reads_the_replies_of_redis_looks_at_the_words_of_its_errors() -> None:
    readers = {PACKAGE / "redis_errors.py", PACKAGE / "cluster_nodes.py"}
    words = re.compile(
        r"^-?(NO(GROUP|PERM|SCRIPT|AUTH)|BUSY(GROUP)?|WRONG(TYPE|PASS)|READONLY|LOADING|OOM|MOVED|ASK)\b"
    )
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value[:40]}"
        for path in PACKAGE.rglob("*.py")
        if path not in readers
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and words.match(node.value)
    ]

    assert found == []


def test_no_two_modules_import_each_other_not_even_inside_functions_or_for_types() -> None:
    modules = {path: _module(path) for path in PACKAGE.rglob("*.py")}
    names = set(modules.values())
    needs = {name: _absolute_imports(path, name) & names - {name} for path, name in modules.items()}

    rings = [path for name in sorted(needs) if (path := _way(needs, name, name))]

    assert rings == []


def _way(needs: dict[str, set[str]], start: str, goal: str) -> list[str]:
    """Return a way of imports from ``start`` back to ``goal``; empty when there is none."""
    seen: set[str] = set()
    queue = [[start]]
    while queue:
        way = queue.pop(0)
        for name in needs[way[-1]]:
            if name == goal:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                queue.append([*way, name])
    return []


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _absolute_imports(path: Path, name: str) -> set[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package
            for _ in range(node.level - 1):
                base = base.rpartition(".")[0]
            source = ".".join(filter(None, (base if node.level else "", node.module)))
            # A package is needed for its own sake only when a name of it, and not a module in it, is taken.
            found |= {f"{source}.{one.name}" for one in node.names}
            if not any(
                (PACKAGE.parent / Path(*f"{source}.{one.name}".split("."))).with_suffix(".py").exists()
                or (PACKAGE.parent / Path(*f"{source}.{one.name}".split("."))).is_dir()
                for one in node.names
            ):
                found.add(source)
    return found


def _imports(path: Path) -> set[str]:
    return {
        (node.module or "").rpartition(".")[2]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
    }
