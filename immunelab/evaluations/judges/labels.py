"""Answers that are a label or end in a number: which one an answer gives, read strictly or charitably."""

from __future__ import annotations

import re
from collections.abc import Iterable

MARK = "####"  # GSM8K writes the final number after it
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
WORD = re.compile(r"[\w/'-]+")


def worked(reference: str) -> bool:
    """Whether a reference is a worked answer, which ends in a number after the mark."""
    return bool(NUMBER.search(reference.rpartition(MARK)[2])) if MARK in reference else False


def number(text: str, marked: bool) -> float | None:
    """The final number: the first one after the last mark; if `marked` is False and there is no mark, the last one.

    Separators of thousands are left out. None if there is no such number.
    """
    after = text.rpartition(MARK)[2] if MARK in text else ""
    found = NUMBER.findall(after)[:1] or ([] if marked or MARK in text else NUMBER.findall(text)[-1:])
    return float(found[0].replace(",", "")) if found else None


def words(text: str) -> str:
    """Text as lower-case words with a space on each side, so that labels are found only as whole words."""
    found = " ".join(word.strip("'-") for word in WORD.findall(text.lower()))
    return f" {found} "


def named(answer: str, labels: Iterable[str]) -> str | None:
    """The label that an answer names first (the longest, if several begin at the same word), or None."""
    said = words(answer)
    found = [(said.find(words(label)), -len(label), label) for label in labels if words(label) in said]
    return min(found)[2] if found else None
