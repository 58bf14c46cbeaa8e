"""The words of -Q."""

from __future__ import annotations

import click
import pytest

from celery_streams.bin.queue_names import read_queue_words


def read(*words, existing=()):
    return read_queue_words(words, lambda: set(existing))


def test_names_and_numbers_of_children_are_parted():
    found = read("send_message:3", "mark_as_read", " spaced ", "with:colon", "q:²", "a:b:2")

    assert found.names == ("send_message", "mark_as_read", "spaced", "with:colon", "q:²", "a:b")
    assert found.counts == {"send_message": 3, "a:b": 2}
    assert found.literal == frozenset()


def test_no_words_mean_no_names():
    assert read_queue_words(None, set).names == ()


@pytest.mark.parametrize(
    "word",
    [
        *("send_message:0", "send_message:00", "send_message:-2", "send_message:+2", "send_message:2.5"),
        *(":x", ":3", "x:", ":", "", " ", "chat.*:2", "jobs[12]:2"),
        *("a:2:3", "a:0:3", "a:2:0", "a::3", "::", ":::", ":a:2", "a:b:2:3", "a:-1:3", "tenant:42:3", "chat.*:2:3"),
    ],
)
def test_word_that_means_nothing_is_refused_in_one_line(word):
    with pytest.raises(click.UsageError) as refused:
        read("fine", word)

    assert "-Q" in refused.value.message
    assert "\n" not in refused.value.message


def test_two_numbers_of_children_for_one_queue_contradict_each_other():
    assert read("a:2", "a:2").counts == {"a": 2}
    with pytest.raises(click.UsageError, match="queue a both 2 and 3 children"):
        read("a:2", "a:3")


@pytest.mark.parametrize(
    ("word", "name", "count", "literal"),
    [
        (r"tenant\:42", "tenant:42", None, True),
        (r"tenant\:42:3", "tenant:42", 3, True),
        (r"tenant\:42\:3", "tenant:42:3", None, True),
        (r"\:a:2", ":a", 2, True),
        (r"a\::2", "a:", 2, True),
        ("eu:tenant:3", "eu:tenant", 3, False),
        (r"\:x", ":x", None, True),
        (r"x\:", "x:", None, True),
        (r"jobs\[1\]", "jobs[1]", None, True),
        (r"jobs\[1\]:2", "jobs[1]", 2, True),
        (r"what\?", "what?", None, True),
        (r"a\\b", r"a\b", None, True),
        (r"domain\user", r"domain\user", None, False),
        (r"\*.[ab]*", "[*].[ab]*", None, False),
    ],
)
def test_backslash_takes_away_the_meaning_of_what_follows(word, name, count, literal):
    found = read(word)

    assert (found.names, found.counts.get(name), name in found.literal) == ((name,), count, literal)


@pytest.mark.parametrize("word", ["tenant:42", "jobs[1]", ":x", "x:", "send_message:0", "a*", r"back\slash"])
def test_queue_that_exists_is_meant_whatever_its_name_looks_like(word):
    found = read(word, existing={word, "tenant", "jobs1"})

    assert (found.names, found.counts, found.literal) == ((word,), {}, {word})


@pytest.mark.parametrize("name", ["tenant:42", "a:", ":a", "a:b:0"])
def test_queue_that_exists_takes_a_number_of_children_too(name):
    found = read(f"{name}:3", existing={name})

    assert (found.names, found.counts) == ((name,), {name: 3})


@pytest.mark.parametrize("word", ["a: 2", "a :2", " a : 2 "])
def test_spaces_around_the_colon_mean_nothing(word):
    found = read(word)

    assert (found.names, found.counts) == (("a",), {"a": 2})


def test_existing_queues_are_not_asked_for_plain_names():
    def ask():
        raise AssertionError("asked")

    assert read_queue_words(["a", "b-c.d"], ask).names == ("a", "b-c.d")
