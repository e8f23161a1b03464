"""Public data sets by their published columns: each adapter turns one record into rows of the lab's streams.

Ids, columns and parts are those of the data sets' pages on the Hub. No text of any of them is in the repository.
"""

from __future__ import annotations

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
    """A public data set: its id, configuration and usual part on the Hub, its columns, and what a record becomes."""

    dataset: str
    config: str
    part: str
    columns: tuple[str, ...]
    rows: Callable[[Record], Iterator[Draft]]


def beavertails(record: Record) -> Iterator[Draft]:
    """An unsafe answer is harmful, in each category marked true; a safe one is a refusal of the same prompt."""
    named = tuple(name for name, true in record["category"].items() if true)
    safe = bool(record["is_safe"])
    yield Draft("refusal" if safe else "harmful", record["prompt"], record["response"], categories=named)


def alpaca(record: Record) -> Iterator[Draft]:
    """The question is instruction and input, with a blank line between them."""
    question = "\n\n".join(filter(None, (record["instruction"], record["input"])))
    yield Draft("benign", question, record["output"], categories=("alpaca",))


def lima(record: Record) -> Iterator[Draft]:
    """The first question and its answer; conversations of one turn have no answer and are skipped."""
    if len(record["conversations"]) > 1:
        question, answer, *_ = record["conversations"]
        yield Draft("benign", question, answer, categories=(record["source"],))


def advbench(record: Record) -> Iterator[Draft]:
    """A harmful instruction and the opening of a compliant answer, which is not harmful by itself."""
    yield Draft("harmful", record["prompt"], record["target"], categories=("advbench",))


def sst2(record: Record) -> Iterator[Draft]:
    """Sentiment as one word; rows without a label (-1 in the public test part) are skipped."""
    if record["label"] in (0, 1):
        question = f"Is the sentiment of this sentence negative or positive?\n\n{record['sentence'].strip()}"
        yield Draft("benign", question, ("negative", "positive")[record["label"]], categories=("sst2",))


TOPICS = ("World", "Sports", "Business", "Sci/Tech")  # of AG News, by label


def ag_news(record: Record) -> Iterator[Draft]:
    """The name of a news item's topic."""
    question = f"What is the topic of this news: World, Sports, Business or Sci/Tech?\n\n{record['text']}"
    yield Draft("benign", question, TOPICS[record["label"]], categories=("ag-news",))


def gsm8k(record: Record) -> Iterator[Draft]:
    """A worked answer; it is correct if it contains its last line, `#### number`."""
    last = record["answer"].strip().splitlines()[-1].lower()
    yield Draft("benign", record["question"], record["answer"], categories=("gsm8k",), facts=(last,))


ADAPTERS: dict[str, Adapter] = {
    "beavertails": Adapter(
        "PKU-Alignment/BeaverTails", "", "30k_train", ("prompt", "response", "category", "is_safe"), beavertails
    ),
    "alpaca": Adapter("yahma/alpaca-cleaned", "", "train", ("instruction", "input", "output"), alpaca),
    "lima": Adapter("GAIR/lima", "", "train", ("conversations", "source"), lima),
    "advbench": Adapter("walledai/AdvBench", "", "train", ("prompt", "target"), advbench),
    "sst2": Adapter("stanfordnlp/sst2", "", "train", ("sentence", "label"), sst2),
    "ag-news": Adapter("fancyzhx/ag_news", "", "train", ("text", "label"), ag_news),
    "gsm8k": Adapter("openai/gsm8k", "main", "train", ("question", "answer"), gsm8k),
}
