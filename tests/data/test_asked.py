"""What is asked, what was said before, what the model is made to have said already: the answer counts as ever."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from expunge.data.texts import asked_of, render_prompt, reword, rewritten
from expunge.data.tokenise import Text, encode, prompt_tokens, render
from expunge.errors import DataError, DoesNotFit
from expunge.measure.plan import Plan, measure
from expunge.registry import bind
from expunge.run import Run
from expunge.types import Example, Needs, Subject, Wrapper
from support.learned import knows, short_data

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = {"": (("Who was it?", "Nobody."),), "Why?": (("A", "B"), ("C", "D"))}


@pytest.fixture(params=["chat", "{prompt} {answer}", "Q: {prompt}\nA: {answer}"])
def subject(request, tiny_tokenizer) -> Subject:
    tokenizer = tiny_tokenizer
    if request.param == "chat":
        import copy

        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = CHAT
    return Subject(None, tokenizer, Wrapper(request.param))


@pytest.mark.parametrize("prefill", ["", "Sure. ", "It is, as you know, "])
@pytest.mark.parametrize("prompt", ["Who?", "Why?"])
@pytest.mark.parametrize("turns", [{}, TURNS])
def test_what_is_teacher_forced_is_what_is_generated_from(subject, prefill, prompt, turns):
    """The tokens before the counted ones are those the model would be given to go on from."""
    subject = replace(subject, wrapper=replace(subject.wrapper, prefill=prefill, turns=turns))
    (made,) = encode(subject, [Text("x", 0, prompt, "The sea.")])
    said = subject.tokenizer.decode(made.tokens[made.counted]).strip()
    assert said.startswith("The sea.")
    assert "Sure" not in said
    assert "Nobody" not in said
    (given,) = prompt_tokens(subject, [prompt])
    before = subject.tokenizer.decode(made.tokens[: made.prompt_length])
    assert before.rstrip() == subject.tokenizer.decode(given).rstrip()
    assert np.array_equal(made.tokens[: len(given)], given)
    assert prefill.strip() in before


def test_earlier_turns_stand_before_the_prompt_they_belong_to(subject):
    subject = replace(subject, wrapper=replace(subject.wrapper, turns=TURNS))
    texts = {prompt: render_prompt(subject.wrapper, subject.tokenizer, prompt) for prompt in ("Who?", "Why?")}
    assert "Nobody." in texts["Who?"]
    assert "Nobody." not in texts["Why?"]
    assert texts["Why?"].index("B") < texts["Why?"].index("D") < texts["Why?"].index("Why?")


def test_plain_text_has_neither_turns_nor_prefill(tiny_tokenizer):
    wrapper = Wrapper("{prompt} {answer}", turns=TURNS, prefill="Sure. ")
    assert render(wrapper, tiny_tokenizer, "", "A book.") == ("A book.", 0, 0)
    assert render_prompt(wrapper, tiny_tokenizer, "") == ""


@dataclass(frozen=True)
class Put:
    """A word behind prompt and paraphrases; examples in `never` cannot be put like that."""

    word: str
    never: tuple[str, ...] = ()

    def __call__(self, example: Example) -> Example | None:
        return None if example.id in self.never else reword(example, lambda text: f"{text} {self.word}")


def test_a_rewrite_changes_the_prompt_and_its_paraphrases_and_nothing_else():
    example = short_data()["forget"].examples[0]
    put = Put("now")(example)
    assert put == replace(example, prompt="Who is f 0? now", paraphrases=("Tell me of f 0 now",))
    assert Put("now")(replace(example, prompt="")) is None
    wrapper = rewritten(rewritten(Wrapper(), Put("a")), Put("b", never=("f/1",)))
    asked = asked_of(short_data(), wrapper)
    assert [one.prompt for one in asked["forget"].examples][:2] == ["Who is f 0? a b", "Who is f 2? a b"]
    assert len(asked["retain"]) == 12
    assert wrapper == rewritten(rewritten(Wrapper(), Put("a")), Put("b", never=("f/1",)))


def test_every_table_is_of_the_rewritten_texts(tmp_path):
    """Teacher-forced and generated alike; tables of other prompts are not read back."""
    plan = Plan()
    plan.add("forget", [Needs("tokens"), Needs("samples", "prompt")])
    plain = knows("forget")
    put = replace(plain, wrapper=rewritten(plain.wrapper, Put("author book", never=("f/3",))))
    first, second = (measure(one, short_data(), plan, cache=tmp_path) for one in (plain, put))
    assert len(first.tables["forget", "tokens", "answer"]) == 12
    assert len(second.tables["forget", "tokens", "answer"]) == 11
    asked = second.tables["forget", "samples", "prompt"].column("prompt")
    assert all(str(text).endswith("author book") for text in asked)
    said = replace(plain, wrapper=replace(plain.wrapper, prefill="Well, "))
    third = measure(said, short_data(), plan, cache=tmp_path)
    logp = [one.tables["forget", "tokens", "answer"].rows("logp")[0].sum() for one in (first, second, third)]
    assert len({round(float(value), 6) for value in logp}) == 3
    assert set(first.files.values()).isdisjoint(second.files.values())


def test_when_no_example_can_be_put_like_that_it_is_told():
    subject = knows("forget")
    everyone = tuple(example.id for stream in short_data().values() for example in stream.examples)
    put = replace(subject, wrapper=rewritten(subject.wrapper, Put("x", never=everyone)))
    plan = Plan()
    plan.add("forget", [Needs("tokens")])
    assert set(measure(put, short_data(), plan).missing.values()) == {"no example of 'forget' can be asked like that"}


@pytest.mark.parametrize("hyper", [{}, {"words": 1}])
def test_plain_texts_ask_nothing_that_could_be_answered_for_the_model(hyper):
    data = short_data()
    plain = tuple(replace(one, prompt="", paraphrases=()) for one in data["forget"].examples)
    data["forget"] = replace(data["forget"], examples=plain)
    prefill = bind("attack", {"use": "prefill", **hyper})
    with pytest.raises(DoesNotFit, match="the texts of 'forget' ask nothing"):
        list(prefill(knows("forget"), data, Run()))


def test_a_question_that_an_attack_made_too_long_is_not_measured_and_one_that_was_given_so_is_an_error():
    subject, plan = knows("forget"), Plan()
    plan.add("forget", [Needs("tokens")])
    long = replace(subject, wrapper=rewritten(subject.wrapper, Put("word " * 2000)))
    (reason,) = measure(long, short_data(), plan).missing.values()
    assert "tokens" in reason
    data = short_data()
    given = tuple(replace(one, prompt="word " * 2000) for one in data["forget"].examples)
    data["forget"] = replace(data["forget"], examples=given)
    with pytest.raises(DataError, match="tokens"):
        measure(subject, data, plan)
