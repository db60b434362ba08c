"""Attacks on the prompt: texts come out as intended in every kind of template, and what is scored stays the same."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from expunge.data.said import Said, in_question, said_in
from expunge.data.texts import Text, asked_of, render, render_prompt, reword, rewritten, texts_of
from expunge.data.tokenise import encode, prompt_tokens
from expunge.errors import DataError, DoesNotFit, RecipeError
from expunge.measure.plan import measure
from expunge.registry import bind
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.testing.models import tiny_classes, whole_examples
from expunge.types import Data, Example, Stream, Wrapper
from support.learned import knows, short_data

MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
WORDED = (  # a past turn opens with a space more than the one to be answered
    "{% for m in messages %}{{ 'Answer: ' + m['content'] + eos_token if m['role'] == 'assistant' else "
    "'Question: ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}"
)
THINKS = (  # a past turn shows that nothing was thought
    "{% for m in messages %}<{{ m['role'] }}>\n{% if m['role'] == 'assistant' %}<think></think>\n{% endif %}"
    "{{ m['content'] | trim }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
TEMPLATES = {
    "spaced": "{prompt} {answer}", "lines": "Q: {prompt}\nA: {answer}", "below": "{prompt}\n{answer}",
    "marked": MARKED, "worded": WORDED, "thinks": THINKS,
}
SAME_ANSWER = {  # attacks after which the same answer is asked for
    "paraphrase": "paraphrase", "perturb_prompt": "perturb_prompt", "few_shot": {"use": "few_shot", "num": 2},
    "prefill": "prefill", "multi_turn": {"use": "multi_turn", "max_new_tokens": 4},
    "jailbreak": {"use": "jailbreak", "num": 1, "forms": [
        "prefix_injection", "affirmative_suffix", "role_play", "multiple_choice", "synonyms", "background_hint",
        "in_context",
    ]},
}


def spoken(template: str, subject=None):
    """A subject with one of TEMPLATES; a fresh one reads 2,048 tokens."""
    text = TEMPLATES[template]
    if subject is None:
        subject = tiny_subject()
        subject.model.config.max_position_embeddings = subject.tokenizer.model_max_length = 2048
    if "{%" not in text:
        return replace(subject, wrapper=Wrapper(text))
    tokenizer = copy.deepcopy(subject.tokenizer)
    tokenizer.chat_template = text
    return replace(subject, tokenizer=tokenizer, wrapper=Wrapper("chat"))


def whole_data() -> Data:
    """Streams with every field; what is retained is about the same subjects as what is forgotten."""
    forget = tuple(replace(e, subject=f"topic {i // 2}") for i, e in enumerate(whole_examples(6, "forget")))
    retain = tuple(
        Example(f"retain/{i}", f"What else is retain {i}?", f"It is also {i * 3} here.", subject=f"topic {i // 2}",
                paraphrases=(f"Tell me retain {i}",), perturbed=("It is not.",))
        for i in range(6)
    )
    return Data(forget=Stream("forget", "forget", forget), retain=Stream("retain", "retain", retain))


def made_by(attack, subject, data=None):
    return list(bind("attack", attack)(subject, data or whole_data(), Run()))


def asked(subject, data, stream="forget") -> list[Text]:
    left = asked_of(data, subject.wrapper)[stream]
    return texts_of(left, "answer", subject.wrapper.ask) if left.examples else []


def shown(subject, text: Text) -> str:
    return render(subject.wrapper, subject.tokenizer, text.prompt, text.answer)[0]


# -- what travels inside a prompt ----------------------------------------------------------------------------------
def test_turns_and_beginnings_travel_in_the_prompt_and_rewrites_touch_the_question_alone():
    said = Said("Who?", (("Hello!", "Hi."), ("So?", "Yes.")), "It is ")
    assert said_in(said.prompt) == said
    assert said_in("Who?\nReally?") == Said("Who?\nReally?")
    assert Said("Who?").prompt == "Who?"
    assert said_in(in_question(str.upper)(said.prompt)) == replace(said, question="WHO?")
    put = reword(Example("a", said.prompt, "me", paraphrases=("And who?",)), lambda question: f"({question})")
    assert (said_in(put.prompt), put.paraphrases) == (replace(said, question="(Who?)"), ("(And who?)",))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_prompt_with_turns_and_a_beginning_is_the_conversation_it_stands_for(template):
    """The same as the turns and the prefill of the wrapper."""
    subject = spoken(template)
    prompt = Said("Who?", (("Hello!", "Hi."),), "It is ").prompt
    wrapper = replace(subject.wrapper, turns={"": (("Hello!", "Hi."),)}, prefill="It is ")
    one = render(subject.wrapper, subject.tokenizer, prompt, "me.")
    assert one == render(wrapper, subject.tokenizer, "Who?", "me.")
    assert one[0].count("Hi.") == one[0].count("It is me.") == 1
    opening = render_prompt(subject.wrapper, subject.tokenizer, prompt)
    assert opening == render_prompt(wrapper, subject.tokenizer, "Who?")
    assert one[0].startswith(opening)
    assert one[0][one[2]:].startswith("me.")


def test_letters_of_choices_keep_the_conversation_but_no_beginning():
    """A letter is not how the answer was begun."""
    one = Example("a", Said("Who?", (("Hello!", "Hi."),), "It is ").prompt, "me", choices=("me", "you"))
    stream = Stream("forget", "forget", (one,))
    (text,) = texts_of(stream, "letters:right")
    said = said_in(text.prompt)
    assert (said.turns, said.begun) == ((("Hello!", "Hi."),), "")
    assert "Who?\nA. me\nB. you\n" in said.question
    assert texts_of(stream, "answer")[0].prompt == one.prompt


# -- every attack, every template ----------------------------------------------------------------------------------
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("attack", [*SAME_ANSWER.values(), {"use": "prefill", "words": 2}], ids=[*SAME_ANSWER, "words"])
def test_what_is_taught_is_what_is_generated_from(template, attack):
    """The tokens asked are the beginning of the tokens that are teacher-forced, and nothing of them counts."""
    subject, data = spoken(template), whole_data()
    for changed in made_by(attack, subject, data):
        texts = [text for stream in data for text in asked(changed, data, stream)]
        prompts = prompt_tokens(changed, [text.prompt for text in texts])
        for start, one in zip(prompts, encode(changed, texts), strict=True):
            assert np.array_equal(one.tokens[: len(start)], start)
            assert one.prompt_length == len(start)


@pytest.mark.parametrize(("template", "attack"), [
    pytest.param(template, attack, id=f"{template}-{name}")
    for template in TEMPLATES for name, attack in SAME_ANSWER.items()
    if (template, name) != ("thinks", "prefill")  # that nothing was thought is then said already, no part of the answer
])
def test_the_same_tokens_of_the_answer_count_as_without_the_attack(template, attack):
    subject, data = spoken(template), whole_data()
    plain = {one.id: one for one in encode(subject, asked(subject, data))}
    for changed in made_by(attack, subject, data):
        made = encode(changed, asked(changed, data))
        assert made
        for one in made:
            before = plain[one.id]
            assert one.tokens[one.counted].tolist() == before.tokens[before.counted].tolist()
            assert one.spanned[one.counted].tolist() == before.spanned[before.counted].tolist()
            assert one.tokens.tolist() != before.tokens.tolist()


def test_the_cost_is_one_query_for_each_question_asked():
    for attack in ("paraphrase", "perturb_prompt", "few_shot", "prefill"):
        (changed,) = made_by(attack, tiny_subject())
        assert changed.lineage[-1].cost.queries == 6
    (changed,) = made_by("multi_turn", tiny_subject())
    assert changed.lineage[-1].cost.queries == 6 + 3  # three subjects are talked about
    assert changed.lineage[-1].cost.forwards == 3


# -- one by one ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("template", "text"), {
    "spaced": "What is forget 0? Sure, the answer is It is 0 and forget.",
    "lines": "Q: What is forget 0?\nA: Sure, the answer is It is 0 and forget.",
    "below": "What is forget 0?\nSure, the answer is\nIt is 0 and forget.",
    "marked": "<user>\nWhat is forget 0?<|end|>\n<assistant>\nSure, the answer is\nIt is 0 and forget.<|end|>\n",
    "worded": "Question: What is forget 0?\nAnswer: Sure, the answer is It is 0 and forget.<|end|>",
    "thinks": "<user>\nWhat is forget 0?<|end|>\n<assistant>\n<think></think>\nSure, the answer is\n"
    "It is 0 and forget.<|end|>\n",
}.items())
def test_the_answer_is_begun_as_answers_begin(template, text):
    """With the white space before the answer that stands there otherwise."""
    (changed,) = made_by("prefill", spoken(template))
    assert shown(changed, asked(changed, whole_data())[0]) == text


def test_a_beginning_takes_the_space_of_the_answer_and_goes_on_from_another_one():
    own = Data(forget=Stream("forget", "forget", (Example("a", "Q: Who?\nA:", " me"),)))
    (changed,) = made_by("prefill", replace(tiny_subject(), wrapper=Wrapper("{prompt}{answer}")), own)
    assert shown(changed, asked(changed, own)[0]) == "Q: Who?\nA: Sure, the answer is me"
    (kept,) = made_by({"use": "prefill", "text": "Well:\n"}, tiny_subject())
    (twice,) = made_by({"use": "prefill", "text": "it is"}, kept)
    assert (kept.wrapper.prefill, twice.wrapper.prefill) == ("Well:\n", "Well:\nit is\n")


def test_given_words_are_not_scored_and_nothing_else_changes():
    one = Example(
        "a", "Who?", "It is Mara Lind.", spans=((0, 2), (6, 10)), paraphrases=("And who?",),
        paraphrased_answer="It is she.", perturbed=("It is Tomas.", "Nobody is.", "It is "), contrast="She.",
        choices=("It is Mara Lind.", "It is Tomas."), alternative="No idea.",
    )
    data = Data(forget=Stream("forget", "forget", (one, replace(one, id="b", answer="It is.", spans=()))))
    words = {"use": "prefill", "words": 2}
    (changed,) = made_by(words, tiny_subject(), data)
    (put,) = asked_of(data, changed.wrapper)["forget"].examples  # two words of two leave nothing to score
    assert changed.lineage[-1].cost.queries == 1
    assert (said_in(put.prompt), put.answer, put.spans) == (Said("Who?", begun="It is "), "Mara Lind.", ((0, 4),))
    assert [said_in(other).begun for other in put.paraphrases] == ["It is "]
    assert (put.paraphrased_answer, put.perturbed, put.contrast) == ("she.", ("Tomas.",), None)
    assert (put.choices, put.alternative) == (("Mara Lind.", "Tomas."), "No idea.")
    for template in TEMPLATES:
        for answer in (one.answer, "  " + one.answer)[: 1 if template == "worded" else 2]:  # that one does not trim
            given = Data(forget=Stream("forget", "forget", (replace(one, answer=answer, spans=()),)))
            (changed,) = made_by(words, spoken(template), given)
            before, after = (encode(each, asked(each, given))[0] for each in (spoken(template), changed))
            assert after.tokens.tolist() == before.tokens.tolist()
            assert changed.tokenizer.decode(after.tokens[after.counted]).strip() == "Mara Lind.<|end|>"


def test_solved_questions_stand_first_and_are_not_asked_themselves():
    data = whole_data()
    shots = {"use": "few_shot", "num": 2, "seed": 1}
    (changed,) = made_by(shots, tiny_subject())
    ((one, two),) = changed.wrapper.turns.values()
    known = {(e.prompt, e.answer): e.id for e in data["retain"].examples}
    left = {text.id for text in asked(changed, data, "retain")}
    assert left == set(known.values()) - {known[one], known[two]}
    first = asked(changed, data)[0]
    assert shown(changed, first) == f"{one[0]} {one[1]}\n{two[0]} {two[1]}\nWhat is forget 0? It is 0 and forget."
    (chat,) = made_by(shots, spoken("marked"))
    turns = (one, two, (first.prompt, first.answer))
    assert shown(chat, first) == "".join(f"<user>\n{q}<|end|>\n<assistant>\n{a}<|end|>\n" for q, a in turns)
    (other,) = made_by({**shots, "seed": 2}, tiny_subject())
    assert other.wrapper.turns != changed.wrapper.turns
    (own,) = made_by({**shots, "source": "forget"}, tiny_subject())
    assert len(own.exposed) == 2
    assert not own.exposed & {text.id for text in asked(own, data)}
    assert own.lineage[-1].cost.queries == 4


@pytest.mark.parametrize("template", ["spaced", "worded"])
def test_the_conversation_holds_what_the_model_itself_says(template):
    """Against a slow loop: the greedy generation of transformers from the text of each turn."""
    data = short_data(forget=3, retain=1)
    named = tuple(replace(e, subject="f 1") for e in data["forget"].examples[:2])
    data["forget"] = Stream("forget", "forget", (*named, data["forget"].examples[2]))
    subject = spoken(template, knows("forget"))
    (changed,) = made_by({"use": "multi_turn", "turns": 3, "max_new_tokens": 6}, subject, data)
    said = [said_in(text.prompt) for text in asked(changed, data)]
    assert said[0].turns == said[1].turns != said[2].turns
    assert "f 1" in said[0].turns[0][0]
    for one in said[1:]:
        for number, (question, answer) in enumerate(one.turns):
            (start,) = prompt_tokens(subject, [Said(question, one.turns[:number]).prompt])
            out = subject.model.generate(
                torch.tensor(start).unsqueeze(0), max_new_tokens=6, do_sample=False, pad_token_id=0
            )
            text = subject.tokenizer.decode(out[0, len(start) :], skip_special_tokens=True).strip()
            assert answer == (text if template == "worded" else text.split("\n")[0])


def test_letters_are_strewn_in_and_the_question_is_still_in_there():
    data = whole_data()
    plain = {one.id: one.prompt for one in data["forget"].examples}
    (changed,) = made_by({"use": "perturb_prompt", "spacing": 3}, tiny_subject())
    for text in asked(changed, data):
        assert len(text.prompt) == len(plain[text.id]) * 4 // 3
        assert "".join(c for i, c in enumerate(text.prompt) if i % 4 != 3) == plain[text.id]
        assert text.prompt[3::4].isalpha()
    (drawn,) = made_by({"use": "perturb_prompt", "share": 0.2, "seed": 3}, tiny_subject())
    longer = sum(len(text.prompt) - len(plain[text.id]) for text in asked(drawn, data))
    assert 0.1 < longer / sum(map(len, plain.values())) < 0.3
    (doubled,) = made_by({"use": "perturb_prompt", "share": 1.0}, tiny_subject())
    assert asked(doubled, data)[0].prompt[::2] == "What is forget 0?"


# -- together ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Suffix:
    """As a searched suffix is put."""

    text: str

    def __call__(self, example):
        return reword(example, lambda question: question + self.text)


def test_attacks_chain_in_any_order():
    data = whole_data()
    (solved,) = made_by({"use": "few_shot", "num": 1}, spoken("marked"))
    (talked,) = made_by({"use": "multi_turn", "max_new_tokens": 2}, solved)
    (begun,) = made_by({"use": "prefill", "words": 2}, talked)
    suffixed = replace(begun, wrapper=rewritten(begun.wrapper, Suffix(" !!")))
    (sure,) = made_by({"use": "prefill", "text": "Sure: "}, suffixed)
    ((shot,),) = solved.wrapper.turns.values()
    first = asked(sure, data)[0]
    turns = (shot, *said_in(first.prompt).turns, ("What is forget 0? !!", "Sure: It is 0 and forget."))
    assert len(turns) == 3
    assert shown(sure, first) == "".join(f"<user>\n{q}<|end|>\n<assistant>\n{a}<|end|>\n" for q, a in turns)
    (one,) = encode(sure, [first])
    assert one.prompt_length == len(prompt_tokens(sure, [first.prompt])[0])
    assert sure.tokenizer.decode(one.tokens[one.counted]) == " 0 and forget.<|end|>"
    assert [event.name for event in sure.lineage] == ["few_shot", "multi_turn", "prefill", "prefill"]
    forms = {"use": "jailbreak", "forms": ["role_play", "reverse_query"]}
    named = Data({
        name: replace(stream, examples=tuple(replace(e, subject=e.prompt[8:-1]) for e in stream.examples))
        for name, stream in data.items()
    })
    chain = {"use": "chain", "attacks": ["paraphrase", {"use": "few_shot", "num": 1}, forms, "perturb_prompt"]}
    assert [len(asked(changed, named)) for changed in made_by(chain, tiny_subject(), named)] == [6, 6]


def test_shots_are_put_as_the_attacks_before_put_questions():
    (disguised,) = made_by({"use": "jailbreak", "forms": "affirmative_suffix"}, spoken("spaced"))
    (solved,) = made_by("few_shot", disguised)
    ((one, *_),) = solved.wrapper.turns.values()
    assert one[0].endswith("The answer is")
    assert len(asked(solved, whole_data(), "retain")) == 3


# -- what does not fit, and what is wrong --------------------------------------------------------------------------
@pytest.mark.parametrize(("family", "attack", "reason"), [
    ("bart", "prefill", "the answer of a seq2seq model cannot be begun for it"),
    ("distilbert", "prefill", "the answer of a classification model"),
    ("bart", "few_shot", "no place for an earlier answer"),
    ("bert", "multi_turn", "a masked model holds no conversation"),
    ("bart", "multi_turn", "a seq2seq model holds no conversation"),
    ("llama", {"use": "few_shot", "num": 99}, "stream 'retain' has 6 questions, 99 solved ones are wanted"),
    ("llama", {"use": "prefill", "words": 9}, "no answer of 'forget' has more than 9 words"),
    ("llama", {"use": "prefill", "text": "so " * 400}, "every question is longer than the 256 tokens the model reads"),
    ("llama", {"use": "jailbreak", "forms": "cross_lingual"}, "cross_lingual: no translator was given"),
    ("distilbert", {"use": "jailbreak", "forms": ["reverse_query"]}, "a classifier names labels"),
])
def test_what_does_not_fit_says_why(family, attack, reason):
    with pytest.raises(DoesNotFit, match=reason):
        made_by(attack, tiny_subject(family=family), tiny_classes() if family == "distilbert" else None)


def test_questions_that_get_too_long_are_not_asked_and_counted():
    data = whole_data()
    first, *others = data["retain"].examples
    long = replace(first, answer="It is " + "so " * 60)
    data["retain"] = replace(data["retain"], examples=(long, *others))
    subject = tiny_subject()
    assert encode(subject, asked(subject, data, "retain"), limit=256)
    (changed,) = made_by({"use": "prefill", "text": "so " * 20}, subject, data)
    assert changed.lineage[-1].hyper["too_long"] == 1
    assert changed.lineage[-1].cost.queries == len(asked(changed, data)) == 6
    assert {text.id for text in asked(changed, data, "retain")} == {one.id for one in others}
    assert encode(changed, asked(changed, data, "retain"), limit=256)


def test_plain_text_asks_nothing():
    both = (Example("a", "Who?", "me"), Example("b", "", "It was a dark night."))
    (changed,) = made_by("prefill", tiny_subject(), Data(forget=Stream("forget", "forget", both)))
    assert changed.lineage[-1].cost.queries == 1
    plain = Data(forget=Stream("forget", "forget", both[1:]))
    for attack in ("perturb_prompt", "multi_turn", "jailbreak", "prefill", "paraphrase"):
        with pytest.raises(DoesNotFit):
            made_by(attack, tiny_subject(), plain)


@pytest.mark.parametrize(("attack", "error", "match"), [
    ({"use": "few_shot", "num": 0}, RecipeError, r"attacks\.few_shot\.num: got 0; 1 or more"),
    ({"use": "few_shot", "source": "retian"}, DataError, r"few_shot\.source: no stream 'retian'; did you mean"),
    ({"use": "prefill", "text": " "}, RecipeError, r"attacks\.prefill: got words 0, a text of 1 characters"),
    ({"use": "multi_turn", "turns": 1}, RecipeError, r"multi_turn\.turns: got 1; 2 to 4"),
    ({"use": "multi_turn", "max_new_tokens": 0}, RecipeError, r"max_new_tokens: got 0"),
    ({"use": "perturb_prompt", "spacing": 0}, RecipeError, r"perturb_prompt\.spacing: got 0"),
    ({"use": "perturb_prompt", "share": 1.5}, RecipeError, r"perturb_prompt\.share: got 1\.5"),
    ({"use": "jailbreak", "forms": ["roleplay"]}, RecipeError, r"forms: got 'roleplay'; did you mean 'role_play'"),
    ({"use": "jailbreak", "forms": []}, RecipeError, r"jailbreak\.forms: got ''"),
    ({"use": "jailbreak", "num": 0}, RecipeError, r"jailbreak\.num: got 0"),
    *(({"use": name, "on": "forgt"}, DataError, rf"attacks\.{name}\.on: no stream 'forgt'; did you mean 'forget'")
      for name in ("few_shot", "prefill", "multi_turn", "perturb_prompt", "jailbreak")),
])
def test_wrong_arguments_are_told(attack, error, match):
    with pytest.raises(error, match=match):
        made_by(attack, tiny_subject())


@pytest.mark.parametrize(("family", "fitting"), [("bart", 3), ("bert", 5), ("distilbert", 2)])
def test_other_tasks_are_measured_under_what_fits_them(family, fitting):
    subject, data = tiny_subject(family=family), tiny_classes() if family == "distilbert" else whole_data()
    metric, measured = [bind("metric", "probability")], 0
    for attack in ("paraphrase", "perturb_prompt", "few_shot", "prefill", "multi_turn", "jailbreak"):
        try:
            changed = made_by(attack, subject, data)
        except DoesNotFit:
            continue
        measured += 1
        for one in changed:
            score = score_all(metric, data, measure(one, data, plan_for(metric, data)))["forget", "probability"]
            assert score.status == "ok", (attack, score.reason)
    assert measured == fitting
