"""Texts and their tokens as values, and how prompt and answer are put together for each task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.data.variants import variants
from expunge.errors import DataError
from expunge.types import Data, Positions, Span, Stream, Task, Wrapper


@dataclass(frozen=True, eq=False)
class Text:
    """One text to tokenise: example id, which of its variants, prompt, answer and spans of the answer."""

    id: str
    item: int
    prompt: str
    answer: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of one text. counted[t] and spanned[t] say whether place t is answer / inside a span.

    targets: what should stand at each place where that is not the token itself; read at counted places only.
    source: what the encoder of an encoder-decoder reads; `tokens` are then the decoder's.
    read: how many of the tokens the model reads, where places without a token follow them; None: all.
    pad: the token that fills up a batch, for models that tell padding by its value.
    """

    id: str
    item: int
    tokens: np.ndarray  # [T] int64
    counted: np.ndarray  # [T] bool
    spanned: np.ndarray  # [T] bool
    targets: np.ndarray | None = None  # [T] int64
    source: np.ndarray | None = None  # [S] int64
    task: Task = "causal"
    read: int | None = None
    pad: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def size(self) -> int:
        """Tokens a forward reads: what batches are made by and bills are written in."""
        return len(self.tokens) + (0 if self.source is None else len(self.source))

    @property
    def prompt_length(self) -> int:
        """Tokens before the first counted one."""
        return int(self.counted.argmax()) if self.counted.any() else len(self.tokens)

    def places(self, which: Positions) -> np.ndarray:
        """Which predictions count, [T-1] bool, as `Batch.positions` says it of a batch."""
        if which == "text":
            whole = self.task in ("causal", "seq2seq")
            return np.ones(len(self) - 1, dtype=bool) if whole else self.counted[1:]
        chosen: np.ndarray = {
            "answer": self.counted, "spans": self.spanned, "context": self.counted & ~self.spanned
        }[which][1:]
        return chosen


def texts_of(stream: Stream, variant: str = "answer", ask: str = "prompt", data: Data | None = None) -> list[Text]:
    """The texts of a stream variant; see `expunge.data.variants.variants`."""
    return [Text(*row) for row in variants(stream, variant, ask, data)]


def render(wrapper: Wrapper, tokenizer: Any, prompt: str, answer: str) -> tuple[str, int, int]:
    """The text as the model sees it, the character from which the model speaks, and the one where the answer starts.

    The two differ where a template puts a space between them. An empty prompt is plain text: the answer alone.

    Raises: DataError for a chat template that does not write the answer as it is.
    """
    if not prompt:
        return answer, 0, 0
    if wrapper.template != "chat":
        before, after = wrapper.template.split("{answer}")
        start = before.replace("{prompt}", prompt)
        return start + answer + after, len(start.rstrip(" ")), len(start)
    text = _turns(tokenizer, prompt, answer)
    past = _past_opening(tokenizer, prompt, text)
    at = text.find(answer.strip(), len(past)) if text.startswith(past) else -1
    if at < 0:
        raise DataError(
            "chat template", f"an answer of {len(answer)} characters does not stand in it as given",
            "accepted: a template that writes what the assistant says unchanged",
            "Correct the template or the answer, or set the wrapper's template to one of your own",
        )
    opening = render_prompt(wrapper, tokenizer, prompt)
    stripped = len(answer) - len(answer.lstrip())  # spans count from the answer as given; the template strips it
    return text, len(opening if text.startswith(opening) else past), at - stripped


def _turns(tokenizer: Any, prompt: str, answer: str) -> str:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def _past_opening(tokenizer: Any, prompt: str, text: str) -> str:
    """All that stands before the answer in a past turn, which some templates open unlike the one to be answered.

    Found with a word in the answer's place that stands nowhere else, neither in the prompt nor in the template.
    """
    word = "ANSWER"
    while word in text or word in prompt:
        word += "S"
    before, found, _ = _turns(tokenizer, prompt, word).partition(word)
    return before if found else text


def render_prompt(wrapper: Wrapper, tokenizer: Any, prompt: str) -> str:
    """The text up to where the model starts to answer: all that an encoder or a classifier reads."""
    if wrapper.template != "chat":
        return wrapper.template.split("{answer}")[0].replace("{prompt}", prompt).rstrip(" ") if prompt else ""
    turn = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
