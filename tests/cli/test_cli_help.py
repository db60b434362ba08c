"""The front door: quick help, a frozen list of commands and options, and nothing heavy before it is needed."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
import typer.main

from expunge import cli
from expunge.registry import HOMES, entries, plural

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets", "pandas", "scipy", "sklearn", "pyarrow")
TRUST = " --allow-pickle --trust-remote-code"
COMMANDS = {
    "demo": "--out --quick --rebuild --json",
    "run": "--set --out --resume --device --json",
    "unlearn": "--forget --retain --holdout --oracle --method --set --field --attacks --out --resume --device --json "
               "--allow-pickle"
    + TRUST,
    "audit": "--forget --retain --holdout --original --oracle --metrics --attacks --budget --field --out --resume "
             "--device --json --allow-pickle"
    + TRUST,
    "attack": "--forget --retain --holdout --original --oracle --set --metrics --budget --field --out --resume "
              "--device --json"
    + TRUST,
    "pack": "--model --key --new-key --previous --unsigned --out --json",
    "verify": "--trust --base --previous --json",
    "bench": "--data --split --methods --models --limit-authors --attacks --trials --set --from-log --reference --last "
             "--seed --device --tasks --limit --out --json",
    "train": "--set --out --resume --device --json",
    "calibrate": "--forget --retain --holdout --field --models --metrics --attacks --methods --width --epochs --out "
                 "--device --json",
    "list": "--json",
    "show": "",
    "report": "--out --json",
}


def test_the_commands_and_their_options_are_these():
    """A new option is a promise to users: add it here with its documentation."""
    group = typer.main.get_command(cli.app)
    found = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
        for name, command in group.commands.items()
    }
    assert {name: options - {"--help"} for name, options in found.items()} == {
        name: set(options.split()) for name, options in COMMANDS.items()
    }


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_every_command_explains_itself(name, capsys):
    assert cli.main([*([name] if name else []), "--help"]) == 0
    out = capsys.readouterr().out
    assert "Usage: expunge" in out
    for option in COMMANDS.get(name, "").split():
        assert option in out


def test_help_answers_at_once_and_imports_nothing_heavy():
    program = (
        "import sys; from expunge.cli import main; code = main(['--help']); "
        "print(','.join(m for m in sys.modules if '.' not in m), file=sys.stderr); sys.exit(code)"
    )
    spent = []
    for _ in range(5):  # the best of some: on a busy machine the same work takes more CPU time
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if spent[-1] < 0.5:
            break
    assert min(spent) < 0.5, f"{spent} CPU-seconds"
    assert set(done.stderr.strip().split(",")).isdisjoint(HEAVY)
    assert "Start with: expunge demo" in done.stdout


def test_the_console_script_and_the_module_are_the_same_program():
    done = subprocess.run([sys.executable, "-m", "expunge", "lst"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such command 'lst'" in done.stderr
    assert "Traceback" not in done.stderr


def test_list_names_every_part_and_one_kind_alone(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for kind in HOMES:
        assert plural(kind) in out
        for name in entries(kind):
            assert name in out
    assert cli.main(["list", "methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["method"]
    assert found["method"].keys() == entries("method").keys()
    assert all(found["method"].values())


@pytest.mark.parametrize("kind", HOMES)
def test_every_part_can_be_shown(kind, capsys):
    for name, entry in entries(kind).items():
        assert cli.main(["show", name]) == 0
        out = capsys.readouterr().out
        assert f"{kind} {name}" in out
        assert entry.summary[:30] in out


def test_show_npo_tells_arguments_paper_expansion_and_cost(capsys):
    assert cli.main(["show", "npo"]) == 0
    out = capsys.readouterr().out
    for part in (
        "objective npo",
        "method npo",
        "beta = 0.1",
        "arXiv 2404.05868",
        "use: npo",
        "a step, per example: forget 1 forward, 1 backward; retain 1 forward, 1 backward",
        "1 forward of the start weights per distinct example of forget",
        "no second model",
    ):
        assert part in out, part


def test_wrong_names_are_told_with_the_closest(capsys):
    for arguments, message in (
        (["list", "metods"], "unknown kind 'metods'; did you mean 'methods'?"),
        (["show", "nppo"], "nothing is called 'nppo'; did you mean 'npo'?"),
        (["bench", "tofuu"], "unknown benchmark 'tofuu'; did you mean 'tofu'?"),
    ):
        assert cli.main(arguments) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert len(captured.err.splitlines()) == 1
        assert captured.out == ""


@pytest.mark.parametrize("arguments", [["run"], ["unlearn", "m"], ["run", "r.yaml", "--no-such"], ["nothing"], []])
def test_usage_errors_end_2_without_a_traceback(arguments, capsys):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert "Usage" in captured.err + captured.out


def test_colour_is_not_used_when_it_is_not_wanted(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli.main(["list", "methods"]) == 0
    out = capsys.readouterr().out
    assert "\x1b[3" not in out.replace("\x1b[3m", "")  # no colours; italics are none
    monkeypatch.delenv("FORCE_COLOR")
    assert cli.main(["list", "methods"]) == 0
    assert "\x1b" not in capsys.readouterr().out
