"""Asking a language model in words: the subject itself, a model in a folder, or any OpenAI-compatible endpoint.

Answers are greedy, and each is kept on disk the moment it is there, under a hash of who was asked, what, and how.
Work that was killed therefore goes on where it stopped, and asks nothing twice. The cache holds answers, never
prompts; it may hold what the answers quote, so it is as secret as the texts that were asked about.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, Protocol

from expunge import dist
from expunge.data.tokenise import prompt_tokens
from expunge.errors import ModelError, RecipeError, brief, close_to
from expunge.measure.desk import needed
from expunge.measure.samples import continue_greedily, stop_tokens
from expunge.models import context_length, load, weights_hash
from expunge.run import write_json
from expunge.types import Subject

BATCH_ROWS = 16  # prompts a local model continues together
SHORT = 8  # tokens that hold a yes or no
LONGEST_PAUSE = 60.0  # seconds; what a server asks for beyond that is cut
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_COMPLETIONS = "/chat/completions"

Answers = Iterator[tuple[int, str]]  # number of the prompt, and its answer, in any order


@dataclass(frozen=True)
class Asking:
    """How a model is asked.

    max_tokens: longest answer. The rest is for endpoints: seconds until a request is given up, how often it is tried
    again, seconds before the first new try (doubled each time), and requests in flight at once.
    """

    max_tokens: int = 256
    timeout: float = 60.0
    retries: int = 4
    pause: float = 1.0
    parallel: int = 4

    @staticmethod
    def of(given: Mapping[str, Any] | None, where: str) -> Asking:
        """Read the settings of a recipe.

        Raises: RecipeError for one that is unknown or out of range.
        """
        known = {one.name for one in fields(Asking)}
        for name, value in (given or {}).items():
            if name not in known:
                raise RecipeError(f"{where}.{name}", "no such setting", close_to(str(name), known), "Correct the name")
            whole = name in ("max_tokens", "retries", "parallel")
            least = {"retries": 0, "pause": 0}.get(name, 1 if whole else 1e-3)
            fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and value >= least
            if not fits:
                kind = "a whole number" if whole else "a number"
                raise RecipeError(
                    f"{where}.{name}", f"got {brief(value)}", f"{kind} of {least:g} or more", "Correct the value"
                )
        return Asking(**(given or {}))


class Voice(Protocol):
    """What answers: `id` says which model and how it is addressed, `most` how long an answer it needs at most."""

    id: str

    def most(self, short: bool) -> int: ...

    def answer(self, prompts: Sequence[str], most: int) -> Answers: ...


@dataclass(eq=False)
class Language:
    """A language model that can be asked, and the folder its answers are kept in (None: nothing is kept).

    asked: prompts that had to be answered so far, over all ranks; those found in the cache do not count.
    """

    voice: Voice
    cache: Path | None = None
    asked: int = field(default=0, init=False)

    @property
    def id(self) -> str:
        """Which model answers, for the audit record."""
        return self.voice.id

    def ask(self, prompts: Iterable[str], *, short: bool = False) -> list[str]:
        """An answer for each prompt, in order; equal prompts are asked once.

        Args:
            short: the first words of the answer are enough.
        Raises: ModelError when the model cannot be asked; the answers that were there are in the cache.
        Cost: a generation (or request) per prompt that is not in the cache; on several ranks each asks its share.
        """
        asked, most = list(prompts), self.voice.most(short)
        known = dist.agree({prompt: self._read(prompt, most) for prompt in dict.fromkeys(asked)})
        open_prompts = [prompt for prompt, answer in known.items() if answer is None]
        mine = list(dist.shard(open_prompts))
        found = []
        for number, answer in self.voice.answer(mine, most) if mine else ():
            self._write(mine[number], most, answer)
            found.append((mine[number], answer))
        known |= dict(dist.gather(found))
        self.asked += len(open_prompts)
        return [known[prompt] for prompt in asked]

    def _path(self, prompt: str, most: int) -> Path | None:
        if self.cache is None:
            return None
        key = json.dumps([self.voice.id, most, prompt])
        return self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.json"

    def _read(self, prompt: str, most: int) -> str | None:
        path = self._path(prompt, most)
        if path is None or not path.is_file():
            return None
        try:
            answer = json.loads(path.read_text(encoding="utf-8"))["answer"]
        except (OSError, ValueError, KeyError, TypeError):  # not ours, or spoilt: ask again
            return None
        return answer if isinstance(answer, str) else None

    def _write(self, prompt: str, most: int, answer: str) -> None:
        path = self._path(prompt, most)
        if path is not None:
            write_json(path, {"model": self.voice.id, "answer": answer})


def connect(
    subject: Subject, source: str = "self", *, model: str = "", key_env: str | None = None,
    cache: str | Path | None = None, asking: Mapping[str, Any] | None = None, where: str = "language",
) -> Language:
    """The language model a recipe names.

    Args:
        source: "self" (the subject), "http(s)://..." (an OpenAI-compatible server: its base address, or the whole one
            of chat/completions), or a model folder or hub name.
        model: which model of the server. key_env: environment variable that holds its key; None: no key is sent.
        cache: folder of the answers. asking: settings, see `Asking`. where: who asks, for errors.
    Raises: RecipeError for settings that do not fit; ModelError for a model that cannot be loaded.
    """
    settings = Asking.of(asking, f"{where}.asking")
    folder = None if cache is None else Path(cache).expanduser()
    if source.startswith(("http://", "https://")):
        server = Endpoint(_address(source, where), _named(model, where), settings, _key(key_env, where))
        return Language(server, folder)
    if source == "self":
        return Language(Local(subject, settings), folder)
    return Language(Local(load(source, device=str(subject.model.device)), settings), folder)


# -- local ---------------------------------------------------------------------------------------------------------
@dataclass(eq=False)
class Local:
    """A causal model in this process, asked through its own template."""

    subject: Subject
    asking: Asking
    id: str = field(init=False)

    def __post_init__(self) -> None:
        subject = self.subject
        if subject.task != "causal":
            raise ModelError(
                subject.name, f"a model for the task '{subject.task}' cannot be asked in words",
                "accepted: causal language models, or the address of an endpoint", "Name another 'source'",
            )
        template = subject.tokenizer.chat_template if subject.wrapper.template == "chat" else subject.wrapper.template
        digest = hashlib.sha256(str(template).encode()).hexdigest()[:8]
        self.id = f"{subject.name} {weights_hash(subject)} {digest}"

    def most(self, short: bool) -> int:
        """A model without a chat template completes the text on and on, but says yes or no at once."""
        completes = self.subject.wrapper.template != "chat"
        return min(self.asking.max_tokens, SHORT) if short and completes else self.asking.max_tokens

    def answer(self, prompts: Sequence[str], most: int) -> Answers:
        subject = self.subject
        room, starts = context_length(subject), prompt_tokens(subject, prompts)
        longest = max(len(start) for start in starts)
        if longest + 1 > room:
            raise ModelError(
                subject.name, f"a prompt has {longest} tokens", f"the model reads at most {room} with its answer",
                "Use shorter texts, or a 'source' with a longer context",
            )
        order = sorted(range(len(starts)), key=lambda i: len(starts[i]))
        stops, device = stop_tokens(subject), str(subject.model.device)
        for first in range(0, len(order), BATCH_ROWS):
            group = order[first : first + BATCH_ROWS]
            limits = [min(most, room - len(starts[i])) for i in group]
            with needed(subject.name):
                said = continue_greedily(subject, [starts[i] for i in group], limits, stops, device=device)
            texts = subject.tokenizer.batch_decode(said, skip_special_tokens=True)
            yield from zip(group, (text.strip() for text in texts), strict=True)


# -- endpoint ------------------------------------------------------------------------------------------------------
class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key and the texts to an address nobody named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(eq=False)
class Endpoint:
    """A server that speaks the chat/completions protocol."""

    url: str
    model: str
    asking: Asking
    key: str | None = field(default=None, repr=False)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{self.model} at {self.url}"
        self._opener = urllib.request.build_opener(_NoRedirect)

    def most(self, short: bool) -> int:
        return self.asking.max_tokens

    def answer(self, prompts: Sequence[str], most: int) -> Answers:
        over = threading.Event()  # after a failure what is in flight is answered and kept, and nothing new is asked
        pool = ThreadPoolExecutor(max_workers=self.asking.parallel)
        failure: Exception | None = None
        try:
            jobs = {pool.submit(self._job, prompt, most, over): i for i, prompt in enumerate(prompts)}
            for job in as_completed(jobs):
                try:
                    answer = job.result()
                except ModelError as error:
                    failure = failure or error
                    continue
                if answer is not None:
                    yield jobs[job], answer
        finally:
            over.set()
            pool.shutdown(cancel_futures=True)
        if failure is not None:
            raise failure

    def _job(self, prompt: str, most: int, over: threading.Event) -> str | None:
        """An answer, or None when another request has failed before this one was sent."""
        if over.is_set():
            return None
        try:
            return self._ask(prompt, most, over)
        except BaseException:
            over.set()
            raise

    def _ask(self, prompt: str, most: int, over: threading.Event) -> str:
        body = {
            "model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
            "max_tokens": most,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        reason, pause, tries = "", self.asking.pause, self.asking.retries + 1
        for attempt in range(1, tries + 1):
            request = urllib.request.Request(self.url, json.dumps(body).encode(), headers, method="POST")
            try:
                with self._opener.open(request, timeout=self.asking.timeout) as response:
                    return self._said(response.read())
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} ({_message(error)})"
                if error.code not in _TRY_AGAIN:
                    self._fail(reason, "Check the address, 'model' and the key")
                pause = _wished(error.headers.get("Retry-After"), pause)
            except (http.client.HTTPException, OSError) as error:  # URLError and timeouts are OSErrors
                cause = getattr(error, "reason", None) or error
                reason = str(cause).strip() or type(cause).__name__
            if attempt == tries or over.wait(pause):
                break
            pause = min(2 * pause, LONGEST_PAUSE)
        told = f"no answer after {attempt} tries, last: {reason}"
        self._fail(told, "Start the same again when the server is there")

    def _said(self, raw: bytes) -> str:
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            self._fail("the answer is not that of chat/completions (choices[0].message.content)", "Check the address")
        return content.strip() if isinstance(content, str) else ""

    def _fail(self, found: str, do: str) -> NoReturn:
        accepted = "accepted: a server that speaks OpenAI's chat/completions; answers so far are in the cache"
        raise ModelError(self.url, found, accepted, do)


def _address(source: str, where: str) -> str:
    parts = urllib.parse.urlsplit(source)
    if not parts.hostname or parts.username is not None or parts.fragment:
        raise RecipeError(
            f"{where}.source", "an address without a host, or with a user or fragment in it",
            "accepted: http(s)://HOST[:PORT]/PATH; keys come from the environment (key_env)", "Correct the address",
        )
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith(_COMPLETIONS) else path + _COMPLETIONS).geturl()


def _named(model: str, where: str) -> str:
    if not model:
        raise RecipeError(f"{where}.model", "missing", "a server needs the name of one of its models", "Add 'model'")
    return model


def _key(name: str | None, where: str) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise RecipeError(
            f"{where}.key_env", f"the environment variable '{name}' is empty or not set", "a variable with the key",
            f"Run: export {name}=..., or leave key_env out where the server wants no key",
        )
    return key


def _message(error: urllib.error.HTTPError) -> str:
    """The server's own words, cut short."""
    try:
        found = json.loads(error.read(10_000))
        text = found["error"]["message"] if isinstance(found["error"], dict) else found["error"]
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        text = error.reason
    text = " ".join(str(text).split())
    return text if len(text) <= 120 else text[:117] + "..."


def _wished(header: str | None, pause: float) -> float:
    """Seconds to wait: what the server asked for in Retry-After, if it named a number."""
    try:
        return min(max(float(header or pause), 0.0), LONGEST_PAUSE)
    except ValueError:
        return pause
