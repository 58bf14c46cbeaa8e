"""The module ``random`` belongs to the tasks: what is drawn from it behind their back changes what a seed gives."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import celery_streams
from celery_streams.conf import QueueChoice

FOLDER = Path(celery_streams.__file__).parent


def _draws(path: Path) -> list[str]:
    """Return the uses of the generator that the whole process shares."""
    tree = ast.parse(path.read_text())
    shared = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
    ]
    return [f"{path.name}:{node.lineno}: random.{node.attr}" for node in shared if node.attr != "SystemRandom"]


def test_nothing_of_ours_draws_from_the_generator_that_tasks_may_seed() -> None:
    assert [draw for path in FOLDER.rglob("*.py") for draw in _draws(path)] == []


def test_share_of_a_queue_leaves_a_seeded_application_its_numbers() -> None:
    choice = QueueChoice.parse({"q": 0.5})
    random.seed(1)
    expected = random.random()

    random.seed(1)
    drawn = {choice.draw("q") for _ in range(200)}

    assert random.random() == expected
    assert drawn == {True, False}
