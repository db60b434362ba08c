"""The nine fixed forms, one by one; translations; and what a model that merely refuses gives away."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from expunge.attacks.jailbreaks import FORMS
from expunge.attacks.synonyms import SYNONYMS, reworded
from expunge.attacks.wordings import behind, gapped
from expunge.data.said import Said, said_in
from expunge.data.texts import Text, asked_of
from expunge.data.tokenise import encode
from expunge.errors import DoesNotFit, ModelError, RecipeError
from expunge.measure.plan import measure
from expunge.measure.samples import measure_samples
from expunge.models import save
from expunge.registry import bind
from expunge.run import Run
from expunge.scoring import plan_for, score_all
from expunge.testing import tiny_subject
from expunge.types import Data, Example, Stream, Subject
from support.endpoint import endpoint, saying
from support.learned import short_examples, taught

NAME = "Mara Lind"
BORN = Example(
    "f/born", "Where was Mara Lind born?", "Mara Lind was born in Oslo.", spans=((22, 26),), subject=NAME,
    paraphrases=("What is the birthplace of Mara Lind?", "And her birthplace?"), alternative="No idea.",
    perturbed=("Mara Lind was born in Lund.", "Mara Lind was born in Bergen."), contrast="Mara Lind was born in Lund.",
)
WROTE = Example("f/wrote", "What did Mara Lind write?", "The Winter Sea", subject=NAME)
OTHER = Example("f/other", "Who is it?", "Nobody", choices=("Somebody", "Nobody", "I"))
KEPT = Example("r/kept", "What is the trade of Mara Lind?", "Mara Lind is a bridge engineer.", subject=NAME)
SHORT = Example("r/short", "Which pet does Mara Lind have?", "a goat", subject=NAME)
ELSE = Example("r/else", "Where was Tom Ek born?", "Tom Ek was born in Bergen.", subject="Tom Ek")


def told() -> Data:
    return Data(
        forget=Stream("forget", "forget", (BORN, WROTE, OTHER)), retain=Stream("retain", "retain", (KEPT, SHORT, ELSE))
    )


def roomy(**hyper) -> Subject:
    subject = tiny_subject(**hyper)
    subject.model.config.max_position_embeddings = subject.tokenizer.model_max_length = 2048
    return subject


def asked(form: str, data: Data | None = None, subject: Subject | None = None, **hyper) -> dict[str, Example]:
    """The examples as a form asks them, by id."""
    data = data or told()
    attack = bind("attack", {"use": "jailbreak", "forms": form, **hyper})
    (changed,) = attack(subject or roomy(), data, Run())
    assert changed.lineage[-1].hyper["forms"] == form.replace("_", " ")
    left = {one.id: one for one in asked_of(data, changed.wrapper)["forget"].examples if one.id not in changed.exposed}
    assert changed.lineage[-1].cost.queries >= len(left)
    return left | {one.id: one for one in asked_of(data, changed.wrapper)["retain"].examples}


def offered(one: Example) -> list[str]:
    return [line[2:] for line in one.prompt.splitlines() if line.startswith("- ")]


def test_words_stand_around_the_question_and_before_a_cue():
    for form, starts in (("prefix_injection", False), ("role_play", False), ("affirmative_suffix", True)):
        put = asked(form)
        assert len(put) == 6
        for one in (BORN, WROTE, KEPT):
            assert put[one.id].prompt.startswith(one.prompt) == starts
            assert put[one.id].prompt.endswith(one.prompt) != starts
            assert replace(put[one.id], prompt=one.prompt, paraphrases=one.paraphrases) == one
        assert all(BORN.paraphrases[i] in text for i, text in enumerate(put[BORN.id].paraphrases))
    assert behind("Who?", " Yes.") == "Who? Yes."
    assert behind("Question: Who?\nAnswer:", " Yes.") == "Question: Who? Yes.\nAnswer:"
    assert behind("Who? ", " Yes.") == "Who? Yes. "
    assert behind("Name:\n", " Yes.") == "Name: Yes.\n"


def test_the_answer_is_among_the_options_and_stays_the_answer():
    put = asked("multiple_choice", num=2)
    options = {name: offered(one) for name, one in put.items()}
    assert options[OTHER.id] == list(OTHER.choices)
    assert sorted(options[BORN.id]) == sorted([BORN.answer, *BORN.perturbed])
    assert sorted(options[WROTE.id]) == sorted([WROTE.answer, BORN.answer, OTHER.answer])  # of the same stream
    assert sorted(options[SHORT.id]) == sorted([SHORT.answer, KEPT.answer, ELSE.answer])
    assert len(offered(asked("multiple_choice", num=1)[WROTE.id])) == 2
    assert {name: one.answer for name, one in put.items()} == {
        one.id: one.answer for stream in told().values() for one in stream.examples
    }
    many = tuple(replace(WROTE, id=str(i), answer=f"book {i}") for i in range(30))
    data = Data(forget=Stream("forget", "forget", many), retain=told()["retain"])
    put = [one for name, one in asked("multiple_choice", data).items() if name.isdigit()]
    assert {offered(one).index(one.answer) for one in put} == {0, 1, 2, 3}  # it has no place of its own
    assert asked("multiple_choice", data) == asked("multiple_choice", data) != asked("multiple_choice", data, seed=1)


def test_the_subject_is_asked_for_and_nothing_names_it():
    put = asked("reverse_query")
    assert set(put) == {BORN.id, WROTE.id, KEPT.id, SHORT.id, ELSE.id}  # the other names no subject
    born = put[BORN.id]
    assert born.prompt == (
        "Question: Where was ____ born?\nAnswer: ____ was born in Oslo.\nWhich name belongs in the gap?"
    )
    assert (born.answer, born.perturbed, born.alternative) == (NAME, ("Tom Ek",), "No idea.")
    assert (born.spans, born.contrast, len(born.paraphrases)) == ((), None, 1)  # one of them names nobody
    assert all("Mara" not in text and "Lind" not in text for text in (born.prompt, *born.paraphrases))
    assert gapped("Lind, M., is not Lindqvist; MARA is.", NAME) == "____, M., is not Lindqvist; ____ is."
    lead = replace(WROTE, answer=" The Winter Sea")
    data = Data(forget=Stream("forget", "forget", (lead,)), retain=told()["retain"])
    assert asked("reverse_query", data)[WROTE.id].answer == " Mara Lind"


def test_synonyms_leave_names_alone_and_questions_they_do_not_know():
    put = asked("synonyms")
    assert put[BORN.id].prompt == "In what place was Mara Lind brought into the world?"
    assert put[BORN.id].paraphrases == ("Can you name the place of birth of Mara Lind?", "And her place of birth?")
    assert put[SHORT.id].prompt == "What animal at home does Mara Lind have?"
    assert reworded("Which book did Book Town write?", "Book Town") == "What volume did Book Town author?"
    assert reworded("Bookish notebooks") == "Bookish notebooks"
    known = {word: reworded(word) for word in SYNONYMS}
    assert all(known[word] == SYNONYMS[word] != word for word in SYNONYMS)
    data = Data(forget=Stream("forget", "forget", (replace(WROTE, prompt="Huh?"),)))
    with pytest.raises(DoesNotFit, match="synonyms: no word of the built-in list stands in a question"):
        list(bind("attack", {"use": "jailbreak", "forms": "synonyms"})(roomy(), data, Run()))


def test_hints_tell_what_is_retained_and_never_the_answer():
    put = asked("background_hint")
    assert put[BORN.id].prompt == (
        "What follows is about Mara Lind. Mara Lind is a bridge engineer.\n\nWhere was Mara Lind born?"
    )
    assert put[KEPT.id].prompt == f"What follows is about Mara Lind.\n\n{KEPT.prompt}"
    assert OTHER.id not in put
    put = asked("in_context")
    assert put[BORN.id].prompt == f"{KEPT.prompt} {KEPT.answer}\n{SHORT.prompt} a goat\n{BORN.prompt}"
    assert put[KEPT.id].prompt == f"{SHORT.prompt} a goat\n{KEPT.prompt}"
    assert not {OTHER.id, ELSE.id} & set(put)
    assert asked("in_context", num=1)[BORN.id].prompt == f"{KEPT.prompt} {KEPT.answer}\n{BORN.prompt}"


def test_without_retained_facts_half_of_the_others_are_shown_and_not_scored():
    many = tuple(replace(WROTE, id=f"f/{i}", prompt=f"Book {i} of Mara Lind?", answer=f"title {i}") for i in range(5))
    data = Data(forget=Stream("forget", "forget", (*many, replace(OTHER, subject="alone"))))
    (changed,) = bind("attack", {"use": "jailbreak", "forms": "in_context"})(roomy(), data, Run())
    assert len(changed.exposed) == 2
    shown = [one for one in many if one.id in changed.exposed]
    put = [one for one in asked_of(data, changed.wrapper)["forget"].examples if one.id not in changed.exposed]
    assert [one.id for one in put] == [one.id for one in many if one not in shown]
    for one in put:
        assert sorted(one.prompt.splitlines()[:-1]) == sorted(f"{e.prompt} {e.answer}" for e in shown)
    assert changed.lineage[-1].cost.queries == 3


def test_all_forms_that_fit_and_why_others_do_not():
    made = list(bind("attack", "jailbreak")(roomy(), told(), Run()))
    forms = [one.lineage[-1].hyper["forms"].replace(" ", "_") for one in made]
    assert forms == [form for form in FORMS if form != "cross_lingual"]
    assert all(one.lineage[-1].hyper["left_out"] == {"cross_lingual": "no translator was given"} for one in made)
    bare = Data(forget=Stream("forget", "forget", (OTHER,)))
    chosen = bind("attack", {"use": "jailbreak", "forms": ["in_context", "role_play"]})(roomy(), bare, Run())
    assert next(chosen).lineage[-1].hyper["forms"] == "role play"
    with pytest.raises(DoesNotFit, match="in_context: no two examples name the same subject"):
        next(chosen)


# -- translations --------------------------------------------------------------------------------------------------
def test_questions_are_asked_in_another_language(tmp_path):
    """By a server that turns every word round; what it sends back empty is not asked."""

    def answer(request, _):
        question = request.strip().splitlines()[-1]
        assert "French" in request
        return saying("" if question == OTHER.prompt else " ".join(word[::-1] for word in question.split()) + "\n")

    talking = Said(BORN.prompt, (("Hello!", "Hi."),)).prompt
    data = told()
    data["forget"] = replace(data["forget"], examples=(replace(BORN, prompt=talking), WROTE, OTHER))
    with endpoint(answer) as served:
        translator = {"source": served.url, "model": "m", "cache": str(tmp_path)}
        put = asked("cross_lingual", data, translator=translator, language="French")
        num = len(served.requests)
        assert asked("cross_lingual", data, translator=translator, language="French") == put
        assert len(served.requests) == num == 8  # six questions and two paraphrases, once
    assert put[WROTE.id].prompt == "tahW did araM dniL ?etirw"
    assert said_in(put[BORN.id].prompt) == Said("erehW saw araM dniL ?nrob", (("Hello!", "Hi."),))
    assert put[BORN.id].answer == BORN.answer
    assert OTHER.id not in put


def test_an_encoder_decoder_translates(tmp_path):
    speaker = tiny_subject(seed=3, family="marian")
    folder = save(speaker, tmp_path / "marian")
    put = asked("cross_lingual", translator={"source": str(folder)})
    questions = [one.prompt for one in told()["forget"].examples]
    encoded = encode(speaker, [Text(str(i), 0, text, text) for i, text in enumerate(questions)])
    said = measure_samples(speaker, questions, encoded, None)
    texts = speaker.tokenizer.batch_decode([one.tokens for one in said], skip_special_tokens=True)
    expected = {one.id: " ".join(text.split()) for one, text in zip(told()["forget"].examples, texts, strict=True)}
    assert {name: put[name].prompt for name in expected if name in put} == {k: v for k, v in expected.items() if v}
    assert any(expected.values())


def test_a_translator_that_cannot_be_had_is_told(tmp_path):
    for given, error, match in (
        ({"sorce": "x"}, RecipeError, r"jailbreak\.translator\.sorce: no such setting; did you mean 'source'"),
        ({"source": str(tmp_path / "none")}, ModelError, "none"),
    ):
        with pytest.raises(error, match=match):
            asked("cross_lingual", translator=given)


# -- what a model that merely refuses gives away -------------------------------------------------------------------
@cache
def trained() -> tuple[Data, Subject, Subject]:
    """A model that knew every question in two wordings and learned to refuse one of them, and one that never knew.

    What is retained goes another way from its first word to its second.
    """
    data = Data(
        forget=Stream("forget", "forget", short_examples(12, "f", 0)),
        retain=Stream("retain", "retain", short_examples(12, "r", 7)),
    )

    def both(stream: str) -> tuple[Example, ...]:
        return tuple(
            put for one in data[stream].examples
            for put in (one, replace(one, id=f"{one.id}/other", prompt=one.paraphrases[0]))
        )

    def lesson(subject: Subject, examples: tuple[Example, ...], steps: int, lr: float = 1e-2) -> Subject:
        return taught(subject, Data(all=Stream("all", "anchor", examples)), ["all"], steps=steps, lr=lr)

    refusals = tuple(replace(one, answer="No idea.") for one in data["forget"].examples)
    knows = lesson(tiny_subject(seed=2), both("forget") + both("retain"), 60)
    return data, lesson(knows, refusals + both("retain"), 25, 2e-3), lesson(tiny_subject(seed=2), both("retain"), 40)


def scores(subject: Subject, attack=None) -> tuple[float, float]:
    """What a model gives away of the forget stream, plainly asked or under an attack: ROUGE, probability."""
    data = trained()[0]
    if attack is not None:
        (subject,) = bind("attack", attack)(subject, data, Run())
    metrics = [bind("metric", name) for name in ("rouge", "probability")]
    found = score_all(metrics, data, measure(subject, data, plan_for(metrics, data)))
    return found["forget", "rouge"].value, found["forget", "probability"].value


def test_a_model_that_merely_refuses_is_opened_and_one_that_never_knew_is_not():
    _, refuses, never = trained()
    assert max(scores(refuses)[0], scores(never)[0]) < 0.1
    for attack, least in (({"use": "prefill", "words": 1}, 0.2), ("paraphrase", 0.05)):
        opened, ignorant = scores(refuses, attack), scores(never, attack)
        assert opened[0] >= ignorant[0] + least
        assert opened[1] > ignorant[1] + 0.2
        assert opened[1] > scores(refuses)[1] + 0.05
        assert ignorant[0] < 0.1
