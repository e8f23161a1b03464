"""A first `corpus.toml` for a data file that somebody has: which columns hold question and answer, by usual names."""

from __future__ import annotations

import json
from collections.abc import Sequence

from immunelab.corpus.adapters import ADAPTERS, Record
from immunelab.errors import UserError

CONVERSATIONS = ("messages", "conversations", "conversation")
QUESTIONS = ("prompt", "question", "instruction", "goal", "query", "input", "q", "text", "sentence")
ANSWERS = ("response", "answer", "output", "completion", "target", "chosen", "a", "label")
MORE = {"refusal": ("refusal", "rejected"), "category": ("category", "topic", "kind"), "split": ("split",)}
HARM = ("harm", "unsafe", "toxic", "attack", "forbid")  # in the name of a file


def source(file: str, records: Sequence[Record]) -> str:
    """A `[[source]]` table for a file; its stream is guessed from the file's name, and people have to look at it.

    A UserError names the columns if none of them is called as questions and answers usually are.
    """
    known = dict.fromkeys(str(key) for record in records for key in record)
    lines = ["[[source]]", f"file = {json.dumps(file)}"]
    named = [
        n for n, a in ADAPTERS.items() if n in ("beavertails", "ag-news") for c in a.columns if set(c) <= set(known)
    ]
    if named:
        return "\n".join([lines[0], f'adapter = "{named[0]}"', *lines[1:]])
    talk = next((c for c in CONVERSATIONS if c in known), "")
    answer = talk or next((c for c in ANSWERS if c in known), "")
    question = talk or next((c for c in QUESTIONS if c in known and c != answer), "")
    if answer == "chosen" and not question:
        question = answer  # both conversations of a preference begin with it
    if not (question and answer):
        raise UserError(
            f"No column of {file} is called as questions and answers usually are; it has {', '.join(known)}. Write a "
            'corpus.toml with prompt = "COLUMN" and response = "COLUMN" (docs/corpora.md).'
        )
    stream = "harmful" if any(word in file.lower() for word in HARM) or "rejected" in known else "benign"
    lines += [f'stream = "{stream}"', f"prompt = {json.dumps(question)}", f"response = {json.dumps(answer)}"]
    for key, names in MORE.items():
        column = next((c for c in names if c in known and c not in (question, answer)), "")
        if column and (key != "refusal" or stream == "harmful"):
            lines.append(f"{key} = {json.dumps(column)}")
    return "\n".join(lines)
