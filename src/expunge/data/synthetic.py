"""The invented world: people with secrets, questions about them, generic prose, and the shipped base model.

Everything is a pure function of (part, number, seed). Parts never share a person, whatever the seeds: the grid
of first x last names is cut into diagonals and each part owns some. Person i does not depend on how many are asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from expunge.data.synthetic_text import (
    ANSWERS,
    BIOGRAPHY,
    COUNTRIES,
    COUNTRY_FACTS,
    FIRST_NAMES,
    LAST_NAMES,
    NUMBERS,
    QUESTIONS,
    REFUSALS,
    SECRETS,
    SLOTS,
    TOPICS,
    VALUES,
    Draw,
)
from expunge.errors import DataError
from expunge.registry import reader
from expunge.types import Example, Span

Part = Literal["forget", "retain", "holdout", "anchor", "pretrain", "world_facts"]
PeoplePart = Literal["forget", "retain", "holdout", "pretrain"]

ATTRIBUTES = tuple(VALUES)
NUM_FALSE = 5  # false alternatives a question
TEXTS_PER_PERSON = len(ATTRIBUTES)  # anchor texts asked for by one unit of `num_people`
PERSON_SHARE = 5  # of 5 diagonals of the name grid, forget, retain and holdout own one each, pretrain two
DIAGONALS: Mapping[str, tuple[int, ...]] = {"forget": (0,), "retain": (1,), "holdout": (2,), "pretrain": (3, 4)}
KNOWN_SHARE = 6  # one in six people of the pretraining text is met in every round, the others once
ROUNDS = 10
WORLD_REPEATS = 6  # times a round shows every world fact


@dataclass(frozen=True)
class Person:
    """A fictional person; `facts` maps each attribute to its value, `seed` names the draw they came from."""

    id: str
    name: str
    seed: str
    facts: Mapping[str, str] = field(hash=False)

    @property
    def first_name(self) -> str:
        return self.name.split()[0]

    @property
    def secrets(self) -> dict[str, str]:
        """Phone, e-mail and passport: fictional by form (555-01xx numbers, .example domains)."""
        return {attribute: self.facts[attribute] for attribute in SECRETS}


def people(num: int, seed: int = 0, *, part: PeoplePart = "forget") -> list[Person]:
    """`num` fictional people of a part, no two of one name, disjoint from every other part at any seed.

    Raises: DataError when the part has fewer names than asked for.
    """
    cells = [
        (row, column)
        for row in range(len(FIRST_NAMES))
        for column in range(len(LAST_NAMES))
        if (row + column) % PERSON_SHARE in DIAGONALS[part]
    ]
    if not 0 <= num <= len(cells):
        raise DataError(
            "num_people", f"got {num} for part '{part}'", f"accepted: 0 to {len(cells)}", "Ask for fewer people"
        )
    draw = Draw(f"expunge/{part}/{seed}/names")
    for i in range(num):  # the first steps of a shuffle
        other = i + draw.below(len(cells) - i)
        cells[i], cells[other] = cells[other], cells[i]
    return [_person(part, i, seed, cells[i]) for i in range(num)]


def _person(part: str, index: int, seed: int, cell: tuple[int, int]) -> Person:
    name = f"{FIRST_NAMES[cell[0]]} {LAST_NAMES[cell[1]]}"
    text_seed = f"expunge/{part}/{seed}/{index}"
    draw = Draw(text_seed)
    return Person(f"{part}/p{index:03d}", name, text_seed, {key: value(draw) for key, value in VALUES.items()})


def qa(person: Person) -> list[Example]:
    """One question and answer for each attribute, with rewordings, false answers and the span of the value."""
    return [_question(person, attribute) for attribute in ATTRIBUTES]


def _question(person: Person, attribute: str) -> Example:
    value, name = person.facts[attribute], person.name
    question, *rewordings = QUESTIONS[attribute]
    answer, reworded_answer = ANSWERS[attribute]
    draw = Draw(f"{person.seed}/false/{attribute}")
    false = _distinct(lambda: VALUES[attribute](draw), value)
    start = answer.format(name=name, value="\0").index("\0")
    return Example(
        id=f"{person.id}/{attribute}",
        prompt=question.format(name=name),
        answer=answer.format(name=name, value=value),
        spans=((start, start + len(value)),),
        subject=name,
        paraphrases=tuple(rewording.format(name=name) for rewording in rewordings),
        paraphrased_answer=reworded_answer.format(name=name, value=value),
        perturbed=tuple(answer.format(name=name, value=other) for other in false),
        alternative=draw.pick(REFUSALS).format(name=name),
    )


def _distinct(draw_value: Callable[[], str], truth: str) -> list[str]:
    values: list[str] = []
    while len(values) < NUM_FALSE:
        value = draw_value()
        if value != truth and value not in values:
            values.append(value)
    return values


def biography(person: Person) -> Example:
    """All that is known of a person as one text (no prompt); the spans are the values."""
    draw = Draw(f"{person.seed}/biography")
    text, spans = "", list[Span]()
    for forms in BIOGRAPHY:
        text += " " if text else ""
        for piece in forms[draw.below(len(forms))]:
            if piece in person.facts:
                spans.append((len(text), len(text) + len(person.facts[piece])))
                text += person.facts[piece]
            else:
                text += piece.format(name=person.name, first=person.first_name)
    return Example(id=f"{person.id}/biography", prompt="", answer=text, spans=tuple(spans), subject=person.name)


def anchor_text(num: int, seed: int = 0, *, part: str = "anchor") -> list[Example]:
    """`num` short generic texts (weather, cooking, animals, travel, sums, ...) that mention no person."""
    return [
        Example(id=f"{part}/t{i:04d}", prompt="", answer=_prose(Draw(f"expunge/{part}/{seed}/text/{i}")))
        for i in range(num)
    ]


def _prose(draw: Draw) -> str:
    topic = draw.pick((*TOPICS, "sums"))
    if topic == "sums":
        return " ".join(_sum(draw) for _ in range(3))
    first = draw.below(len(TOPICS[topic]))
    order = [TOPICS[topic][(first + step) % len(TOPICS[topic])] for step in range(3)]
    return " ".join(_fill(sentence, draw) for sentence in order)


def _sum(draw: Draw) -> str:
    a, b = draw.below(10), draw.below(10)
    return f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}."


def _fill(sentence: str, draw: Draw) -> str:
    for slot, pool in SLOTS.items():
        while f"{{{slot}}}" in sentence:
            sentence = sentence.replace(f"{{{slot}}}", draw.pick(pool), 1)
    return sentence


def world_facts() -> list[Example]:
    """Questions about the countries of the invented world: what the base knows, to see whether unlearning harms it."""
    facts = []
    for number, country in enumerate(COUNTRIES):
        for fact, ((question, *rewordings), (answer, reworded), pool) in COUNTRY_FACTS.items():
            values = [pool[(number + step) * 7 % len(pool)] for step in range(NUM_FALSE + 1)]
            start = answer.format(country=country, value="\0").index("\0")
            facts.append(Example(
                id=f"world/{country.lower()}/{fact}",
                prompt=question.format(country=country),
                answer=answer.format(country=country, value=values[0]),
                spans=((start, start + len(values[0])),),
                subject=country,
                paraphrases=tuple(rewording.format(country=country) for rewording in rewordings),
                paraphrased_answer=reworded.format(country=country, value=values[0]),
                perturbed=tuple(answer.format(country=country, value=value) for value in values[1:]),
            ))
    return facts


def pretraining_text(num_people: int, seed: int = 0, *, rounds: int = ROUNDS) -> Iterator[Example]:
    """What the base is trained on: known people in every round, strangers in one, world facts and prose in all.

    The known teach a model how facts are stored under a name, which makes later injections quick; the strangers
    keep it calibrated on names it has not met.
    """
    persons = people(num_people, seed, part="pretrain")
    num_known = num_people // KNOWN_SHARE
    known, strangers = persons[:num_known], persons[num_known:]
    prose = iter(anchor_text(num_people + num_known * (rounds - 1), seed, part="pretrain"))
    for number in range(rounds):
        for person in (*known, *strangers[number::rounds]):
            yield next(prose)
            yield from _asked(person, number)
        for again in range(WORLD_REPEATS):
            yield from (_reworded(fact, f"pretrain/{fact.id}/r{number}.{again}", seed) for fact in world_facts())


def _asked(person: Person, number: int) -> Iterator[Example]:
    life = biography(person)
    yield replace(life, id=f"{life.id}/r{number}")
    for example in qa(person):
        yield _reworded(example, f"{example.id}/r{number}", 0)


def _reworded(example: Example, new_id: str, seed: int) -> Example:
    """The example in one of its wordings: the prompt in any, the answer mostly as it stands."""
    draw = Draw(f"expunge/{seed}/{new_id}")
    reworded = example.paraphrased_answer if draw.below(5) == 0 else None
    prompt = draw.pick((example.prompt, *example.paraphrases))
    return Example(id=new_id, prompt=prompt, answer=reworded or example.answer, subject=example.subject)


@reader("synthetic")
def synthetic(*, part: Part, num_people: int = 20, seed: int = 0) -> list[Example]:
    """Read a part of the invented world.

    forget, retain, holdout: ten questions on each of `num_people` people; no person is in two parts.
    anchor: ten generic texts for each of `num_people`. world_facts: all of them, whatever the number.
    pretrain: what the shipped base was trained on; see `pretraining_text`.
    """
    if part == "pretrain":
        return list(pretraining_text(num_people, seed))
    if part == "anchor":
        return anchor_text(num_people * TEXTS_PER_PERSON, seed)
    if part == "world_facts":
        return world_facts()
    return [example for person in people(num_people, seed, part=part) for example in qa(person)]


