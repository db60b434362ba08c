"""expunge pack RUN --key KEY.pem"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.run import AsJson
from expunge.errors import DataError, ModelError, RecipeError

if TYPE_CHECKING:
    from expunge.evidence.form import Folder, Opened, Settings
    from expunge.recipe import Recipe
    from expunge.run import Progress

_NAMED = 8  # files that are named in an error; the rest is counted


def pack(
    run: Annotated[Path | None, typer.Argument(help="Folder of a finished, audited run.")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder to certify. Default: what the run made, or audited.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Private key to sign with (PEM, Ed25519).")] = None,
    new_key: Annotated[
        Path | None, typer.Option("--new-key", help="Make a key pair, KEY.pem and KEY.pub.pem, and do nothing else.")
    ] = None,
    previous: Annotated[Path | None, typer.Option("--previous", help="The pack before this one in its chain.")] = None,
    unsigned: Annotated[bool, typer.Option("--unsigned", help="Do not sign. It will never verify.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="File of the pack. Default: RUN/evidence.json.")] = None,
    as_json: AsJson = False,
) -> int:
    """Sign what an audit found together with the very files of the model it was found on."""
    if new_key is not None:
        return _new_key(new_key, as_json)
    if run is None:
        raise RecipeError("pack", "no RUN", "the folder of a finished, audited run", "Name it, or use --new-key")
    if (key is None) != unsigned:
        found = "no --key" if key is None else "--key and --unsigned"
        raise RecipeError("pack", found, "a key to sign with, or --unsigned", "Make one: pack --new-key KEY.pem")
    from expunge.cli.screen import bars

    target = out or run / "evidence.json"
    if target.exists():
        raise DataError(str(target), "is there already", "evidence is never overwritten", "Choose another --out")
    with bars(quiet=as_json) as progress:
        raw = _made(run, model, key, previous, target, progress)
    from expunge.run import write_text

    write_text(target, raw.decode("ascii"))
    _tell(raw, target, as_json)
    return 0


def _new_key(path: Path, as_json: bool) -> int:
    from expunge.evidence.keys import new_key

    fingerprint, public = new_key(path)
    if as_json:
        print(json.dumps({"key": str(path), "public_key": str(public), "fingerprint": fingerprint}))
        return 0
    print(f"Private key: {path}   (keep it; whoever has it signs as you)")
    print(f"Public key:  {public}   (give it to those who verify)")
    print(f"Fingerprint: {fingerprint}   (tell it them by another way than the packs)")
    return 0


def _made(
    run: Path, model: Path | None, key_file: Path | None, previous: Path | None, target: Path, progress: Progress
) -> bytes:
    """The bytes of the pack, checked before anything is written."""
    import datetime

    from expunge import __version__, yaml12
    from expunge.evidence.check import check
    from expunge.evidence.keys import load_key
    from expunge.evidence.statement import audited, pack_of, read_run, signer_of, statement_of
    from expunge.recipe import Recipe

    key = load_key(key_file) if key_file is not None else None
    if key_file is not None:
        _warn_of_open_key(key_file)
    before = _previous(previous) if previous is not None else None
    files = read_run(run)
    lineage = json.loads(files["lineage.json"])
    if audited(lineage) is None:
        raise DataError(
            str(run / "lineage.json"), "does not say which files were audited: audited by an older release",
            "a run that lists them", "Run the audit again",
        )
    recipe = Recipe.load(run / "recipe.resolved.yaml")
    _check_run(run, recipe, files)
    folder = _folder(run, model, recipe)
    if target.resolve().is_relative_to(folder.resolve()):
        raise DataError(str(target), "lies in the certified folder", "a place outside it", "Choose another --out")
    certified, base, settings = _certify(folder, recipe, lineage, progress)
    statement = statement_of(
        files, model=certified, base=base, settings=settings, recipe=yaml12.read(recipe.to_yaml(show_text=False)),
        made_by=f"expunge {__version__}", created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        signer=signer_of(key), before=before,
    )
    raw = pack_of(statement, key)
    wrong = [one for one in check(raw, trust=None).findings if key is not None]
    if wrong:
        raise DataError(str(run), str(wrong[0]), "files of one run, as it left them", "Run the audit again")
    return raw


def _warn_of_open_key(path: Path) -> None:
    import sys

    from expunge.evidence.keys import open_to_others

    if open_to_others(path):
        print(f"expunge: warning: {path} can be read by others; chmod 600 it", file=sys.stderr)


def _previous(path: Path) -> tuple[Opened, str]:
    from expunge.evidence.check import check
    from expunge.evidence.files import file_of
    from expunge.evidence.form import read_pack

    raw = read_pack(path)
    found = check(raw, trust=None)
    if found.opened is None or not found.holds:
        raise DataError(
            f"--previous {path}", f"does not verify ({found.findings[0]})", "a signed pack as it was written",
            "Find an unchanged copy",
        )
    return found.opened, file_of(raw).sha256


def _check_run(run: Path, recipe: Recipe, files: Mapping[str, bytes]) -> None:
    """Recipe and report must be those of these scores: what people read is what is signed."""
    from expunge.report import html, schema

    evidence = schema.parse(json.loads(files["scores.json"]), str(run / "scores.json"))
    if recipe.digest() != evidence.digest:
        raise DataError(
            str(run / "recipe.resolved.yaml"), f"has the digest {recipe.digest()}, the scores {evidence.digest}",
            "the recipe as the run left it, read by the release that ran it", "Put it back, or run the audit again",
        )
    if html.render(evidence).encode() != files["report.html"]:
        raise DataError(
            str(run / "report.html"), "is not the report of these scores.json", "what this release renders of them",
            f"Run: expunge report {run}",
        )


def _folder(run: Path, model: Path | None, recipe: Recipe) -> Path:
    """What is certified: the folder that was named, else what the run made, else what it audited."""
    from expunge.artefacts import bring

    made = [run / name for name in ("model", "adapter") if (run / name).is_dir()]
    if model is None and made and recipe.stages:
        return made[0]
    return bring(str(model or recipe.source), **_trust(recipe))


def _trust(recipe: Recipe) -> dict[str, bool]:
    return {name: recipe.model.hyper[name] for name in ("allow_pickle", "trust_remote_code")}


def _certify(
    folder: Path, recipe: Recipe, lineage: dict[str, Any], progress: Progress
) -> tuple[Folder, Folder | None, Settings]:
    """The files, all as they were audited, and that they load to the weights that were measured."""
    from expunge.artefacts import bring
    from expunge.cli.screen import start
    from expunge.evidence.files import base_of, certified, stamps
    from expunge.evidence.form import Folder

    base = base_of(folder)
    folders = [folder, *([bring(base, **_trust(recipe))] if base is not None else [])]
    if base is not None and base_of(folders[1]) is not None:
        raise ModelError(str(folder), "an adapter on an adapter", "an adapter on a model", "Merge the lower one")
    for one in folders:
        _refuse_code_from_elsewhere(one)
    seen = [stamps(one) for one in folders]
    listed = [Folder(one.resolve().name, certified(one, progress)) for one in folders]
    below = listed[1] if base is not None else None
    _compare(folder, lineage, listed[0], below)
    start()
    settings = _measured(folder, recipe, lineage["result"]["weights"])
    if [stamps(one) for one in folders] != seen:
        raise ModelError(str(folder), "was written to while it was packed", "files at rest", "Pack it again")
    return listed[0], below, settings


def _compare(folder: Path, lineage: Mapping[str, Any], model: Folder, base: Folder | None) -> None:
    """Raises: ModelError unless every file is the one that was audited; a configuration changes what a model says."""
    from expunge.evidence.files import shown
    from expunge.evidence.statement import not_audited

    wrong = [f"{shown(name)} ({what})" for name, what in not_audited(lineage, model, base)]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ModelError(
            str(folder), f"is not what was audited: {', '.join(wrong[:_NAMED])}{more}",
            "the very files that were audited, none changed, missing or added",
            "Put them back, name their folder with --model, or audit this one",
        )


def _refuse_code_from_elsewhere(folder: Path) -> None:
    from expunge.artefacts import read_json

    for path in sorted(folder.glob("*.json")):
        if "--" in json.dumps(read_json(path).get("auto_map", "")):
            raise ModelError(
                str(path), "names code of another repository", "code in the certified folder",
                "Copy the modules into the folder and correct auto_map",
            )


def _measured(folder: Path, recipe: Recipe, weights: str) -> Settings:
    """How the model was asked. Raises: ModelError when these are not the weights that were measured."""
    import dataclasses

    from expunge.evidence.form import Settings
    from expunge.models import load, weights_hash

    subject = load(str(folder), **{**recipe.model.hyper, "device": "cpu"})
    found = weights_hash(subject)
    if found != weights:
        raise ModelError(
            str(folder), f"holds other weights ({found}) than those that were measured ({weights})",
            "the model of this run, loaded as the run did", "Name it with --model, or audit this one",
        )
    template, precision = subject.wrapper.template, str(recipe.model.hyper["dtype"])
    return Settings(template, subject.task, precision, dataclasses.asdict(subject.decoding))


def _tell(raw: bytes, target: Path, as_json: bool) -> None:
    from expunge.evidence.files import file_of, shown
    from expunge.evidence.form import opened

    statement = opened(raw).statement
    signer = statement.signer.fingerprint if statement.signer is not None else None
    verdict = statement.scores.get("verdict")
    if as_json:
        print(json.dumps({
            "pack": str(target), "sha256": file_of(raw).sha256, "number": statement.number, "signer": signer,
            "verdict": verdict, "files": len(statement.model.files),
        }))
        return
    below = f" and {len(statement.base.files)} of its base" if statement.base is not None else ""
    print(f"Pack:      {target}, number {statement.number}, sha256 {file_of(raw).sha256}")
    print(f"Certified: {len(statement.model.files)} files of {shown(statement.model.name)}{below}")
    print(f"Verdict:   {verdict or 'none asked'}")
    print(f"Signed by: {signer or 'nobody (UNSIGNED)'}")
    print(f"Verify:    expunge verify {target} MODEL" + (f" --trust {signer}" if signer else ""))
