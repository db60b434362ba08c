"""What holds and what does not, told one finding a thing."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest

from expunge.errors import DataError
from expunge.evidence import statement as statements
from expunge.evidence.check import check
from expunge.evidence.files import File, file_of, hashes_of
from expunge.evidence.form import as_written, line_of, opened, sealed
from expunge.evidence.statement import read_run
from support.packs import FILES, evidence, fingerprint, key, model_folder, pack, run_files, statement

ME = {fingerprint()}


@pytest.fixture
def model(tmp_path):
    return model_folder(tmp_path / "model")


def where(result):
    return [one.where for one in result.findings]


def signed(made, by=1):
    line = line_of(made)
    return sealed(line, key(by).sign(line))


def test_an_untouched_pack_and_model_hold(model, tmp_path):
    found = check(pack(model), trust=ME, model=model)
    assert found.holds
    assert found.intact
    assert found.trusted
    assert found.model
    alone = check(pack(model), trust=ME)
    assert (alone.holds, alone.model) == (True, False)
    shutil.copytree(model, tmp_path / "elsewhere")
    assert check(pack(model), trust=ME, model=tmp_path / "elsewhere").holds  # wherever it is deployed


def test_every_difference_of_the_model_is_one_finding_with_both_sides(model):
    raw = pack(model)
    (model / "config.json").write_bytes(b"{}")
    (model / "code" / "module.py").unlink()
    (model / "code" / "more.py").write_bytes(b"x")
    found = check(raw, trust=ME, model=model)
    assert where(found) == ["code/module.py", "code/more.py", "config.json"]
    gone, more, changed = found.findings
    assert (gone.found, more.certified) == ("found no such file", "certified no such file")
    assert changed.certified == f"certified sha256 {file_of(FILES['config.json']).sha256} (20 bytes)"
    assert changed.found == f"found sha256 {file_of(b'{}').sha256} (2 bytes)"
    assert found.intact


def test_what_is_no_file_is_a_difference_too(model):
    raw = pack(model)
    os.mkfifo(model / "pipe")
    (model / "up").symlink_to(model.parent)
    found = check(raw, trust=ME, model=model)
    assert [str(one) for one in found.findings] == [
        "pipe: certified no such file; found not a file", "up: certified no such file; found a link to a folder",
    ]


def test_without_trust_nothing_is_verified_and_a_stranger_is_named(model):
    for trust, words in (((), "nobody|somebody vouches"), ({fingerprint(2)}, "a key you trust")):
        found = check(pack(model), trust=trust, model=model)
        assert (found.holds, found.intact, found.trusted) == (False, True, False)
        (one,) = found.findings
        assert one.where == "signer"
        assert fingerprint() in one.found
        assert any(word in one.certified for word in words.split("|"))


def test_a_changed_pack_signed_anew_by_a_stranger_does_not_verify(model):
    """Whoever can change the model and the pack can sign it too; only the fingerprint tells."""
    (model / "model.safetensors").write_bytes(b"another model")
    forged = pack(model, by=2)
    assert check(forged, trust=None, model=model).holds
    assert where(check(forged, trust=ME, model=model)) == ["signer"]
    assert where(check(forged, model=model)) == ["signer"]
    stolen = statement(model)  # says it is by key 1, signed by key 2
    assert where(check(signed(stolen, by=2), trust=ME, model=model)) == ["signature"]
    swapped = replace(stolen, signer=replace(stolen.signer, fingerprint=fingerprint(2)))
    assert where(check(signed(swapped), trust={fingerprint(2)}, model=model)) == ["signer"]


def test_unsigned_is_not_verified(model):
    found = check(pack(model, by=None), trust=ME, model=model)
    assert where(found) == ["signature"]
    assert "UNSIGNED" in found.findings[0].found
    raw = pack(model)
    assert where(check(sealed(opened(raw).line, None), trust=ME)) == ["signature"]  # its signature was torn off
    alien = sealed(opened(pack(model, by=None)).line, opened(raw).signature)
    assert where(check(alien, trust=ME)) == ["signature"]


def test_packs_form_a_chain(model):
    first = pack(model)
    second = pack(model, before=first)
    third = pack(model, before=second, by=2)
    assert (opened(second).statement.number, opened(second).statement.previous) == (2, file_of(first).sha256)
    assert check(second, trust=ME, previous=first).holds
    assert check(second, trust=ME).holds  # alone, without the one before
    assert check(third, trust={*ME, fingerprint(2)}, previous=second).holds  # another key may go on
    assert where(check(third, trust={fingerprint(2)}, previous=second)) == ["previous pack, signer"]
    other = pack(model, title="Another")
    assert where(check(second, trust=ME, previous=other)) == ["chain"]
    assert where(check(first, trust=ME, previous=other)) == ["chain"]
    assert where(check(third, trust={*ME, fingerprint(2)}, previous=first)) == ["chain"]
    torn = first.replace(b"FAIL", b"PASS")
    assert where(check(second, trust=ME, previous=torn)) == ["previous pack, signature", "chain"]


def test_a_number_that_does_not_follow_is_found(model):
    first = pack(model)
    skipping = replace(statement(model, before=first), number=3)
    assert where(check(signed(skipping), trust=ME, previous=first)) == ["chain"]
    for number, previous in ((2, None), (1, "ab"), (0, None)):
        made = replace(statement(model), number=number, previous=previous)
        assert where(check(signed(made), trust=ME)) == ["chain"]


def test_parts_that_contradict_each_other_are_found(model):
    made = statement(model)
    other = json.loads(evidence(verdict="PASS").to_json())
    strange = {**made.scores, "digest": "000000000000"}
    for changed, expected in (
        (replace(made, scores=other), ["scores.json"]),
        (replace(made, lineage={**made.lineage, "data": {}}), ["lineage.json"]),
        (replace(made, environment={}), ["env.json"]),
        (replace(made, run={**made.run, "scores.json": File("0", 0)}), ["scores.json"]),
        (replace(made, run={}), ["scores.json", "lineage.json", "env.json"]),
        (replace(made, recipe=replace(made.recipe, digest="000000000000")), ["recipe"]),
        (replace(made, scores=strange), ["scores.json", "recipe"]),
        (replace(made, weights="00"), ["weights"]),
        (replace(made, scores={"\udcff": 1}), ["scores.json", "recipe"]),
    ):
        assert where(check(signed(changed), trust=ME)) == expected


def test_certified_files_that_are_not_those_that_were_audited_are_found(tmp_path):
    model, base = model_folder(tmp_path / "model"), model_folder(tmp_path / "base", {"config.json": b"{}"})
    made, listed, below = statement(model, base), hashes_of(model), hashes_of(base)

    def found(**files):
        lineage = {**made.lineage, "files": files}
        run = {**made.run, "lineage.json": file_of(as_written(lineage))}
        return where(check(signed(replace(made, lineage=lineage, run=run)), trust=ME))

    assert found(model=listed, base=below) == []
    assert found(model=listed) == ["base: config.json"]
    assert found(model=listed | {"config.json": "0"}, base=below | {"more": "0"}) == ["config.json", "base: more"]
    assert found(model={"config.json": listed["config.json"]}, base=below) == sorted({*FILES} - {"config.json"})


def test_the_base_of_an_adapter_is_checked_as_well(tmp_path):
    base, adapter = model_folder(tmp_path / "base"), model_folder(tmp_path / "adapter", {"adapter.safetensors": b"x"})
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    raw = pack(adapter, base)
    assert check(raw, trust=ME, model=adapter).holds
    shutil.copytree(base, tmp_path / "moved")
    (base / "config.json").write_bytes(b"{}")
    assert where(check(raw, trust=ME, model=adapter)) == ["base: config.json"]
    assert check(raw, trust=ME, model=adapter, base=tmp_path / "moved").holds
    shutil.rmtree(base)
    (missing,) = check(raw, trust=ME, model=adapter).findings
    assert "--base" in missing.found
    (adapter / "adapter_config.json").unlink()
    assert where(check(raw, trust=ME, model=adapter)) == ["adapter_config.json", "base"]


def test_a_run_is_read_only_when_it_is_finished_and_untouched(tmp_path):
    folder = model_folder(tmp_path / "run", run_files())
    assert read_run(folder) == run_files()
    for name, content, message in (
        ("scores.json", run_files()["scores.json"].replace(b"FAIL", b"PASS ") + b" ", "was written to after the run"),
        ("scores.json", b"{", "was written to after the run"), ("scores.json", b"[]", "was written to after the run"),
        ("lineage.json", b'{\n "recipe": "3f9a0c17be42"\n}\n', "holds no result"),
        ("scores.json", run_files(digest="000000000000")["scores.json"], "all files of one run"),
    ):
        model_folder(folder, run_files() | {name: content})
        with pytest.raises(DataError, match=message):
            read_run(folder)
    for name in statements.RUN_FILES:
        model_folder(folder, run_files())
        (folder / name).unlink()
        with pytest.raises(DataError, match="audited to its end"):
            read_run(folder)
