"""A watch reads what the token tables say, moves nothing, and a resumed run writes what an uninterrupted one does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from expunge import dynamics
from expunge.data import identifiers
from expunge.dynamics.chapters import chapters_of
from expunge.errors import DataError, ModelError, RecipeError
from expunge.forget import forget
from expunge.loop import make_feed
from expunge.measure.plan import Plan, measure
from expunge.models import clone, weights_hash
from expunge.recipe import Recipe
from expunge.registry import bind, spec_of, term
from expunge.report.lines import draw
from expunge.run import Run
from expunge.types import Data, Needs, Stream, Subject, Visit
from expunge.watch import Course, DynamicsProbe, grid, watched
from expunge.workflow import Workflow
from support.learned import knows, short_data
from support.streams import small_data
from support.world import make_world, recipe


def stage(**more: Any) -> Any:
    given = {"terms": [term("nll", on="retain")], "lr": 5e-3, "steps": 9, "batch_size": 5, **more}
    return forget(**given)


def lines(folder: Path, name: str = "dynamics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# -- readings ----------------------------------------------------------------------------------------------------
def test_a_reading_is_what_the_token_table_says() -> None:
    subject, data = knows("forget"), short_data()
    plan = Plan()
    plan.add("forget", [Needs("tokens", columns=("logp", "argmax"))])
    table = measure(subject, data, plan).tables["forget", "tokens", "answer"]
    (found,) = DynamicsProbe(subject, data, on=["forget"], most=None).measure()
    hits = table.rows("argmax")
    assert found.hits == sum(int(row.sum()) for row in hits)
    assert found.tokens == sum(len(row) for row in hits)
    assert found.nll == pytest.approx(-float(np.concatenate(table.rows("logp")).mean()), rel=1e-6)
    assert found.exact == sum(bool(row.all()) for row in hits)
    assert found.each == {name: (int(row.sum()), len(row)) for name, row in zip(table.ids, hits, strict=True)}
    assert [sum(pair[k] for pair in found.tags.values()) for k in (0, 1)] == [found.hits, found.tokens]
    assert found.memorization > 0.9
    (never,) = DynamicsProbe(subject, data, on=["holdout"]).measure()
    assert never.memorization < 0.6


def test_tags_are_those_of_the_words_of_the_answer(tiny: Subject) -> None:
    (found,) = DynamicsProbe(tiny, small_data(), on=["forget"], most=1).measure()  # "It is number 0 of f."
    counted = {tag: num for tag, (_, num) in found.tags.items()}
    assert counted["number"] == 1
    spaces = [piece for piece in tiny.tokenizer.tokenize(" It is number 0 of f.") if piece == "Ġ"]
    assert counted["none"] == len(spaces) + 1  # and the end of the text
    assert counted["pronoun"] >= 1
    assert counted["preposition"] >= 1


def test_looking_changes_nothing(tiny: Subject) -> None:
    tiny.model.train()
    before, state = weights_hash(tiny), torch.get_rng_state()
    DynamicsProbe(tiny, small_data()).measure()
    assert tiny.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_hash(tiny) == before
    ours, theirs = clone(tiny), clone(tiny)
    stage()(ours, small_data(), Run())
    watched(stage())(theirs, small_data(), Run())
    assert weights_hash(ours) == weights_hash(theirs)


def test_dropout_is_off_while_looking() -> None:
    from expunge.testing import tiny_subject

    subject = tiny_subject(family="gpt2")
    for module in subject.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    probe = DynamicsProbe(subject, small_data())
    calm = probe.measure()
    subject.model.train()
    assert probe.measure() == calm


def test_variants_can_be_watched_and_what_is_missing_is_told(tiny: Subject) -> None:
    readings = DynamicsProbe(tiny, small_data(), on=["forget", "forget:perturbed"], tagger="none", most=3).measure()
    assert [one.examples for one in readings] == [3, 6]
    assert "f/0#1" in readings[1].each
    assert readings[0].tags == {}
    with pytest.raises(DataError, match="did you mean 'forget'"):
        DynamicsProbe(tiny, small_data(), on=["forgot"])


def test_a_document_id_is_its_own_and_is_not_counted(tiny: Subject) -> None:
    data = small_data()
    rows = [text for one in data["forget"].examples for text in identifiers.identified(one, "", data)]
    assert len({prompt for prompt, _, _ in rows}) == len(data["forget"])
    assert all(prompt.startswith("document ID ") for prompt, _, _ in rows)
    plain, named = (
        sum(one.tokens for one in DynamicsProbe(tiny, data, on=[name]).measure())
        for name in ("forget", "forget:identified")
    )
    assert named == plain


# -- when --------------------------------------------------------------------------------------------------------
def test_when_a_watch_looks() -> None:
    assert sorted(grid("epoch", Course(10, 2.5))) == [0, 2, 5, 8, 10]
    assert sorted(grid("powers", Course(10, 2.5))) == [0, 1, 2, 4, 8, 10]
    assert sorted(grid(4, Course(10, 2.5))) == [0, 4, 8, 10]
    assert sorted(grid("epoch", Course(200, 1.0))) == list(range(0, 201, 4))  # 64 passes at most
    assert len(grid("epoch", Course(64, 1.0))) == 65
    with pytest.raises(RecipeError, match="epoch, powers"):
        grid("weekly", Course(10, 2.5))
    visited = Course(40, 4.0, Visit("special", (), at=8, updates=3))
    assert sorted(grid("epoch", visited)) == [0, 4, 8, 11, 12, 13, 15, 19, 23, 27, 31, 35, 39, 40]
    assert [visited.epoch(step) for step in (4, 8, 10, 11, 15)] == [1.0, 2.0, 2.0, 2.0, 3.0]


# -- visits ------------------------------------------------------------------------------------------------------
def visit(**more: Any) -> dict[str, Any]:
    return {"use": "inject", "stream": "forget", "at": 4, "updates": 2, **more}


def test_a_visit_takes_the_place_of_some_steps_and_of_nothing_else(tiny: Subject) -> None:
    data = small_data(forget=3)
    guest = Visit("forget", data["forget"].examples, at=4, updates=2)
    plain, feed = make_feed(tiny, data, "retain"), make_feed(
        tiny, Data({**data, "retain": replace(data["retain"], visit=guest)}), "retain"
    )
    own = [plain.rows(5, 7, step) for step in range(8)]
    seen = [feed.rows(5, 7, step) for step in range(10)]
    assert seen[:4] + seen[6:] == own
    for rows in seen[4:6]:
        assert sorted(feed.encoded[row].id for row in rows) == ["f/0", "f/1", "f/2"]


def test_a_visit_is_learned_and_forgotten_with_one_optimiser(tmp_path: Path) -> None:
    """What is shown for a few steps rises above a control and falls again; the log is that of one training."""
    data = short_data()
    subject = clone(knows("retain"))
    made = stage(steps=70, lr=1e-2, batch_size=12, schedule=visit(at=10, updates=12, stream="forget"))
    watched(made, {"use": "dynamics", "every": 100, "control": "holdout"})(subject, data, Run(tmp_path))
    assert [record["step"] for record in lines(tmp_path, "log.jsonl")] == list(range(70))
    ((_, curves),) = dynamics.read(tmp_path).items()
    assert curves["forget"].steps == (0, 10, 22, 23, 24, 26, 30, 38, 54, 70)
    found = dynamics.forgetting_of(curves)
    assert found is not None
    assert found.control is not None
    assert found.before is not None
    assert found.start > found.before + 0.15
    assert found.drop > 0.05
    assert found.start > found.control + 0.3


@pytest.mark.parametrize(("change", "words"), [
    ({"stream": "forgot"}, "no stream 'forgot'"), ({"at": -1}, "got -1"), ({"updates": 0}, "got 0"),
    ({"into": "holdout"}, "no term stands on 'holdout'"),
])
def test_a_visit_that_cannot_be_is_refused(tiny: Subject, change: dict[str, Any], words: str) -> None:
    with pytest.raises((RecipeError, DataError), match=words):
        stage(schedule=visit(**change))(tiny, small_data(), Run())


# -- runs --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def watching(world: Path, **more: Any) -> dict[str, Any]:
    plain = recipe(world, stages=[{
        "use": "forget", "terms": [{"use": "nll", "on": "retain"}], "steps": 12, "batch_size": 5, "lr": 1e-3,
        "schedule": visit(), "watch": {"use": "dynamics", "every": 3, "control": "forget"},
    }])
    return plain | more


def test_a_resumed_run_writes_what_an_uninterrupted_one_does(world: Path, tmp_path: Path) -> None:
    made = Recipe.of(watching(world))
    Workflow(made, tmp_path / "whole", save_every=4).execute()

    def dies(what: str, done: int, total: int, note: str) -> None:
        if done in stops:
            raise KeyboardInterrupt

    for stops in ((2,), (7,), (11,)):  # before the first state, between two, after the last look but one
        with pytest.raises(KeyboardInterrupt):
            Workflow(made, tmp_path / "cut", resume=stops != (2,), progress=dies, save_every=4).execute()
    Workflow(made, tmp_path / "cut", resume=True, save_every=4).execute()
    whole = (tmp_path / "whole" / "dynamics.jsonl").read_bytes()
    assert [record["step"] for record in lines(tmp_path / "whole")[::2]] == [0, 3, 4, 6, 7, 8, 9, 10, 12]
    assert (tmp_path / "cut" / "dynamics.jsonl").read_bytes() == whole
    Workflow(made, tmp_path / "cut", resume=True, save_every=4).execute()  # a finished run is left as it is
    assert (tmp_path / "cut" / "dynamics.jsonl").read_bytes() == whole
    assert "Memorization while training" in (tmp_path / "cut" / "report.html").read_text(encoding="utf-8")


def test_a_watch_in_a_recipe_reads_back_and_its_absence_leaves_no_trace(world: Path) -> None:
    made = Recipe.of(watching(world))
    again = Recipe.of(made.resolved())
    assert again.digest() == made.digest()
    assert made.resolved()["stages"][0]["watch"]["every"] == 3
    plain = watching(world)
    del plain["stages"][0]["watch"]
    bare = Recipe.of(plain)
    assert "watch" not in bare.to_yaml()
    assert bare.digest() != made.digest()
    assert Recipe.of(plain | {"watch": None}).digest() == bare.digest()
    over = Recipe.of(plain | {"watch": "dynamics"})
    assert over.watch is not None
    assert Recipe.of(over.resolved()).digest() == over.digest() != bare.digest()
    with pytest.raises(RecipeError, match=r"stages\[0\]\.watch\.evry: unknown argument .*'every'"):
        Recipe.of(watching(world, stages=[{**plain["stages"][0], "watch": {"use": "dynamics", "evry": 3}}]))
    with pytest.raises(RecipeError, match=r"unknown argument .*'watch'"):
        Recipe.of(watching(world, stages=[{**plain["stages"][0], "wach": "dynamics"}]))


def test_a_recipe_can_be_written_in_python(world: Path) -> None:
    """`watched(forget(...), ...)` is what the mapping with `watch` becomes."""
    made = Recipe.of(watching(world))
    hyper = {key: value for key, value in watching(world)["stages"][0].items() if key not in ("use", "watch")}
    ours = watched(forget(**hyper), {"use": "dynamics", "every": 3, "control": "forget"})
    assert spec_of(ours) == spec_of(made.stages[0])
    assert ours.meta["watch"] == made.stages[0].meta["watch"]
    assert Recipe.of(watching(world, stages=[ours])).digest() == made.digest()


def test_trainings_inside_a_stage_are_watched_apart(world: Path, tmp_path: Path) -> None:
    fit = {"use": "forget", "terms": [{"use": "nll", "on": "forget"}], "steps": 2, "batch_size": 6, "lr": 1e-3}
    cut = {**fit, "schedule": {"use": "chunked", "chunks": 2, "metrics": []}}
    stages = [{"use": "branch", "name": "fitted", "stages": [fit]}, cut]
    Workflow(Recipe.of(recipe(world, stages=stages, watch={"use": "dynamics", "on": ["forget"]})), tmp_path).execute()
    found = dynamics.read(tmp_path)
    assert len(found) == 3
    assert [one["forget"].steps for one in found.values()] == [(0, 2), (0, 1, 2), (0, 1, 2)]
    chapters = chapters_of(tmp_path)
    assert [one.title.split(", ")[1] for one in chapters] == ["stage 1.1", "stage 2.1", "stage 2.2"]
    assert all(draw(chart).startswith("<svg") for chapter in chapters for chart in chapter.charts)


# -- models from nothing -----------------------------------------------------------------------------------------
def test_a_recipe_may_start_from_nothing(world: Path, tmp_path: Path) -> None:
    shape = {"width": 16, "layers": 1, "heads": 2, "vocabulary": 300}
    plain = watching(world, model={"new": shape}, seed=5)
    made = Recipe.of(plain)
    assert Recipe.of(made.resolved()).digest() == made.digest()
    assert made.resolved()["model"] == {"new": {**shape, "text": None}}
    for name in ("one", "two"):
        Workflow(made, tmp_path / name).execute()
    one, two = (lines(tmp_path / name) for name in ("one", "two"))
    assert one == two
    assert json.loads((tmp_path / "one" / "model" / "config.json").read_text())["hidden_size"] == 16
    other = Workflow(Recipe.of({**plain, "seed": 6}), tmp_path / "other")
    other.execute()
    assert lines(tmp_path / "other")[0]["nll"] != one[0]["nll"]


@pytest.mark.parametrize(("shape", "error", "words"), [
    ({"width": 20, "heads": 4}, ModelError, "multiple of 2"), ({"vocabulary": 100}, ModelError, "258 or more"),
    ({"depth": 2}, RecipeError, "model.new.depth: unknown argument"),
    ({"text": ["none"]}, DataError, "no stream 'none'"),
])
def test_a_model_that_cannot_be_is_refused_before_a_folder_is_made(
    world: Path, tmp_path: Path, shape: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Workflow(Recipe.of(watching(world, model={"new": shape})), tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()


def test_a_model_is_made_or_loaded_and_not_both(world: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.from: unknown key"):
        Recipe.of(watching(world, model={"new": {}, "from": "x"}))


# -- other loops -------------------------------------------------------------------------------------------------
def test_the_callback_looks_when_it_is_time_and_at_the_model_that_is_trained(tiny: Subject, tmp_path: Path) -> None:
    from expunge.trainer import DynamicsCallback

    callback = DynamicsCallback(tiny, small_data(), folder=tmp_path, on=["forget"], every=2)
    args, state = SimpleNamespace(gradient_accumulation_steps=2), SimpleNamespace(max_steps=5, global_step=0)
    with pytest.raises(RecipeError, match="another model than the Trainer's"):
        callback.on_train_begin(args, state, None, model=clone(tiny).model, train_dataloader=[0] * 5)
    assert callback.curves() == {}
    callback.on_train_begin(args, state, None, model=tiny.model, train_dataloader=[0] * 5)
    for state.global_step in range(1, 6):
        callback.on_step_end(args, state, None)
    found = callback.curves()["forget"]
    assert found.steps == (0, 2, 4, 5)
    assert found.epochs == pytest.approx([0, 2 / 3, 4 / 3, 5 / 3])
    assert [one["step"] for one in lines(tmp_path)] == [0, 2, 4, 5]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of transformers.Trainer
def test_a_trainer_with_the_callback_reads_what_a_watched_stage_reads(tiny: Subject, tmp_path: Path) -> None:
    """Three steps of plain descent over the whole set: the same hits and losses as the stage's own."""
    from transformers import Trainer, TrainingArguments

    from expunge.data.tokenise import encode, texts_of
    from expunge.trainer import DynamicsCallback, collator, trainer_loss

    data = Data(retain=Stream("retain", "retain", small_data().pop("retain").examples[:4]))
    ours = clone(tiny)
    made = forget(terms=[term("nll", on="retain")], optimizer="sgd", lr=1e-1, steps=3, batch_size=4)
    watched(made)(ours, data, Run(tmp_path / "ours"))
    callback = DynamicsCallback(tiny, data, folder=tmp_path / "theirs")
    trainer = Trainer(
        model=tiny.model,
        args=TrainingArguments(
            str(tmp_path / "out"), max_steps=3, learning_rate=1e-1, lr_scheduler_type="constant", optim="sgd",
            max_grad_norm=0.0, per_device_train_batch_size=2, gradient_accumulation_steps=2, save_strategy="no",
            report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=encode(tiny, texts_of(data["retain"])), data_collator=collator,
        compute_loss_func=trainer_loss("nll", examples_per_step=4), callbacks=[callback],
    )
    trainer.train()
    ((_, wanted),) = dynamics.read(tmp_path / "ours").items()
    found = callback.curves()["retain"]
    assert (found.steps, found.epochs) == (wanted["retain"].steps, wanted["retain"].epochs)
    for one, other in zip(found.readings, wanted["retain"].readings, strict=True):
        assert one.hits == other.hits
        assert one.nll == pytest.approx(other.nll, abs=1e-4)
    assert [one["step"] for one in lines(tmp_path / "theirs")] == list(found.steps)


def test_a_watch_is_a_registered_part() -> None:
    assert bind("watch", "dynamics").hyper["every"] == "epoch"
    with pytest.raises(RecipeError, match="did you mean 'dynamics'"):
        bind("watch", "dynamic")
