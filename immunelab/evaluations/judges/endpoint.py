"""A chat model behind an OpenAI-compatible address: the one place where the lab sends anything to a service.

Nothing is sent unless the user has agreed twice: the corpus (or the run) names the address, and the environment
variable IMMUNELAB_JUDGE_URL names the same one, because a corpus may come from anyone. A key is read from
IMMUNELAB_JUDGE_KEY only; it is sent to that address, over https or to this machine, and never written anywhere.
Redirects are not followed, and no other credentials of this machine are sent.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2

from immunelab.errors import UserError
from immunelab.runs.status import replace_file

ALLOWED, KEY = "IMMUNELAB_JUDGE_URL", "IMMUNELAB_JUDGE_KEY"
TRIES = 6  # for one question, before the run fails
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # status codes after which it is worth asking again
LONGEST_WAIT = 60.0  # seconds between two tries
LARGEST_REPLY = 1 << 20  # bytes

Messages = list[dict[str, str]]


class Reply(NamedTuple):
    """The model's text, the tokens it read and wrote as the service counts them, and whether it was asked just now."""

    text: str
    read: int
    written: int
    fresh: bool


class Endpoint:
    """One model at one address with fixed settings; each question is asked once, and its reply kept in `cache`."""

    def __init__(self, url: str, settings: dict[str, Any], cache: Path | None, patience: float, at_once: int) -> None:
        self.url, self.settings, self.cache = address(url), settings, cache
        self.patience, self.at_once = patience, at_once
        self.asked = 0
        self.sleep: Callable[[float], None] = time.sleep

    def replies(self, questions: Sequence[Messages], most: int) -> list[Reply]:
        """A reply to each question, in order; equal ones share it. A UserError if it would take more than `most` calls
        since this was made, before anything is sent, or if the service does not answer."""
        keys = [self._key(question) for question in questions]
        known = {key: reply for key in dict.fromkeys(keys) if (reply := self._kept(key))}
        missing = {key: q for key, q in zip(keys, questions, strict=True) if key not in known}
        if self.asked + len(missing) > most:
            raise UserError(
                f"Judging would take {len(missing)} calls of {self.url} now, and of the {most} that a run may make "
                f"{self.asked} are made: raise calls, evaluate at fewer steps, or lower test_rows. Nothing was sent."
            )
        if missing:
            key = key_for(self.url)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            with (
                # No proxy stands between this machine and itself, and a key would pass it unencrypted.
                httpx2.Client(headers=headers, timeout=self.patience, trust_env=not _here(self.url)) as client,
                ThreadPoolExecutor(self.at_once) as pool,
            ):
                failed: list[UserError] = []
                futures = {k: pool.submit(self._ask, client, k, q, failed) for k, q in missing.items()}
                try:
                    known |= {k: future.result() for k, future in futures.items()}
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            self.asked += len(missing)
        found, told = [], set()
        for k in keys:
            found.append(known[k] if k not in told else known[k]._replace(fresh=False))
            told.add(k)
        return found

    def _ask(self, client: httpx2.Client, key: str, question: Messages, failed: list[UserError]) -> Reply:
        """Ask one question and keep its reply; once one question has `failed`, no more are sent."""
        try:
            reply = self._answered(client, question, failed)
        except UserError as error:
            failed.append(error)
            raise
        self._keep(key, reply)
        return reply

    def _answered(self, client: httpx2.Client, question: Messages, failed: list[UserError]) -> Reply:
        """The reply to one question; it is sent again while the service is busy."""
        said = ""
        for attempt in range(TRIES):
            if failed:
                raise failed[0]
            try:
                answer = client.post(f"{self.url}/chat/completions", json={**self.settings, "messages": question})
            except httpx2.InvalidURL as error:
                raise UserError(f"The address of the judge, {self.url}, is none: {error}.") from None
            except httpx2.RequestError as error:
                said, wait = f"no answer ({type(error).__name__})", ""
            else:
                if answer.status_code == 200:
                    return _read(answer, self.url)
                said = f"status {answer.status_code} ({self._quoted(answer)})"
                if answer.status_code not in BUSY:
                    raise UserError(f"The judge at {self.url} refuses: {said}. {_hint(answer.status_code)}")
                wait = answer.headers.get("retry-after", "")
            if attempt + 1 < TRIES:
                self.sleep(_seconds(wait, attempt))
        raise UserError(
            f"The judge at {self.url} did not answer in {TRIES} tries; the last one got {said}. Resume the run when it "
            "is back: what was judged so far is kept and costs nothing again."
        )

    def _quoted(self, answer: httpx2.Response) -> str:
        """The start of what a service said, without the key, in case it repeats it."""
        key = os.environ.get(KEY, "").strip()
        text = " ".join(answer.text.split())
        return (text.replace(key, "…") if key else text)[:200]

    def _key(self, question: Messages) -> str:
        asked = json.dumps([self.url, self.settings, question], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:32]

    def _kept(self, key: str) -> Reply | None:
        try:
            data = json.loads((self.cache / f"{key}.json").read_text(encoding="utf-8")) if self.cache else None
            return Reply(str(data["text"]), int(data["read"]), int(data["written"]), False) if data else None
        except (OSError, ValueError, TypeError, KeyError):
            return None  # missing or damaged, so it will be asked again

    def _keep(self, key: str, reply: Reply) -> None:
        if self.cache:
            self.cache.mkdir(parents=True, exist_ok=True)
            kept = {"text": reply.text, "read": reply.read, "written": reply.written}
            replace_file(self.cache / f"{key}.json", json.dumps(kept))


