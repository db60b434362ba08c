"""`expunge verify`: quick, without torch, and one line for each thing that does not hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from expunge import cli
from expunge.evidence import keys
from support.packs import fingerprint, key, model_folder, pack


@pytest.fixture
def files(tmp_path):
    """evidence.json of model/, second.json after it, and the signer's public key."""
    model = model_folder(tmp_path / "model")
    first = pack(model)
    (tmp_path / "evidence.json").write_bytes(first)
    (tmp_path / "second.json").write_bytes(pack(model, before=first))
    (tmp_path / "key.pub.pem").write_text(keys.pem_of(key().public_key()))
    return tmp_path


@pytest.fixture
def verify(files, capsys, monkeypatch):
    monkeypatch.chdir(files)

    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main(["verify", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_everything_holds(verify):
    for trust in ("key.pub.pem", fingerprint(), "sha256:" + fingerprint().upper()):
        code, out = verify("evidence.json", "model", "--trust", trust)
        assert code == 0
        assert out.startswith("VERIFIED: this is the model that was certified (verdict: FAIL)\n")
    for words in (
        f"{fingerprint()} (a key you trust)", "6 files, ", "'{prompt} {answer}', float32, greedy decoding",
        "Removal of 3 Caf\u00e9s (small, recipe 3f9a0c17be42", "Verdict:   FAIL", "Not tested: relearn",
        "FAIL         forgotten: probability on forget, worst: After the removal; knows clearly more",
    ):
        assert words in out


def test_the_pack_alone_says_that_no_weights_were_checked(verify):
    code, out = verify("evidence.json", "--trust", "key.pub.pem")
    assert code == 0
    assert "no MODEL was given, no weights were checked" in out.splitlines()[0]


def test_nobody_vouched_for_the_signer(verify):
    code, out = verify("evidence.json", "model")
    assert code == 1
    assert out.startswith("NOT VERIFIED: unchanged since it was signed, but nobody vouched for the signer\n- signer: ")
    assert fingerprint() in out
    code, out = verify("evidence.json", "model", "--trust", fingerprint(2))
    assert (code, out.splitlines()[1].startswith("- signer: a key you trust")) == (1, True)


def test_each_difference_is_a_line(verify, files):
    (files / "model" / "config.json").write_bytes(b"{}")
    (files / "model" / "tokenizer.json").unlink()
    (files / "model" / "more\x1b[2J").write_bytes(b"")
    code, out = verify("evidence.json", "model", "--trust", "key.pub.pem")
    assert code == 1
    lines = [line for line in out.splitlines() if line.startswith("- ")]
    assert out.startswith("NOT VERIFIED\n")
    both = r"- config.json: certified sha256 \w{64} \(20 bytes\); found sha256 \w{64} \(2 bytes\)"
    assert re.fullmatch(both, lines[0])
    assert lines[1].startswith(r"- more\x1b[2J: certified no such file; found sha256 ")
    assert lines[2].endswith("found no such file")
    assert "\x1b" not in out
    for number in range(30):
        (files / "model" / f"extra{number}").write_bytes(b"")
    _, out = verify("evidence.json", "model", "--trust", "key.pub.pem")
    assert "- and 13 more (--json lists all)" in out


def test_what_a_changed_pack_says_is_not_shown(verify, files):
    (files / "evidence.json").write_bytes((files / "evidence.json").read_bytes().replace(b'"FAIL"', b'"PASS"'))
    code, out = verify("evidence.json", "model", "--trust", "key.pub.pem")
    assert code == 1
    assert "PASS" not in out
    assert "changed after it was signed" in out
    code, out = verify("evidence.json", "--trust", "key.pub.pem", "--json")
    assert (code, "verdict" in json.loads(out)) == (1, False)


def test_a_chain_is_checked(verify):
    code, out = verify("second.json", "--trust", "key.pub.pem")
    assert code == 0
    assert "not checked: give it with --previous" in out
    assert verify("second.json", "--trust", "key.pub.pem", "--previous", "evidence.json")[0] == 0
    code, out = verify("second.json", "--trust", "key.pub.pem", "--previous", "second.json")
    assert (code, "- chain: certified previous pack sha256" in out) == (1, True)


def test_the_base_of_an_adapter_may_have_moved(verify, files):
    base = model_folder(files / "base", {"w": b"1"})
    adapter = model_folder(files / "adapter", {"adapter_config.json": b'{"base_model_name_or_path": "/nowhere"}'})
    (files / "adapter.json").write_bytes(pack(adapter, base))
    code, out = verify("adapter.json", "adapter", "--trust", "key.pub.pem")
    assert (code, "which is no folder here; give its folder with --base" in out) == (1, True)
    assert verify("adapter.json", "adapter", "--trust", "key.pub.pem", "--base", "base")[0] == 0
    (base / "w").write_bytes(b"2")
    code, out = verify("adapter.json", "adapter", "--trust", "key.pub.pem", "--base", "base")
    assert (code, "- base: w: certified" in out) == (1, True)


def test_programs_get_all_of_it(verify):
    code, out = verify("second.json", "model", "--trust", "key.pub.pem", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["verified"], found["trusted"], found["model_checked"], found["findings"]) == (True, True, True, [])
    assert (found["verdict"], found["number"], found["signer"]) == ("FAIL", 2, fingerprint())
    assert found["untested"] == [{"what": "relearn", "why": "available, not asked for"}]
    code, out = verify("second.json", "model", "--json")
    found = json.loads(out)
    assert (code, found["verified"], found["trusted"], len(found["findings"])) == (1, False, False, 1)


def test_scores_of_another_release_do_not_hide_the_result(verify, files):
    (files / "evidence.json").write_bytes(pack(files / "model", expunge=99))
    code, out = verify("evidence.json", "model", "--trust", "key.pub.pem")
    assert code == 0
    assert "Claims:    not shown, this release cannot read them" in out


@pytest.mark.parametrize(("arguments", "message"), [
    (("none.json",), "none.json: cannot be read"), (("key.pub.pem",), "no evidence pack"), (("model",), "no.* file"),
    (("evidence.json", "modle"), "no such folder"), (("evidence.json", "key.pub.pem"), "is no folder"),
    (("evidence.json", "--trust", "nobody"), "no such file, and no fingerprint"),
    (("evidence.json", "--previous", "none.json"), "none.json: cannot be read"),
    (("evidence.json", "--base", "model"), "no MODEL"),
    (("evidence.json", "model", "--base", "model"), "the certified model is no adapter"),
])
def test_mistakes_end_2_with_one_line(verify, arguments, message):
    code, out = verify(*arguments)
    assert code == 2
    (line,) = out.splitlines()
    assert re.fullmatch(r"expunge: .+: .+; .+\. .+", line), line
    assert re.search(message, line), line


def test_it_needs_no_torch(files):
    program = (
        "import sys; from expunge.cli import main; code = main(sys.argv[1:]); "
        "print(','.join(m for m in sys.modules if '.' not in m), file=sys.stderr); sys.exit(code)"
    )
    arguments = ["verify", "evidence.json", "model", "--trust", "key.pub.pem"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, cwd=files
    )
    heavy = {"torch", "transformers", "peft", "accelerate", "datasets", "scipy", "pyarrow", "numpy", "huggingface_hub"}
    assert set(done.stderr.strip().split(",")).isdisjoint(heavy)
    assert done.stdout.startswith("VERIFIED")
