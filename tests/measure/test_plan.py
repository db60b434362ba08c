"""The planner: every instrument once, tables kept, and reasons for what could not be had."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import expunge.measure.plan as planner
import expunge.measure.tables as tables_module
from expunge.errors import DataError, RecipeError, StorageError
from expunge.measure.desk import Desk
from expunge.measure.plan import Plan, measure
from expunge.measure.tables import NotMeasured, Table, Tables
from expunge.models import clone, load, save, weights_hash
from expunge.registry import Entry, bind
from expunge.scopes.weights import lora
from expunge.scoring import applies, label, plan_for, score, score_all
from expunge.testing import tiny_subject
from expunge.types import Data, Event, Needs, Stream, Wrapper
from support.learned import knows, short_data
from support.streams import examples, small_data

METRICS = [bind("metric", name) for name in (
    "probability", "perplexity", "memorization_accuracy", "extraction_strength", "truth_ratio", "membership", "rouge",
)]


class Counter:
    """Sequences run forward while active."""

    def __init__(self, subject):
        self.model, self.rows = subject.model, 0

    def __enter__(self):
        def count(_, args, kwargs):
            self.rows += len(kwargs["input_ids"])

        self.handle = self.model.register_forward_pre_hook(count, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.handle.remove()


def equal(one, other) -> bool:
    same = one.tables.keys() == other.tables.keys() and one.missing == other.missing
    return same and all(one.tables[key].arrow.equals(other.tables[key].arrow) for key in one.tables)


def teacher_forced():
    return [metric for metric in METRICS if metric.name != "rouge"]


def test_the_union_runs_every_text_once(tiny):
    """36 answers; 12 + 9 paraphrased answers (truth_ratio: forget and holdout); 2 * 36 false answers (probability).

    Seven metrics, three streams, 129 texts, and 36 questions that every text shares with others: 36 forwards, and
    the five that try whether the model can share.
    """
    data = small_data()
    with Counter(tiny) as counter:
        measured = measure(tiny, data, plan_for(teacher_forced(), data))
    assert counter.rows == measured.forwards == 36 + 5
    assert sum(len(table) for table in measured.tables.values()) == 36 + 21 + 72 + 21
    assert sorted(measured.tables) == sorted(
        [(name, "tokens", "answer") for name in data] + [(name, "tokens", "perturbed") for name in data]
        + [(name, "tokens", "paraphrased_answer") for name in ("forget", "holdout")]
        + [(name, "texts", "answer") for name in ("forget", "holdout")]
    )
    assert measured.missing == {}
    answers = measured.tables["forget", "tokens", "answer"]
    assert answers.ids == [f"f/{i}" for i in range(12)]
    false = measured.tables["forget", "tokens", "perturbed"]
    assert false.ids == [f"f/{i}" for i in range(12) for _ in range(2)]
    assert false.items.tolist() == [0, 1] * 12


def test_every_metric_alone_gives_what_it_gives_together(tiny):
    data = small_data()
    together = score_all(METRICS, data, measure(tiny, data, plan_for(METRICS, data)))
    assert len(together) == sum(len(applies(metric, data)) for metric in METRICS)
    for metric in METRICS:
        alone = score_all([metric], data, measure(tiny, data, plan_for([metric], data)))
        for key, found in alone.items():
            assert found.value == pytest.approx(together[key].value, rel=1e-5), key


def test_stored_tables_are_read_back_without_a_forward(tiny, tmp_path):
    data = small_data()
    first = measure(tiny, data, plan_for(METRICS, data), cache=tmp_path)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == len(first.tables)
    with Counter(tiny) as counter:
        again = measure(tiny, data, plan_for(METRICS, data), cache=tmp_path)
    assert counter.rows == again.forwards == again.tokens == 0
    assert equal(first, again)
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def move_a_weight(subject, data):
    with torch.no_grad():
        subject.model.model.norm.weight[0] += 1e-3
    return subject, data


def change_a_text(subject, data):
    stream = data["forget"]
    changed = (replace(stream.examples[0], answer="Another answer."), *stream.examples[1:])
    return subject, Data(data | {"forget": replace(stream, examples=changed)})


def change_the_template(subject, data):
    return replace(subject, wrapper=Wrapper("Q: {prompt} A: {answer}")), data


def ask_in_other_words(subject, data):
    return replace(subject, wrapper=replace(subject.wrapper, ask="paraphrase:0")), data


@pytest.mark.parametrize(("change", "rerun"), [
    (move_a_weight, 36), (change_a_text, 12), (change_the_template, 36), (ask_in_other_words, 36),
])
def test_what_was_changed_is_measured_again(tiny, tmp_path, change, rerun):
    metrics = [bind("metric", "memorization_accuracy")]
    data = small_data()
    measure(tiny, data, plan_for(metrics, data), cache=tmp_path)
    subject, data = change(tiny, data)
    again = measure(subject, data, plan_for(metrics, data), cache=tmp_path)
    assert again.forwards == rerun
    assert equal(again, measure(subject, data, plan_for(metrics, data)))


def test_another_chat_template_is_another_text(tiny, tmp_path):
    """Same weights, same texts, same template name: the tokenizer's own template decides what the model reads."""
    data, plan = small_data(), plan_for([bind("metric", "memorization_accuracy")], small_data())
    turn = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    opening = "{% if add_generation_prompt %}assistant: {% endif %}"
    counts = []
    for template in (turn + opening, turn.replace(": ", "> ") + opening.replace(": ", "> "), turn + opening):
        tokenizer = copy.deepcopy(tiny.tokenizer)
        tokenizer.chat_template = template
        subject = replace(tiny, tokenizer=tokenizer, wrapper=Wrapper("chat"))
        counts.append(measure(subject, data, plan, cache=tmp_path).forwards)
    assert counts == [36, 36, 0]