def address(url: str) -> str:
    """An address up to its path; a UserError if it is not an address, or holds a name, a password or a key."""
    example = "such as http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port  # parsed only when read, and may be invalid
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"The address of a judge starts with http:// or https://, {example}, and got {url!r:.200}.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(f"The address of a judge holds no name, password or key: put the key into {KEY}.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def allowed(url: str) -> None:
    """A UserError unless the environment names this same address, and a key, if there is one, may be sent there."""
    wanted, given = address(url), os.environ.get(ALLOWED, "").strip()
    if not given:
        raise UserError(
            f"The judge at {wanted} gets every held-out harmful question with the model's answer, and nothing is sent "
            f"until you allow it: export {ALLOWED}={wanted}, and {KEY}=… if it needs a key."
        )
    if address(given) != wanted:
        raise UserError(
            f"The judge is to be asked at {wanted}, and {ALLOWED} allows {address(given)}: make them equal."
        )
    key_for(wanted)


def key_for(url: str) -> str:
    """The key for an address, or an empty text; a UserError if it would be sent unencrypted."""
    key = os.environ.get(KEY, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY} holds characters that no key has: set it again.")
    if key and urlsplit(url).scheme == "http" and not _here(url):
        raise UserError(f"A key goes to {url} only over https: use https://, or unset {KEY} if it needs none.")
    return key


def _here(url: str) -> bool:
    """Whether an address is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _seconds(asked: str, attempt: int) -> float:
    """How long to wait: as the service asks, else 1, 2, 4, … seconds; never more than a minute."""
    try:
        wished = float(asked)
    except ValueError:
        wished = 2.0**attempt
    return min(max(wished, 0.0), LONGEST_WAIT) if wished == wished else 1.0


def _hint(status: int) -> str:
    if status in (401, 403):
        return f"Check {KEY}."
    if status == 404:
        return "Check the address (it ends before /chat/completions) and the name of the model."
    if 300 <= status < 400:
        return "It points to another address; name that one, if you trust it."
    return "Check the model and its settings."


def _read(answer: httpx2.Response, url: str) -> Reply:
    """The reply in a service's JSON; a UserError if this is no OpenAI-compatible service."""
    try:
        if len(answer.content) > LARGEST_REPLY:
            raise ValueError("it is longer than 1 MB")
        data = answer.json()
        usage = data.get("usage") or {}
        text = data["choices"][0]["message"]["content"]
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return Reply(str(text or ""), tokens[0], tokens[1], True)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(
            f"What answers at {url} is no OpenAI-compatible chat service ({type(error).__name__}: {error!s:.100})."
        ) from None
