"""The chat, started once for the tests of this folder in a test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.chat_site import Chat, Person


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    """The chat, which runs."""
    running = Chat(tmp_path_factory.mktemp("chat")).start()
    yield running
    running.stop()


@pytest.fixture
def ana(chat: Chat) -> Iterator[Person]:
    """Ana, who may do everything; the API works when she comes, and when she leaves."""
    person = chat.person("ana")
    person.switch("works")
    yield person
    person.switch("works")
