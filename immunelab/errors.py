"""Two kinds of failure: what the user can mend (`UserError`, one sentence, exit code 2) and bugs (everything else)."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: says what was wrong, what was received, and what would work."""


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not registered, with near matches."""
    choices, name = sorted(known), str(name)[:200]
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    some = ", ".join(choices[:20] + ["…"] * (len(choices) > 20)) or "none"
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Known: {some}."
    return UserError(f"There is no {what} called {name!r}. {hint}")


def hub_reason(error: BaseException, name: str, under: str = "") -> str:
    """Why the Hugging Face Hub did not give a model, or (`under` is `datasets/`) a data set: a sentence with the fix.

    Empty if the error, or what it came from, is not about reaching the Hub. Told by the names of the errors, so that
    no library has to be imported for it.
    """
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        at = at.__cause__ or at.__context__
    kinds = {kind.__name__ for one in seen for kind in type(one).__mro__}
    text = " ".join(str(one).lower() for one in seen)
    page = f"https://huggingface.co/{under}{name}"
    if "GatedRepoError" in kinds or re.search(r"\bgated (repo|dataset|model)", text):
        return f"it is gated: accept its terms at {page}, then log in with `hf auth login`, or set HF_TOKEN."
    if "RepositoryNotFoundError" in kinds or "HFValidationError" in kinds:
        return (
            f"the Hub knows no such id, or it is private ({page}): check the spelling, or log in with `hf auth login`."
        )
    unreachable = {"ConnectionError", "ConnectError", "ConnectTimeout", "LocalEntryNotFoundError", "ProxyError"}
    missed = kinds & unreachable or "couldn't connect" in text or "couldn't reach" in text
    if "OfflineModeIsEnabled" in kinds or (missed and os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")):
        return (
            "the Hub is switched off by HF_HUB_OFFLINE, and it is not in the cache: unset that, or name a local copy."
        )
    if missed:
        return "this machine can't reach huggingface.co, and it is not in the cache: get a copy, and name that."
    if "DatasetNotFoundError" in kinds:
        return f"the Hub knows no such data set, or it is private ({page}): check the spelling."
    return ""
