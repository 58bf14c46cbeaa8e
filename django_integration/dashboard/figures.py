"""Figures: numbers as people of the page's language write them; 1,461 is no thousand to who writes 1.461."""

from __future__ import annotations

from django.utils.formats import get_format

__all__ = ("localized",)


def localized(number: str) -> str:
    """Return a number that is written as in English (``1,461.5``) as the language of the page writes it."""
    marks = {",": get_format("THOUSAND_SEPARATOR"), ".": get_format("DECIMAL_SEPARATOR")}
    return "".join(marks.get(one, one) for one in number)