# -- what besides the weights names a stored table ------------------------------------------------------------------
def asked(*needs: Needs) -> Plan:
    plan = Plan()
    plan.add("forget", needs or [Needs("tokens")])
    return plan


def adapted(subject):
    """An adapter that says something: B is not zero."""
    moved = clone(subject)
    model = lora(moved.model, rank=2).model
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    return replace(moved, model=model)


def adapters_off(subject):
    subject.model.base_model.disable_adapter_layers()


def weaker_adapter(subject):
    for module in subject.model.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] /= 2


def no_adapter_active(subject):
    for module in subject.model.modules():
        if hasattr(module, "lora_A"):
            module._active_adapter = []


def other_rope(subject):
    subject.model.config.rope_parameters["rope_theta"] *= 2


def other_end(subject):
    subject.model.generation_config.eos_token_id = [0, 7]


def shorter_context(subject):
    subject.model.config.max_position_embeddings //= 2


def other_special_tokens(subject):
    """Which its file does not tell."""
    subject.tokenizer.pad_token = subject.tokenizer.convert_ids_to_tokens(40)


@pytest.mark.parametrize(
    "change",
    [adapters_off, weaker_adapter, no_adapter_active, other_rope, other_end, shorter_context, other_special_tokens],
)
def test_the_same_weights_in_other_settings_are_another_model(tiny, tmp_path, change):
    subject, data = adapted(tiny), small_data()
    subject = replace(subject, tokenizer=copy.deepcopy(subject.tokenizer))
    weights = weights_hash(subject)
    assert measure(subject, data, asked(), cache=tmp_path).forwards == 12
    change(subject)
    assert weights_hash(subject) == weights
    again = measure(subject, data, asked(), cache=tmp_path)
    assert again.forwards == 12
    assert equal(again, measure(subject, data, asked()))


def test_a_folder_loaded_twice_is_the_same_model(tiny, tmp_path):
    """As is the model that was saved there, with or without an adapter."""
    save(tiny, tmp_path / "whole")
    base = load(str(tmp_path / "whole"), template=tiny.wrapper.template)
    subject = adapted(base)
    save(subject, tmp_path / "adapter")
    for first, folder in ((tiny, "whole"), (subject, "adapter")):
        given = [first, *(load(str(tmp_path / folder), template=tiny.wrapper.template) for _ in range(2))]
        counts = [measure(one, small_data(), asked(), cache=tmp_path / "tables").forwards for one in given]
        assert counts == [12, 0, 0], folder


