"""The recipe: what is accepted, what is told, and that a resolved recipe is the same recipe."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from expunge.errors import RecipeError
from expunge.presets import METRICS
from expunge.recipe import Recipe, set_path

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {
    "expunge": 1,
    "model": {"from": "./models/mine", "dtype": "float32"},
    "data": {
        "forget": {"use": "jsonl", "path": "forget.jsonl"},
        "retain": {"use": "jsonl", "path": "retain.jsonl"},
        "general": {"use": "text", "path": "wiki.txt", "role": "anchor"},
    },
    "stages": [
        {"use": "relabel", "source": "refusals"},
        {
            "use": "forget",
            "terms": [
                {"use": "dpo", "on": ["refusals", "forget"], "beta": 0.2},
                {"use": "kl", "on": "retain", "weight": 0.5},
            ],
            "scope": {"use": "lora", "rank": 4}, "steps": 3, "lr": 1e-4,
        },
    ],
    "audit": {
        "metrics": "default", "attacks": [{"use": "quantize", "bits": 8}, "paraphrase"], "against": "./models/oracle",
    },
    "seed": 3,
}


def plain(**changes):
    made = deepcopy(PLAIN) | changes
    return {key: value for key, value in made.items() if value is not ...}


def with_method(**hyper):
    return plain(stages=..., method={"use": "npo", **hyper})


@pytest.mark.parametrize("made", [
    plain(), with_method(), with_method(retain="kl", scope={"use": "layers", "layers": [0, -1]}),
    with_method(optimizer={"use": "muon", "momentum": 0.9}), plain(audit=..., title="Ä title"),
    plain(stages=..., audit={"attacks": []}), {"model": "./m", "data": {"forget": "a.jsonl"}},
    plain(stages=[{"use": "expunge.forget:run_forget", "terms": [{"use": "nll", "on": "retain"}]}]),
])
def test_a_resolved_recipe_is_the_same_recipe(made):
    recipe = Recipe.of(made)
    again = Recipe.of(yaml.safe_load(recipe.to_yaml()))
    assert again.resolved() == recipe.resolved()
    assert again.digest() == recipe.digest()
    assert len(recipe.digest()) == 12
    assert again.stages == recipe.stages


def test_the_digest_sees_every_argument_and_no_order():
    digests = {
        Recipe.of(made).digest()
        for made in (plain(), plain(seed=4), with_method(), with_method(beta=0.2), plain(device="cuda"))
    }
    assert len(digests) == 5
    turned = dict(reversed(plain().items()))
    assert Recipe.of(turned).digest() == Recipe.of(plain()).digest()
    assert Recipe.of(with_method(beta=0.1)).digest() == Recipe.of(with_method()).digest()  # the default, told or not


def test_every_default_is_filled():
    made = Recipe.of(plain()).resolved()
    assert made["stages"][1]["batch_size"] == 32
    assert made["stages"][1]["terms"][0]["beta"] == 0.2
    assert made["data"]["forget"] == {
        "use": "jsonl", "path": "forget.jsonl", "prompt": "prompt", "answer": "answer", "id": "id", "limit": None,
        "fields": None, "role": "forget",
    }
    assert len(made["audit"]["metrics"]) == len(METRICS["default"])
    assert made["model"]["template"] == "auto"


UNKNOWN = [
    ("modell", 1, r"^modell: unknown key \(got 1\); did you mean 'model'"),
    ("model.dtyp", "float16", r"^model\.dtyp: .*did you mean 'dtype'"),
    ("model.form", "x", r"^model\.form: .*did you mean 'from'"),
    ("data.forget.pth", "x", r"^data\.forget\.pth: .*did you mean 'path'"),
    ("data.forget.roll", "x", r"^data\.forget\.roll: .*did you mean 'role'"),
    ("stages[0].sorce", "x", r"^stages\[0\]\.sorce: .*did you mean 'source'"),
    ("stages[1].step", 3, r"^stages\[1\]\.step: .*did you mean 'steps'"),
    ("stages[1].terms[0].betta", 0.1, r"^stages\[1\]\.terms\[0\]\.betta: unknown argument \(got 0\.1\); did you mean "
                                      r"'beta'\?\. dpo takes: beta$"),
    ("stages[1].terms[1].wait", 1, r"^stages\[1\]\.terms\[1\]\.wait: .*(did you mean|accepted)"),
    ("stages[1].scope.rang", 1, r"^stages\[1\]\.scope\.rang: .*did you mean 'rank'"),
    ("audit.metric", [], r"^audit\.metric: .*did you mean 'metrics'"),
    ("audit.attacks[0].bit", 4, r"^audit\.attacks\[0\]\.bit: .*did you mean 'bits'"),
]


@pytest.mark.parametrize(("path", "value", "message"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
def test_unknown_keys_are_told_at_every_level(path, value, message):
    made = plain()
    set_path(made, f"{path}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
    with pytest.raises(RecipeError, match=message):
        Recipe.of(made)


WRONG = [
    ("expunge=2", r"^expunge: version 2; this program reads version 1"),
    ("model=5", r"^model: got 5; a mapping"),
    ("model=null", r"^model: missing"),
    ("data=[1]", r"^data: got a list of 1"),
    ("data.forget=5", r"^data\.forget: got 5; a reader"),
    ("data.forget.use=jsnl", r"^data\.forget\.use: unknown reader 'jsnl'; did you mean 'jsonl'"),
    ("data.forget.path=5", r"^data\.forget\.path: got 5 .*accepted: str"),
    ("data.general.role=anchr", r"^data\.general\.role: got 'anchr'; did you mean 'anchor'"),
    ("data.general.role=null", r"^data\.general\.role: missing"),
    ("stages=5", r"^stages: got 5; a list"),
    ("stages={use: forget}", r"^stages: got .*; a list"),
    ("stages[1].terms=5", r"^stages\[1\]\.terms: got 5; a list of objectives"),
    ("stages[1].terms[0].on=retain", r"^stages\[1\]\.terms\[0\]\.on: 1 stream\(s\): retain; 'dpo' looks at 2"),
    ("stages[1].lr=fast", r"^stages\[1\]\.lr: got 'fast' .*accepted: float"),
    ("stages[1].steps=2.5", r"^stages\[1\]\.steps: got 2\.5"),
    ("stages[1].optimizer=adam", r"^stages\[1\]\.optimizer\.use: .*did you mean 'adamw'"),
    ("audit=[]", r"^audit: got a list of 0; a mapping"),
    ("audit.metrics=probability", r"^audit\.metrics: got 'probability'; accepted: default"),
    ("audit.metrics=[probabilty]", r"^audit\.metrics\[0\]\.use: .*did you mean 'probability'"),
    ("audit.attacks=quantize", r"^audit\.attacks: got 'quantize'; accepted: default"),
    ("audit.attacks=[quantise]", r"^audit\.attacks\[0\]\.use: .*did you mean 'quantize'"),
    ("audit.against=5", r"^audit\.against: got 5"),
    ("audit.margin=2", r"^audit\.margin: got 2; a number between 0 and 1"),
    ("audit.margin=wide", r"^audit\.margin: got 'wide'"),
    ("seed=x", r"^seed: got 'x'; accepted: a whole number"),
    ("seed=-1", r"^seed: got -1; accepted: a whole number, 0 or more"),
    ("seed=true", r"^seed: got True"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[row[0] for row in WRONG])
def test_wrong_values_are_told_with_their_place(change, message):
    made = plain()
    set_path(made, change)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.of(made)
    assert all((caught.value.where, caught.value.found, caught.value.accepted, caught.value.do))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a:b", "a@b", "a#b", "a|b"])
def test_a_stream_name_that_would_divide_a_variant_is_told(name):
    made = plain()
    made["data"][name] = {"use": "jsonl", "path": "x.jsonl", "role": "probe"}
    with pytest.raises(RecipeError, match=rf"^data\.{re.escape(name)}: a stream name with .*Rename the stream"):
        Recipe.of(made)


def test_method_and_stages_together_are_an_error():
    with pytest.raises(RecipeError, match=r"^method: both 'method' and 'stages'; one of the two"):
        Recipe.of(plain(method="npo"))


def test_a_method_becomes_its_stages():
    recipe = Recipe.of(with_method(retain="kl", beta=0.3))
    (stage,) = recipe.stages
    assert [term.label for term in stage.hyper["terms"]] == ["npo(forget)", "kl(retain)"]
    assert stage.hyper["terms"][0].objective.hyper["beta"] == 0.3
    assert recipe.resolved()["method"]["retain"] == "kl"
    assert "stages" not in recipe.resolved()


@pytest.mark.parametrize(("change", "path", "value"), [
    ("seed=7", ("seed",), 7),
    ("stages[1].lr=1e-4", ("stages", 1, "lr"), 1e-4),
    ("stages.1.terms.0.beta=0.5", ("stages", 1, "terms", 0, "beta"), 0.5),
    ("stages[1].optimizer.use=sgd", ("stages", 1, "optimizer", "use"), "sgd"),
    ("audit.margin=5e-2", ("audit", "margin"), 0.05),
    ("audit.attacks=[relearn]", ("audit", "attacks"), ["relearn"]),
    ("model.dtype=bfloat16", ("model", "dtype"), "bfloat16"),
    ("title=a=b", ("title",), "a=b"),
])
def test_set_changes_one_place(change, path, value):
    made = plain()
    set_path(made, change)
    here = made
    for key in path:
        here = here[key]
    assert here == value
    Recipe.of(made)


def test_set_reaches_into_a_plain_name():
    made = {"model": "./m", "data": {"forget": "a.jsonl"}, "method": "npo"}
    for change in ("method.lr=1e-3", "model.dtype=float64"):
        set_path(made, change)
    recipe = Recipe.of(made)
    assert recipe.stages[0].hyper["lr"] == 0.001
    assert (recipe.source, recipe.model.hyper["dtype"]) == ("./m", "float64")


@pytest.mark.parametrize("change", [
    "seed", "=5", "stages[9].lr=1", "stages[x].lr=1", "stages.lr=1", "seed.deep.er=1", "data.forget.path.x=1", ".=1",
    "seed=[1", "title={",
])
def test_a_set_that_leads_nowhere_is_told(change):
    with pytest.raises(RecipeError, match=r"^--set .*; .*\. "):
        set_path(plain(), change)


@pytest.mark.parametrize("written", ["1e-4", "1.0e-4", "'1e-4'", "1E-4", "0.0001"])
def test_a_rate_may_be_written_as_people_write_it(tmp_path, written):
    """YAML 1.1 reads 1e-4 as text, for want of a dot."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"model: m\ndata: {{forget: f.jsonl}}\nmethod: {{use: npo, lr: {written}}}\naudit: {{margin: {written}}}\n"
    )
    recipe = Recipe.load(file)
    assert recipe.stages[0].hyper["lr"] == 1e-4
    assert recipe.audit.margin == 1e-4


@pytest.mark.parametrize(("text", "message"), [
    (None, r"no such file; did you mean 'recipe\.yml'"),
    ("", r"a NoneType; a YAML mapping"),
    ("- 1\n- 2", "a list; a YAML mapping"),
    ("a: [1", "not YAML"),
    (b"\xff\xfe\x00", "not YAML"),
])
def test_a_file_that_is_no_recipe_is_told(tmp_path, text, message):
    (tmp_path / "recipe.yml").write_text("model: m")
    file = tmp_path / "recipe.yaml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.load(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="not YAML"):
        Recipe.load(tmp_path)


def test_every_recipe_we_ship_resolves():
    files = sorted(path for path in (ROOT / "recipes").rglob("*") if path.suffix in (".yaml", ".yml"))
    if not files:
        pytest.skip("no recipes are shipped yet")
    for file in files:
        recipe = Recipe.load(file)
        assert Recipe.of(recipe.resolved()).digest() == recipe.digest(), file
    assert len(files) == sum(1 for path in (ROOT / "recipes").rglob("*.y*ml"))
