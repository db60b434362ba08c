"""expunge verify PACK MODEL --trust PUBLIC_KEY"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.run import AsJson
from expunge.errors import ExpungeError, ModelError, RecipeError

if TYPE_CHECKING:
    from expunge.evidence.check import Result
    from expunge.evidence.form import Statement
    from expunge.report.schema import Evidence

MOST = 20  # findings that are printed


def verify(
    pack: Annotated[Path, typer.Argument(help="An evidence pack.")],
    model: Annotated[Path | None, typer.Argument(help="Folder of the model or adapter that is in use.")] = None,
    trust: Annotated[
        list[str] | None, typer.Option("--trust", help="Public key file or fingerprint you believe; may be repeated.")
    ] = None,
    base: Annotated[Path | None, typer.Option("--base", help="Folder of the adapter's base, if it has moved.")] = None,
    previous: Annotated[Path | None, typer.Option("--previous", help="The pack before this one, checked too.")] = None,
    as_json: AsJson = False,
) -> int:
    """Check a pack, its signer, and that the model in use is the very one that was certified. Needs no torch."""
    from expunge.cli.screen import bars
    from expunge.evidence.check import check
    from expunge.evidence.form import read_pack
    from expunge.evidence.keys import trusted

    raw = read_pack(pack)
    before = read_pack(previous) if previous is not None else None
    keys = {trusted(text) for text in trust or []}
    _check_folders(model, base)
    with bars(quiet=as_json) as progress:
        result = check(raw, trust=keys, model=model, base=base, previous=before, progress=progress)
    if base is not None and result.opened is not None and result.opened.statement.base is None:
        raise RecipeError("--base", "the certified model is no adapter", "PACK MODEL alone", "Leave it out")
    if as_json:
        print(json.dumps(_plain(result, pack)))
    else:
        _print(result)
    return 0 if result.holds else 1


def _check_folders(model: Path | None, base: Path | None) -> None:
    for name, folder in (("MODEL", model), ("--base", base)):
        if folder is not None and not folder.is_dir():
            found = "is no folder" if folder.exists() else "no such folder"
            raise ModelError(f"{name} {folder}", found, "the folder of the model in use", "Correct the path")
    if base is not None and model is None:
        raise RecipeError("--base", "no MODEL", "the adapter's folder before it", "Name it")


def headline(result: Result) -> str:
    """The outcome in one line."""
    if result.holds and result.opened is not None:
        verdict = result.opened.statement.scores.get("verdict") or "none asked"
        if not result.model:
            return f"VERIFIED, THE PACK ALONE (verdict: {verdict}): no MODEL was given, no weights were checked"
        return f"VERIFIED: this is the model that was certified (verdict: {verdict})"
    if result.opened is not None and result.opened.statement.signer is None:
        return "NOT VERIFIED: UNSIGNED"
    if result.intact and not result.trusted and len(result.findings) == 1:
        return "NOT VERIFIED: unchanged since it was signed, but nobody vouched for the signer"
    return "NOT VERIFIED"


def _plain(result: Result, pack: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "pack": str(pack), "verified": result.holds, "outcome": headline(result), "trusted": result.trusted,
        "model_checked": result.model, "previous_checked": result.previous,
        "findings": [{"where": f.where, "certified": f.certified, "found": f.found} for f in result.findings],
    }
    if result.opened is not None and result.intact:
        statement = result.opened.statement
        found |= {
            "signer": statement.signer.fingerprint if statement.signer is not None else None,
            "created": statement.created, "number": statement.number, "verdict": statement.scores.get("verdict"),
            "verdicts": statement.scores.get("verdicts"), "untested": statement.scores.get("untested"),
        }
    return found


def _print(result: Result) -> None:
    from rich.text import Text

    from expunge.cli.screen import console
    from expunge.evidence.files import shown

    screen = console()
    screen.print(Text(shown(headline(result)), style="bold green" if result.holds else "bold red"), soft_wrap=True)
    for finding in result.findings[:MOST]:
        screen.print(Text(f"- {shown(str(finding))}"), soft_wrap=True)
    if len(result.findings) > MOST:
        screen.print(f"- and {len(result.findings) - MOST} more (--json lists all)")
    if result.opened is None:
        return
    statement = result.opened.statement
    if not result.intact and statement.signer is not None:
        screen.print("What it says is not shown: it is not what was signed.")
        return
    for line in (*_about(statement, result), *_claims(statement)):
        screen.print(Text(shown(line)), soft_wrap=True)


def _about(statement: Statement, result: Result) -> Iterator[str]:
    """Who signed what, and how it was measured."""
    if statement.signer is not None:
        who = "a key you trust" if result.trusted else "nobody vouched for it"
        yield f"Signed:    {statement.signer.fingerprint} ({who}), {statement.created} by the signer's clock"
    before = "checked" if result.previous else "not checked: give it with --previous"
    yield f"Chain:     number {statement.number}" + (
        f", after {statement.previous} ({before})" if statement.previous is not None else ", the first"
    )
    total = sum(file.size for file in statement.model.files.values())
    below = f", on the base '{statement.base.name}'" if statement.base is not None else ""
    checked = "compared with MODEL" if result.model else "not compared: no MODEL was given"
    yield f"Model:     '{statement.model.name}'{below}, {len(statement.model.files)} files, {total:,} bytes; {checked}"
    settings = statement.settings
    greedy = settings.decoding.get("temperature") == 0 and settings.decoding.get("num") == 1
    yield (
        f"Measured:  prompt template {settings.template!r}, {settings.precision}, "
        f"{'greedy decoding' if greedy else f'decoding {dict(settings.decoding)}'}, {statement.made_by}; a deployment "
        "that asks in other ways was not measured"
    )


def _claims(statement: Statement) -> Iterator[str]:
    """What was claimed, the verdicts, and what was not tested."""
    from expunge.report.schema import parse

    try:
        evidence = parse(statement.scores, "scores")
    except ExpungeError as error:
        yield f"Claims:    not shown, this release cannot read them ({error})"
        return
    yield f"Claims:    {evidence.title} ({evidence.subject}, recipe {evidence.digest}, audited {evidence.created})"
    for verdict in evidence.verdicts:
        worst = f", worst: {_name(evidence, verdict.condition)}" if verdict.condition else ""
        reason = f"; {verdict.reason}" if verdict.reason else ""
        yield f"  {verdict.verdict:<12} {verdict.claim}: {verdict.metric} on {verdict.stream}{worst}{reason}"
    yield f"Verdict:   {evidence.verdict or 'none asked'} (verifying does not change it: a FAIL can be certified too)"
    yield "Not tested: " + ("; ".join(item.what for item in evidence.untested) or "see the report")


def _name(evidence: Evidence, name: str) -> str:
    condition = evidence.condition(name)
    return condition.shown if condition is not None else name


