"""Said: sentences for people that can be said again in another language, by whoever has a catalogue of the patterns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

__all__ = ("Said", "Value", "say")

#: What is filled in: text, a number, a sentence, or several of them.
Value = str | int | float | tuple["Said", ...]


class Said(str):
    """A sentence in English; one that :func:`say` did not make is a name or a command, the same in every language."""

    #: One pattern, or that for one and that for any other number ``n``; none when it is as it is in every language.
    patterns: tuple[str, ...] = ()
    values: Mapping[str, Value] = MappingProxyType({})

    def again(self, translate: Callable[[tuple[str, ...], int], str], number: Callable[[str], str] = str) -> str:
        """Return the sentence in the language of ``translate``, and what is filled in likewise.

        Args:
            translate: returns a pattern, of two that for the number, in that language.
            number: returns a number that is written as in English as that language writes it.
        """

        def shown(value: Value) -> str:
            if isinstance(value, tuple):
                return "; ".join(map(shown, value))
            if isinstance(value, Said):
                return value.again(translate, number)
            if isinstance(value, str):
                return value
            return number(f"{value:.2f}" if isinstance(value, float) else f"{value:,}")

        if not self.patterns:
            return str(self)
        count = self.values.get("n", 1)
        pattern = translate(self.patterns, count if isinstance(count, int) else 1)
        return pattern % {name: shown(value) for name, value in self.values.items()}


def say(*patterns: str, **values: Value) -> Said:
    """Return a sentence, with ``values`` at ``%(name)s``; of two patterns the first is for ``n == 1``.

    The patterns must stand there as they are, and in the dashboard's ``sentences``: a test compares these.
    """
    blank = Said()
    blank.patterns, blank.values = patterns, values
    said = Said(blank.again(lambda forms, n: forms[0] if n == 1 else forms[-1]))
    said.patterns, said.values = patterns, values
    return said