def test_settings_read_the_same_in_every_process():
    """Sets have an order of their own in every process, objects an address."""
    given = {"b": {"z", "a", "k"}, "a": (1, object()), "_name_or_path": "/here", "deep": {"transformers_version": 1}}
    assert planner._read(given) == {"a": [1, "<object object>"], "b": ["a", "k", "z"], "deep": {}}


def test_a_smaller_model_with_the_same_tokenizer_is_told_so(tiny):
    """The texts were tokenised before, for a model that has a row for every token."""
    data = small_data()
    measure(tiny, data, asked())
    small = clone(tiny)
    small.model.resize_token_embeddings(30)
    with pytest.raises(DataError, match="30 rows"):
        measure(small, data, asked())


# -- the model is measured as it answers, and left as it was --------------------------------------------------------
def test_a_model_in_training_is_measured_as_it_answers():
    """No dropout, keys and values in spite of checkpointing; every module is then in the mode it was in."""
    subject, data = tiny_subject(family="gpt2"), small_data()
    plan = plan_for([bind("metric", "rouge"), bind("metric", "membership")], data)
    still = measure(subject, data, plan)
    model = subject.model.train()
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its name since 5.x
    subject.model.transformer.h[0].eval()
    modes = [module.training for module in subject.model.modules()]
    assert equal(measure(subject, data, plan), still)
    assert [module.training for module in subject.model.modules()] == modes
    with pytest.raises(RecipeError):
        measure(subject, data, asked(Needs("tokens", columns=("scheme:hot",))))
    assert [module.training for module in subject.model.modules()] == modes


def test_what_one_table_lacks_is_no_reason_for_the_others(tiny):
    def picky(subject, jobs, desk):
        if any(job.stream == "retain" for job in jobs):
            raise NotMeasured("retain cannot be had")
        return [Table.of({"id": ["a"], "item": [0]}) for _ in jobs]

    prepared = [
        planner._Prepared(planner.Job((name, "picky", "answer"), [], [], frozenset()), None)
        for name in ("forget", "retain", "holdout")
    ]
    desk, missing = Desk("cpu", small_data()), {}
    planner._run(tiny, Entry("instrument", "picky", picky, {"after": ()}), prepared, desk, missing)
    assert missing == {("retain", "picky", "answer"): "retain cannot be had"}
    assert [key[0] for key in desk.tables] == ["forget", "holdout"]


def test_more_columns_are_measured_again(tiny, tmp_path):
    plans = []
    for columns in (("logp",), ("logp", "rank")):
        plans.append(Plan())
        plans[-1].add("forget", [Needs("tokens", columns=columns)])
    counts = [measure(tiny, small_data(), plan, cache=tmp_path).forwards for plan in (*plans, *plans)]
    assert counts == [12, 12, 0, 0]


def test_what_an_attack_exposed_is_left_out_of_the_forget_stream_alone(tiny):
    """Ids are unique within a stream only: retain has an example of the same id, which nobody was shown."""
    same = tuple(replace(one, id=other.id) for one, other in zip(examples(5, "r"), examples(5, "f"), strict=True))
    data = Data(small_data() | {"retain": Stream("retain", "retain", same)})
    shown = tiny.after(Event("attack", "relearn", exposed=frozenset({"f/0", "f/3"})))
    measured = measure(shown, data, plan_for(METRICS, data))
    for instrument, variant in (("tokens", "answer"), ("tokens", "perturbed"), ("samples", "prompt")):
        assert {"f/0", "f/3"}.isdisjoint(measured.tables["forget", instrument, variant].ids)
        assert len(set(measured.tables["forget", instrument, variant].ids)) == 10
    assert "f/0" in measured.tables["retain", "tokens", "answer"].ids
    all_shown = tiny.after(Event("attack", "relearn", exposed=frozenset(f"f/{i}" for i in range(12))))
    assert measure(all_shown, data, plan_for(METRICS[:1], data)).missing["forget", "tokens", "answer"] == (
        "every example was shown to the model by the attack"
    )


def bare(num=4, prompt="Who?"):
    return tuple(replace(one, prompt=prompt, perturbed=(), paraphrased_answer=None) for one in examples(num, "f"))


