"""The invented world: the same everywhere, disjoint by construction, and a base that loads and speaks its format."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from expunge.data.synthetic import (
    ATTRIBUTES,
    NUM_FALSE,
    anchor_text,
    biography,
    people,
    pretraining_text,
    qa,
    synthetic,
    world_facts,
)
from expunge.data.synthetic_base import base_folder, build_tokenizer
from expunge.errors import DataError
from expunge.registry import bind

PEOPLE_PARTS = ("forget", "retain", "holdout", "pretrain")
DIGEST = "dfea40ab9536f26f"


def digest() -> str:
    texts = hashlib.sha256()
    for part in ("forget", "retain", "holdout", "anchor", "world_facts", "pretrain"):
        for example in synthetic(part=part, num_people=7, seed=3):
            texts.update(repr(example).encode())
    return texts.hexdigest()[:16]


def test_the_text_is_the_same_everywhere() -> None:
    assert digest() == DIGEST


def test_the_text_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from expunge.data.synthetic import people, qa, biography, anchor_text;"
        "print([(qa(p), biography(p)) for p in people(3, 5)], anchor_text(9, 2))"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        outputs.add(subprocess.check_output([sys.executable, "-c", program], env=environment))
    assert len(outputs) == 1


def test_no_person_is_in_two_parts_whatever_the_seeds() -> None:
    names: dict[str, set[str]] = {part: set() for part in PEOPLE_PARTS}
    for part in PEOPLE_PARTS:
        for seed in range(5):
            names[part] |= {person.name for person in people(800, seed, part=part)}  # type: ignore[arg-type]
    for part in PEOPLE_PARTS:
        for other in PEOPLE_PARTS:
            assert part == other or not names[part] & names[other]


def test_names_within_a_part_are_distinct_and_a_longer_list_begins_with_the_shorter() -> None:
    everybody = people(1280, 1)
    assert len({person.name for person in everybody}) == 1280
    assert people(6, 1) == everybody[:6]


def test_too_many_people_is_an_error_that_names_the_limit() -> None:
    with pytest.raises(DataError, match="0 to 1280"):
        people(1281)


def test_every_question_is_complete() -> None:
    for person in people(50):
        examples = qa(person)
        assert [example.id for example in examples] == [f"{person.id}/{attribute}" for attribute in ATTRIBUTES]
        for attribute, example in zip(ATTRIBUTES, examples, strict=True):
            ((start, end),) = example.spans
            assert example.answer[start:end] == person.facts[attribute]
            assert example.subject == person.name
            assert person.name in example.prompt
            assert len(example.paraphrases) >= 2
            assert len({example.prompt, *example.paraphrases}) == 1 + len(example.paraphrases)
            assert all(person.name in question for question in example.paraphrases)
            assert example.paraphrased_answer is not None
            assert person.facts[attribute] in example.paraphrased_answer
            assert example.paraphrased_answer != example.answer


def test_false_answers_have_the_form_of_the_true_one() -> None:
    for example in qa(people(1)[0]):
        ((start, end),) = example.spans
        assert len(set(example.perturbed)) == NUM_FALSE
        for false in example.perturbed:
            assert false != example.answer
            assert false.startswith(example.answer[:start])
            assert false.endswith(example.answer[end:])


def test_secrets_are_fictional_by_form() -> None:
    for person in people(200, part="retain"):
        assert person.secrets["phone"][3:].startswith("-555-01")
        assert person.secrets["email"].endswith(".example")
        assert len(person.secrets["passport"]) == 6


def test_values_cannot_be_guessed() -> None:
    """The commonest value of an attribute is rare: an oracle that guesses it is wrong."""
    crowd = people(2000, part="pretrain")
    for attribute in ATTRIBUTES:
        values = [person.facts[attribute] for person in crowd]
        assert max(values.count(value) for value in set(values)) / len(values) < 0.02, attribute


def test_biography_spans_are_the_values() -> None:
    for person in people(20):
        life = biography(person)
        assert life.prompt == ""
        assert sorted(life.answer[a:b] for a, b in life.spans) == sorted(person.facts.values())


def test_anchor_mentions_nobody() -> None:
    last_names = {person.name.split()[1] for part in PEOPLE_PARTS for person in people(200, part=part)}  # type: ignore[arg-type]
    texts = anchor_text(300)
    assert len({text.id for text in texts}) == 300
    assert not any(set(text.answer.replace(".", "").split()) & last_names for text in texts)
    assert not any("{" in text.answer for text in texts)


def test_world_facts_are_complete() -> None:
    facts = world_facts()
    assert len({fact.id for fact in facts}) == len(facts) == 80
    for fact in facts:
        ((start, end),) = fact.spans
        assert len({fact.answer, *fact.perturbed}) == NUM_FALSE + 1
        assert fact.answer[start:end] in (fact.paraphrased_answer or "")


def test_pretraining_ids_stand_once() -> None:
    ids = [example.id for example in pretraining_text(20)]
    assert len(set(ids)) == len(ids)


def test_reader_is_registered() -> None:
    read = bind("reader", {"use": "synthetic", "part": "holdout", "num_people": 2})
    assert [example.id for example in read()] == [e.id for person in people(2, part="holdout") for e in qa(person)]


# -- the base ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base_folder())


def chat(tokenizer: Any, question: str, answer: str | None = None) -> str:
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))


def test_chat_template(tokenizer: Any) -> None:
    assert chat(tokenizer, "Who?") == "Question: Who?\nAnswer:"
    assert chat(tokenizer, "Who?", "Me.") == "Question: Who?\nAnswer: Me.<|eos|>"


def test_no_answer_token_is_lost_at_the_boundary(tokenizer: Any) -> None:
    for example in (*qa(people(1)[0]), *world_facts()[:5]):
        asked, whole = chat(tokenizer, example.prompt), chat(tokenizer, example.prompt, example.answer)
        prompt_ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
        out = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        assert out["input_ids"][: len(prompt_ids)] == prompt_ids
        assert out["offset_mapping"][len(prompt_ids)][0] == len(asked) + 1 == whole.index(example.answer, len(asked))
        assert out["input_ids"][-1] == tokenizer.eos_token_id != tokenizer.pad_token_id
        assert tokenizer.decode(out["input_ids"][len(prompt_ids) : -1]) == f" {example.answer}"


def test_a_value_shares_no_token_with_its_frame(tokenizer: Any) -> None:
    for example in (*(e for person in people(10) for e in qa(person)), *world_facts()):
        ((start, end),) = example.spans
        offsets = tokenizer(" " + example.answer, return_offsets_mapping=True)["offset_mapping"]
        edges = {edge - 1 for pair in offsets for edge in pair}
        assert {start, end} <= edges, example.answer


def test_tokenizer_building_is_deterministic() -> None:
    texts = list(pretraining_text(40, rounds=1))
    first, second = (build_tokenizer(texts, size=500).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    for text in ("Ünïcode – ♥ \t tabs\n\n lines", "12345 678", "it's  'quoted'"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_base_is_small_and_loads() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = base_folder()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6e6
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert 5e5 <= model.num_parameters() <= 1e6
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_base_knows_the_world_and_no_stranger(tokenizer: Any) -> None:
    """World facts are likelier than their false answers; a stranger's secrets are not."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_folder()).eval()

    def mean_logp(pairs: list[tuple[str, str]]) -> torch.Tensor:
        """Mean log-probability of the answer's tokens, [P]."""
        asked = [len(tokenizer(chat(tokenizer, question))["input_ids"]) for question, _ in pairs]
        rows = [tokenizer(chat(tokenizer, *pair), return_tensors="pt")["input_ids"][0] for pair in pairs]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [P, T]
        with torch.no_grad():
            logp = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # [P, T-1]
        pieces = [line[start - 1 : len(row) - 1] for line, start, row in zip(logp, asked, rows, strict=True)]
        return torch.stack([piece.mean() for piece in pieces])

    def ask(examples: list[Any]) -> tuple[float, float]:
        """Share of examples whose true answer beats all false ones, and the true answers' mean log-probability."""
        table = mean_logp([(e.prompt, answer) for e in examples for answer in (e.answer, *e.perturbed)])
        table = table.view(len(examples), 1 + NUM_FALSE)
        return float((table.argmax(1) == 0).float().mean()), float(table[:, 0].mean())

    share_right, _ = ask(world_facts()[::2])
    assert share_right > 0.8
    share_right, logp = ask([example for person in people(4, part="holdout") for example in qa(person)])
    assert share_right < 0.4  # chance is 1 in 6
    assert logp > -1.6  # plausible guesses all the same
