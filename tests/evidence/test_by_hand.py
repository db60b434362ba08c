"""The commands of the documentation verify a pack without Expunge, and fail when something was changed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from expunge.evidence import keys
from support.packs import fingerprint, key, model_folder, pack, run_files

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evidence.md"
TOOLS = ("openssl", "jq", "sha256sum", "sed", "bash")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    if not subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout[8:9] >= "3":
        pytest.skip("needs OpenSSL 3")
    files = {f"file{i}": bytes([i]) * i for i in range(3)} | {"sub folder/deep": b"x"}
    model_folder(tmp_path / "run", run_files())
    (tmp_path / "evidence.json").write_bytes(pack(model_folder(tmp_path / "model", files)))
    (tmp_path / "me.pub.pem").write_text(keys.pem_of(key().public_key()))
    return tmp_path


def by_hand(folder: Path) -> subprocess.CompletedProcess[str]:
    text = PAGE.read_text(encoding="utf-8").split("## By hand")[1]
    script = "set -euo pipefail\n" + "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    return subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_the_commands_of_the_page_accept_what_is_untouched(folder: Path) -> None:
    done = by_hand(folder)
    assert done.returncode == 0, done.stderr
    assert fingerprint() in done.stdout
    assert "Signature Verified Successfully" in done.stdout
    assert "FAIL forgotten: probability on forget" in done.stdout
    assert done.stdout.endswith("relearn\n")


@pytest.mark.parametrize("harm", [
    lambda folder: (folder / "model" / "file1").write_bytes(b"other"),
    lambda folder: (folder / "model" / "more").write_bytes(b""),
    lambda folder: (folder / "model" / "sub folder" / "deep").unlink(),
    lambda folder: (folder / "run" / "report.html").write_bytes(b"<HTML>"),
    lambda folder: (folder / "evidence.json").write_bytes(
        (folder / "evidence.json").read_bytes().replace(b'"FAIL"', b'"PASS"')
    ),
    lambda folder: (folder / "me.pub.pem").write_text(keys.pem_of(key(2).public_key())),
])
def test_they_refuse_what_was_changed(folder: Path, harm) -> None:
    harm(folder)
    assert by_hand(folder).returncode != 0
