"""Public data sets by their published columns: each adapter turns one record into rows of the lab's streams.

Ids, columns and parts are those of the data sets' pages on the Hub. No text of any of them is in the repository.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Record = dict[str, Any]


class Draft(NamedTuple):
    """A row that has no split yet. The stream `refusal` holds safe answers to prompts of the stream `harmful`."""

    stream: str
    prompt: str
    response: str
    refusal: str = ""
    categories: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    split: str = ""
    source: str = ""


class Adapter(NamedTuple):
    """A public data set: its id, configuration and usual part on the Hub, the sets of columns with which its files go
    around (a record has all of one set), and what a record becomes."""

    dataset: str
    config: str
    part: str
    columns: tuple[tuple[str, ...], ...]
    rows: Callable[[Record], Iterator[Draft]]


def present(value: Any) -> bool:
    """Whether there is a value: null and NaN, which tables write for it, are none."""
    return value is not None and value == value


def truth(value: Any) -> bool:
    """True or false, in the spellings found in files; a ValueError for anything else."""
    known = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
    if str(value).strip().lower() not in known:
        raise ValueError(f"{value!r:.80} is neither true nor false")
    return known[str(value).strip().lower()]


def categories(value: Any) -> tuple[str, ...]:
    """A category, a list of them, or a table of true and false; the last two also as text, which CSV makes of them."""
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = ast.literal_eval(value.replace("true", "True").replace("false", "False"))
    if isinstance(value, dict):
        return tuple(str(name) for name, true in value.items() if present(true) and truth(true))
    if isinstance(value, list):
        return tuple(str(name) for name in value)
    return (str(value),) if present(value) and value != "" else ()


def label(value: Any, names: tuple[str, ...], first: int = 0) -> str | None:
    """The name of a label that is a number counted from `first`, a number as text, or the name; None for none (-1)."""
    text = str(value).strip()
    if text.lower() in (name.lower() for name in names):
        return next(name for name in names if name.lower() == text.lower())
    number = float(text) - first if present(value) else -1
    return names[int(number)] if number in range(len(names)) else None


def beavertails(record: Record) -> Iterator[Draft]:
    """An unsafe answer is harmful, in each category marked true; a safe one is a refusal of the same prompt.

    A record whose `is_safe` is null gives no row. `refusal`, as in beavertails_with_refusals, is the harmful row's own.
    """
    if present(record["is_safe"]):
        safe, named = truth(record["is_safe"]), categories(record["category"])
        own = "" if safe else record.get("refusal")
        yield Draft(
            "refusal" if safe else "harmful",
            record["prompt"],
            record["response"],
            str(own) if present(own) else "",
            categories=named,
        )


def alpaca(record: Record) -> Iterator[Draft]:
    """The question is instruction and input, if there is one, with a blank line between them."""
    more = record.get("input")
    question = "\n\n".join(filter(None, (record["instruction"], more if present(more) else "")))
    yield Draft("benign", question, record["output"], categories=("alpaca",))


def lima(record: Record) -> Iterator[Draft]:
    """The first question and its answer; conversations of one turn have no answer and are skipped."""
    exchange = first_exchange(record["conversations"])
    if exchange:
        yield Draft("benign", *exchange, categories=(str(record.get("source") or "lima"),))


def advbench(record: Record) -> Iterator[Draft]:
    """A harmful instruction and the opening of a compliant answer, which is not harmful by itself."""
    prompt = record["prompt"] if "prompt" in record else record["goal"]
    yield Draft("harmful", prompt, record["target"], categories=("advbench",))


def sst2(record: Record) -> Iterator[Draft]:
    """Sentiment as one word; rows without a label (-1 in the public test part) are skipped."""
    sentiment = label(record["label"], ("negative", "positive"))
    if sentiment:
        question = f"Is the sentiment of this sentence negative or positive?\n\n{record['sentence'].strip()}"
        yield Draft("benign", question, sentiment, categories=("sst2",))


TOPICS = ("World", "Sports", "Business", "Sci/Tech")  # of AG News, by label


def ag_news(record: Record) -> Iterator[Draft]:
    """The name of a news item's topic; the original files count classes from 1 and have title and description."""
    original = "Class Index" in record
    topic = label(record["Class Index"], TOPICS, first=1) if original else label(record["label"], TOPICS)
    text = f"{record['Title']} {record['Description']}" if original else record["text"]
    if topic:
        question = f"What is the topic of this news: World, Sports, Business or Sci/Tech?\n\n{text}"
        yield Draft("benign", question, topic, categories=("ag-news",))


def gsm8k(record: Record) -> Iterator[Draft]:
    """A worked answer; it is correct if it contains its last line, `#### number`."""
    last = record["answer"].strip().splitlines()[-1].lower()
    yield Draft("benign", record["question"], record["answer"], categories=("gsm8k",), facts=(last,))


ADAPTERS: dict[str, Adapter] = {
    "beavertails": Adapter(
        "PKU-Alignment/BeaverTails", "", "30k_train", (("prompt", "response", "category", "is_safe"),), beavertails
    ),
    "alpaca": Adapter("yahma/alpaca-cleaned", "", "train", (("instruction", "output"),), alpaca),
    "lima": Adapter("GAIR/lima", "", "train", (("conversations",),), lima),
    "advbench": Adapter("walledai/AdvBench", "", "train", (("prompt", "target"), ("goal", "target")), advbench),
    "sst2": Adapter("stanfordnlp/sst2", "", "train", (("sentence", "label"),), sst2),
    "ag-news": Adapter(
        "fancyzhx/ag_news", "", "train", (("text", "label"), ("Class Index", "Title", "Description")), ag_news
    ),
    "gsm8k": Adapter("openai/gsm8k", "main", "train", (("question", "answer"),), gsm8k),
}


# --- conversations: ShareGPT's `from` and `value`, the `role` and `content` of chat services, LIMA's bare list of turns

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant"}


def turns(value: Any) -> list[tuple[str, str]]:
    """(role, text) of each turn; the roles are user, assistant and whatever else stands there, such as system.

    A ValueError for what is no conversation.
    """
    if not isinstance(value, list):
        raise ValueError("a conversation is a list of turns")
    if value and all(isinstance(turn, str) for turn in value):
        return [("user" if i % 2 == 0 else "assistant", turn) for i, turn in enumerate(value)]
    found = []
    for turn in value:
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        if isinstance(content, list):  # in parts, of which those that are no text are left out
            content = "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and part.get("text"))
        if not isinstance(role, str) or not (content is None or isinstance(content, str)):
            raise ValueError("a turn of a conversation has role and content, or from and value")
        found.append((ROLES.get(role, role), content or ""))
    return found


def first_exchange(value: Any) -> tuple[str, str] | None:
    """The first question of a conversation and its answer; None if it has none."""
    said = turns(value)
    for (role, question), (other, answer) in itertools.pairwise(said):
        if role == "user" and other == "assistant":
            return question, answer
    return None


def last_of(value: Any, role: str) -> str:
    """What a role says last in a conversation; "" if nothing."""
    return next((text for who, text in reversed(turns(value)) if who == role), "")
