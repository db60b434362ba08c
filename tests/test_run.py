"""A run on disk: a kill at any moment, a full disk or a polite stop loses nothing that was already written."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from dataclasses import replace

import pytest
import torch

import expunge.machine
import expunge.run as run_module
from expunge import cli
from expunge.errors import Interrupted, RecipeError, StorageError
from expunge.recipe import Recipe
from expunge.run import Run, write_json, write_text
from expunge.workflow import Workflow
from support.streams import records
from support.world import make_world, recipe, start, until, wait, write_recipe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be copied")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def work(world, out, *, resume=False, before=lambda: None):
    """What a process does: the whole recipe, a checkpoint every second step."""

    def act():
        before()
        Workflow(Recipe.of(recipe(world)), out, resume, save_every=2).execute()

    return act


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The run nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    work(world, out)()
    return out


def same_result(out, whole) -> bool:
    return weights(out) == weights(whole) and steps(out) == steps(whole)


def weights(out):
    return (out / "model" / "model.safetensors").read_bytes()


def steps(out):
    return [(line["stage"], line["step"], line["loss"]) for line in records(out)]


def test_the_whole_run_has_its_files(whole):
    assert {path.name for path in whole.iterdir()} == {
        "recipe.resolved.yaml", "env.json", "log.jsonl", "state", "model", "lineage.json",
    }
    assert [(stage, step) for stage, step, _ in steps(whole)] == [(1, step) for step in range(12)]
    assert [path.name for path in (whole / "state").iterdir()] == ["stage01-step0000012"]
    lineage = json.loads((whole / "lineage.json").read_text())
    assert [stage["use"] for stage in lineage["stages"]] == ["relabel", "forget"]
    assert lineage["result"]["weights"] != lineage["model"]["weights"]


# -- kills ----------------------------------------------------------------------------------------------------------
def dies_at(name: str, call: int, *, after: bool):
    """Patch a function of the machine so that its n-th call ends the process, before or after it acts."""
    module, attribute = (run_module, name) if hasattr(run_module, name) else (expunge.machine, name)
    real = getattr(module, attribute)
    calls = []

    def act(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and not after:
            os._exit(9)
        found = real(*args, **kwargs)
        if len(calls) == call:
            os._exit(9)
        return found

    setattr(module, attribute, act)


def dies_in_the_writer(call: int):
    import safetensors.torch

    real, calls = safetensors.torch.save_file, []

    def act(tensors, path, **kwargs):
        calls.append(1)
        if len(calls) == call:
            path.write_bytes(b"half a file")
            os._exit(9)
        real(tensors, path, **kwargs)

    safetensors.torch.save_file = act


POINTS = {
    "half a tensor file": lambda: dies_in_the_writer(3),
    "before the folder is flushed": lambda: dies_at("_flush", 3, after=False),
    "before the folder gets its name": lambda: dies_at("_replace", 3, after=False),
    "after the folder got its name": lambda: dies_at("_replace", 3, after=True),
    "while the model is saved": lambda: dies_at("_flush", 7, after=False),
    "in the first checkpoint": lambda: dies_in_the_writer(1),
    "in the last checkpoint": lambda: dies_in_the_writer(6),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_the_worst_moments_is_resumed_to_the_same_weights(world, whole, tmp_path, point):
    out = tmp_path / "run"
    assert wait(start(work(world, out, before=POINTS[point]))) == 9
    assert wait(start(work(world, out, resume=True))) == 0
    assert same_result(out, whole)
    assert not list(out.rglob("*.partial"))


def test_kills_at_any_moment_are_resumed_to_the_same_weights(world, whole, tmp_path):
    """Six kills at random times, each of a run that goes on from the last; then one that may finish."""
    out, moments = tmp_path / "run", random.Random(0)
    for _ in range(6):
        pid = start(work(world, out, resume=True))
        until(lambda: (out / "recipe.resolved.yaml").exists())
        time.sleep(moments.random() * 0.3)
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) in (0, -signal.SIGKILL)
    assert wait(start(work(world, out, resume=True))) == 0
    assert same_result(out, whole)


def test_an_interrupted_command_ends_3_and_resumes(world, tmp_path):
    """Through the front door: SIGINT during training, exit 3 with one line, the same command with --resume."""
    plain = recipe(world)
    plain["stages"][1]["steps"] = 60
    file = write_recipe(tmp_path / "recipe.yaml", plain)
    command = ["run", str(file), "--json", "--out"]
    assert cli.main([*command, str(tmp_path / "whole")]) == 0
    out, said = tmp_path / "cut", tmp_path / "said.txt"
    pid = start(lambda: cli.main([*command, str(out)]), said)
    until(lambda: (out / "log.jsonl").exists() and len((out / "log.jsonl").read_text().splitlines()) > 3)
    os.kill(pid, signal.SIGINT)
    assert wait(pid) == 3
    assert said.read_text().splitlines() == [
        f"expunge: {out}: stopped on request; everything up to the last step is saved. "
        "Continue with the same command, the same --out and --resume"
    ]
    assert 3 < len(records(out)) < 60
    assert not (out / "model").exists()
    assert cli.main([*command, str(out), "--resume"]) == 0
    assert same_result(out, tmp_path / "whole")


# -- a full disk ----------------------------------------------------------------------------------------------------
def fills_up_at(call: int):
    """From the n-th checkpoint on no file may grow beyond 20 kB: what the system says is what a full disk says."""
    real, calls = expunge.run.Run.save_state, []

    def act(self, *args):
        calls.append(1)
        if len(calls) == call:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        real(self, *args)

    expunge.run.Run.save_state = act


def test_a_full_disk_is_told_and_the_last_state_survives(world, whole, tmp_path):
    out, said = tmp_path / "run", tmp_path / "said.txt"

    def act():
        fills_up_at(3)
        made = Workflow(Recipe.of(recipe(world)), out, save_every=2)
        try:
            made.execute()
        except StorageError as error:
            print(error)
            return 2
        return 0

    assert wait(start(act, said)) == 2
    assert "could not be written" in said.read_text()
    assert len(said.read_text().splitlines()) == 1
    assert [path.name for path in (out / "state").iterdir()] == ["stage01-step0000004"]
    work(world, out, resume=True)()
    assert same_result(out, whole)


def test_a_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "file.json"
    write_json(file, {"a": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"file\.json: could not be written \(No space left on device\); what"):
        write_text(file, "half")
    assert json.loads(file.read_text()) == {"a": 1}
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]
    (tmp_path / "a_file").write_text("")
    with pytest.raises(StorageError, match="nothing was left behind"):
        write_text(tmp_path / "a_file" / "below", "x")
    with pytest.raises(StorageError, match="a_file"):
        Run(tmp_path / "a_file")


# -- log and state --------------------------------------------------------------------------------------------------
def test_the_log_is_trimmed_to_what_will_not_be_written_again(tmp_path):
    """Stage 1 resumes at step 2: steps 0 and 1 stay, later steps and stages go, and a line cut by a kill goes."""
    for stage, step in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0)):
        Run(tmp_path, stage=stage).log({"step": step, "loss": 1.0})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"stage": 1, "step": 1, "lo')
    Run(tmp_path, stage=1).trim_log(2)
    assert [(line["stage"], line["step"]) for line in records(tmp_path)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    Run(tmp_path, stage=0).trim_log(0)
    assert records(tmp_path) == []
    Run(tmp_path / "new").trim_log(0)  # nothing there, nothing to do


def test_a_checkpoint_replaces_the_older_one_of_its_stage_alone(tmp_path):
    tensors = {"weight.a": torch.arange(3.0), "optimizer.0.step": torch.tensor(2.0)}
    for stage, step in ((0, 5), (1, 2), (1, 4)):
        Run(tmp_path, stage=stage).save_state(step, tensors, {"finished": stage == 0})
    names = sorted(path.name for path in (tmp_path / "state").iterdir())
    assert names == ["stage00-step0000005", "stage01-step0000004"]
    assert Run(tmp_path, stage=1).load_state() is None  # not asked to resume
    step, found, meta = Run(tmp_path, stage=1, resume=True).load_state()
    assert (step, meta["finished"]) == (4, False)
    assert torch.equal(found["weight.a"], tensors["weight.a"])
    assert Run(tmp_path, stage=2, resume=True).load_state() is None


def test_rubbish_of_a_killed_run_is_removed_at_the_next_start(tmp_path):
    Run(tmp_path).save_state(2, {"weight.a": torch.zeros(1)}, {"finished": False})
    half = tmp_path / "state" / ".stage00-step0000004.partial"
    half.mkdir()
    (half / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "scores.json.partial").write_text("half")
    found = Run(tmp_path, resume=True).load_state()
    assert found is not None
    assert found[0] == 2
    assert not list(tmp_path.rglob("*.partial"))


def test_without_a_folder_nothing_is_kept():
    run = Run()
    run.log({"step": 0})
    run.save_state(1, {}, {})
    run.trim_log(0)
    assert run.load_state() is None
    assert replace(run, resume=True).load_state() is None


def test_a_stop_is_asked_for_by_signal_and_handlers_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        run = Run(tmp_path)
        with run.stoppable():
            run.check_stop()
            os.kill(os.getpid(), number)
            assert run.stopped
            with pytest.raises(Interrupted, match="--resume") as caught:
                run.check_stop()
        assert caught.value.exit_code == 3
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_folder_belongs_to_one_recipe(world, whole, tmp_path):
    with pytest.raises(RecipeError, match=r"already holds a run; .*--resume"):
        work(world, whole)()
    other = Workflow(Recipe.of(recipe(world, seed=4)), whole, True)
    with pytest.raises(RecipeError, match=r"another recipe was started here; the same recipe \(this one has digest"):
        other.execute()
    plain = recipe(world)
    plain["data"]["forget"] = str(tmp_path / "mistyped.jsonl")
    with pytest.raises(Exception, match="mistyped"):
        Workflow(Recipe.of(plain), tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()  # a mistyped path leaves no folder that blocks the corrected command