@pytest.mark.parametrize(("metric", "data", "reason"), [
    ("membership", Data(forget=Stream("forget", "forget", bare())), "no stream 'holdout' was given"),
    ("truth_ratio", Data(forget=Stream("forget", "forget", bare())), "no example of 'forget' has a field 'perturbed'"),
    ("rouge", Data(forget=Stream("forget", "forget", bare(prompt=""))), "stream 'forget' has no prompts to ask"),
    ("forget_quality", small_data(), "no oracle was given"),
])
def test_what_cannot_be_measured_is_not_available_with_its_reason(tiny, metric, data, reason):
    made = bind("metric", metric)
    found = score(made, "forget", measure(tiny, data, plan_for([made], data)))
    assert (found.status, found.value) == ("n/a", None)
    assert reason in found.reason
    assert found.better == made.meta["better"]


def test_samples_of_a_stream_with_some_prompts_are_of_those_rows_alone():
    """Row 1 has no prompt: it is not asked, and the greedy choices of its neighbours stay with their rows."""
    learned = knows("forget")
    rows = list(short_data()["forget"].examples[:4])
    rows[1] = replace(rows[1], prompt="")
    data = Data(forget=Stream("forget", "forget", tuple(rows)))
    table = measure(learned, data, plan_for([bind("metric", "rouge")], data)).tables["forget", "samples", "prompt"]
    assert table.ids == ["f/0", "f/2", "f/3"]
    assert table.texts("text") == [rows[i].answer for i in (0, 2, 3)]
    assert table.column("produced").tolist() == [0, 0, 0]


def test_a_table_that_was_not_measured_raises_its_reason():
    given = Tables({}, "forget", {("this", "holdout", "tokens", "answer"): "no stream 'holdout' was given"})
    with pytest.raises(NotMeasured, match="no stream 'holdout'"):
        given.get("tokens", set="holdout")
    with pytest.raises(NotMeasured, match="no oracle was given"):
        given.get("tokens", subject="oracle")
    with pytest.raises(NotMeasured, match="stream 'forget' has no perturbed"):
        given.get("tokens", "perturbed")


def test_ragged_columns_survive_slices_and_empty_rows():
    """Sums per row by hand: [1, 2] = 3, [] = 0, [4] = 4."""
    table = Table.of({"id": ["a", "b", "c"], "item": [0, 0, 0], "logp": [[1.0, 2.0], [], [4.0]]})
    assert table.row_sum("logp").tolist() == [3.0, 0.0, 4.0]
    assert [row.tolist() for row in table.rows("logp")] == [[1.0, 2.0], [], [4.0]]
    tail = Table(table.arrow.slice(1))
    assert tail.row_sum("logp").tolist() == [0.0, 4.0]
    assert tail.num_tokens.tolist() == [0, 1]
    with pytest.raises(NotMeasured, match="no column 'rank'"):
        table.ragged("rank")


def test_a_full_disk_leaves_no_half_table(tmp_path, monkeypatch):
    table = Table.of({"id": ["a"], "item": [0], "logp": [[1.0]]})
    table.write(tmp_path / "good.parquet")

    def full(arrow, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables_module.pq, "write_table", full)
    with pytest.raises(StorageError, match=r"good\.parquet: could not be written \(No space left on device\)"):
        table.write(tmp_path / "good.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["good.parquet"]
    assert Table.read(tmp_path / "good.parquet").row_sum("logp").tolist() == [1.0]


@pytest.mark.parametrize("keep", [0, 20, 400])
def test_a_stored_table_that_cannot_be_read_is_measured_again(tiny, tmp_path, keep):
    data = small_data()
    first = measure(tiny, data, asked(), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    again = measure(tiny, data, asked(), cache=tmp_path)
    assert (again.forwards, measure(tiny, data, asked(), cache=tmp_path).forwards) == (12, 0)
    assert equal(first, again)


def test_labels_tell_variants_apart():
    assert label(bind("metric", "membership")) == "membership"
    assert label(bind("metric", {"use": "membership", "score": "min_k"})) == "membership(score=min_k)"
