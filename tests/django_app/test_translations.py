"""Translations of the dashboard: complete, compiled, and with the same placeholders."""

from __future__ import annotations

import gettext
import re
from pathlib import Path

import pytest
from celery import Celery
from django.test import Client

ROOT = Path(__file__).resolve().parent.parent.parent / "django_integration"

LOCALES = sorted(path.name for path in (ROOT / "locale").iterdir())


def entries(locale: str) -> list[dict[str, str]]:
    """Return the entries of a catalogue: the parts of each, and its comments under ``#``."""
    found = []
    text = (ROOT / "locale" / locale / "LC_MESSAGES" / "django.po").read_text(encoding="utf-8")
    for block in text.split("\n\n"):
        entry: dict[str, str] = {"#": "\n".join(re.findall(r"^#.*$", block, flags=re.MULTILINE))}
        for name, value in re.findall(r'^(msg\S+) ((?:".*"\n?)+)', block, flags=re.MULTILINE):
            entry[name] = "".join(re.findall(r'"(.*)"', value))
        if entry.get("msgid"):
            found.append(entry)
    return found


def test_portuguese_is_there() -> None:
    assert "pt_BR" in LOCALES


@pytest.mark.parametrize("locale", LOCALES)
def test_nothing_is_left_out_or_fuzzy_and_placeholders_are_the_same(locale: str) -> None:
    for entry in entries(locale):
        assert "fuzzy" not in entry["#"], entry
        translated = {name: text for name, text in entry.items() if name.startswith("msgstr")}
        assert translated
        for text in translated.values():
            assert text, entry
            assert sorted(re.findall(r"%\(\w+\)s", text)) == sorted(re.findall(r"%\(\w+\)s", entry["msgid"])), entry


@pytest.mark.parametrize("locale", LOCALES)
def test_compiled_catalogue_says_what_the_source_says(locale: str) -> None:
    with (ROOT / "locale" / locale / "LC_MESSAGES" / "django.mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)

    for entry in entries(locale):
        source = entry["msgid"].replace('\\"', '"').replace("\\n", "\n")
        wanted = (entry.get("msgstr") or entry["msgstr[0]"]).replace('\\"', '"').replace("\\n", "\n")
        shown = compiled.ngettext(source, "", 1) if "msgid_plural" in entry else compiled.gettext(source)
        assert shown == wanted


def test_every_text_of_the_pages_is_in_the_catalogue() -> None:
    texts: set[str] = set()
    for path in ROOT.rglob("*.html"):
        source = path.read_text(encoding="utf-8")
        texts.update(re.findall(r"""\{% translate ["'](.*?)["'] %\}""", source))
    for path in ROOT.rglob("*.py"):
        texts.update(re.findall(r"""\b_\(\s*"(.*?)"\s*\)""", path.read_text(encoding="utf-8")))
    known = {entry["msgid"] for entry in entries("pt_BR")}

    assert len(texts) > 100
    assert texts - known == set()


def test_page_is_shown_in_portuguese(site: Celery) -> None:
    from django.contrib.auth.models import User

    client = Client()
    client.force_login(User.objects.create(username="root", is_staff=True, is_superuser=True))

    page = client.get("/queues/dead/", headers={"Accept-Language": "pt-br"}).content.decode()

    assert '<html lang="pt-br">' in page
    assert "Mensagens mortas" in page
    assert "Nenhuma mensagem morta." in page
