"""Answers that are a label or end in a number: which one an answer gives, read strictly or charitably."""

from __future__ import annotations

import re
from collections.abc import Iterable

import regex

from immunelab.evaluations.judges.wording import SPACED

MARK = "####"  # GSM8K writes the final number after it
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
DIGITS = re.compile(r"\+?(\d.*)", re.DOTALL)


def worked(reference: str) -> bool:
    """Whether a reference is a worked answer, which ends in a number after the mark."""
    return bool(NUMBER.search(reference.rpartition(MARK)[2])) if MARK in reference else False


def number(text: str, marked: bool) -> float | None:
    """The final number: the first one after the last mark; if `marked` is False and there is no mark, the last one.

    Separators of thousands are left out. None if there is no such number.
    """
    text = plain(text)
    after = text.rpartition(MARK)[2] if MARK in text else ""
    found = NUMBER.findall(after)[:1] or ([] if marked or MARK in text else NUMBER.findall(text)[-1:])
    return float(found[0].replace(",", "")) if found else None


def plain(text: str) -> str:
    """Text in lower case with single spaces and the keyboard's minus sign."""
    return " ".join(text.lower().replace("\u2212", "-").split())


def named(answer: str, labels: Iterable[str]) -> str | None:
    """The label that an answer names first (the longest, if several begin at the same place), or None.

    A label is found as a whole word only, with its signs: neither "C" in "C++" nor "1" in "-1", while "1" and "+1" are
    the same. In scripts without spaces it is found anywhere.
    """
    text, found = plain(answer), []
    for label in labels:
        place = _pattern(plain(label)).search(text) if plain(label) else None
        if place:
            found.append((place.start(), -len(label), label))
    return min(found)[2] if found else None


def _pattern(label: str) -> regex.Pattern[str]:
    """Where a label stands as a word of its own."""
    number = DIGITS.fullmatch(label)
    core = rf"\+?{regex.escape(number[1])}" if number else regex.escape(label)
    inside = rf"(?<!{SPACED})(?<!{SPACED}[-/'])"  # the end of a longer word, or of one with a hyphen
    before = inside if regex.match(SPACED, label, regex.V1) or number else ""
    before += r"(?<![-+.,\d])" if number else ""
    before += rf"(?<![{SPACED}+-])" if label[0] in "+-" and not number else ""
    after = rf"(?!{SPACED})(?![-/']{SPACED})(?![+#])" if regex.match(SPACED, label[-1], regex.V1) else ""
    after += r"(?![.,]\d)" if label[-1].isdigit() else ""
    after += rf"(?!{SPACED})(?![{regex.escape(label[-1])}])" if label[-1] in "+-#%" else ""
    return regex.compile(before + core + after, regex.V1)
