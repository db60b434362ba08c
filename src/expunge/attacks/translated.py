"""Questions in another language, from a translation model or a language model that the recipe names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from expunge.data.said import said_in
from expunge.data.texts import Text, asked_of
from expunge.data.tokenise import encode
from expunge.errors import DoesNotFit, ExpungeError, RecipeError, close_to
from expunge.language import Language, connect
from expunge.measure.samples import measure_samples
from expunge.measure.tables import NotMeasured
from expunge.models import context_length, load
from expunge.types import Data, Example, Subject, Wrapper

KEYS = ("source", "model", "key_env", "cache", "asking")
REQUEST = "Translate this question into {language}. Write the translation and nothing else.\n\n{question}\n"


@dataclass(frozen=True)
class Translated:
    """Questions as they are in the table; one that is not in it is not asked."""

    table: Mapping[str, str]

    def __call__(self, example: Example) -> Example | None:
        asked, *others = (self._of(prompt) for prompt in (example.prompt, *example.paraphrases))
        if asked is None:
            return None
        return replace(example, prompt=asked, paraphrases=tuple(other for other in others if other is not None))

    def _of(self, prompt: str) -> str | None:
        said = said_in(prompt)
        return replace(said, question=self.table[said.question]).prompt if said.question in self.table else None


def questions(data: Data, wrapper: Wrapper) -> list[str]:
    """Every question and paraphrase of the data as the wrapper asks it, once."""
    asked = [one for stream in asked_of(data, wrapper).values() for one in stream.examples if one.prompt]
    prompts = (prompt for one in asked for prompt in (one.prompt, *one.paraphrases))
    return list(dict.fromkeys(said_in(prompt).question for prompt in prompts))


def translate(subject: Subject, asked: Sequence[str], translator: Mapping[str, Any], language: str) -> Translated:
    """The translations of questions.

    Args:
        translator: {source: ...}, and for an endpoint also model, key_env, cache, asking, as for other language models.
            An encoder-decoder (Marian, T5) is given the question, any other model is asked in words.
        language: into which, in words; an encoder-decoder has its own.
    Raises: RecipeError for unknown keys; DoesNotFit where the model cannot translate them; ModelError where it cannot
        be loaded.
    """
    for key in translator:
        if key not in KEYS:
            raise RecipeError(
                f"attacks.jailbreak.translator.{key}", "no such setting", close_to(str(key), KEYS), "Correct the name"
            )
    source, rest = str(translator.get("source", "self")), {k: v for k, v in translator.items() if k != "source"}
    if source == "self" or source.startswith(("http://", "https://")):
        said = _asked(connect(subject, source, where="attacks.jailbreak.translator", **rest), asked, language)
    else:
        speaker = load(source, device=str(subject.model.device))
        said = _said(speaker, asked) if speaker.task == "seq2seq" else _asked(
            connect(speaker, where="attacks.jailbreak.translator", **rest), asked, language
        )
    return Translated({question: text for question, text in zip(asked, said, strict=True) if text})


def _asked(language_model: Language, asked: Sequence[str], language: str) -> list[str]:
    requests = [REQUEST.format(language=language, question=question) for question in asked]
    return [" ".join(answer.split()) for answer in language_model.ask(requests)]


def _said(speaker: Subject, asked: Sequence[str]) -> list[str]:
    """What an encoder-decoder makes of each question."""
    try:
        encoded = encode(
            speaker, [Text(str(i), 0, question, question) for i, question in enumerate(asked)],
            limit=context_length(speaker), where="translator",
        )
        made = measure_samples(speaker, asked, encoded, None, device=str(speaker.model.device))
    except (ExpungeError, NotMeasured) as reason:
        raise DoesNotFit(f"the questions cannot be translated: {reason}") from reason
    return [
        " ".join(text.split())
        for text in speaker.tokenizer.batch_decode([one.tokens for one in made], skip_special_tokens=True)
    ]
