"""Which model folders may be loaded: safetensors only. Imports no torch.

A pickle, or a module of its own, in a model folder runs code on loading; both are refused unless asked for by flag.
Of a hub repository they are not even downloaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import ModelError, UnsafeArtefact, close_to
from expunge.types import Task

_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def bring(source: str, allow_pickle: bool, trust_remote_code: bool) -> Path:
    """The folder of a model; hub repositories are brought here, without what may not be loaded."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(source, "is a file", "a model is a folder (config, safetensors, tokenizer)", "Name its folder")
    siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
    near = close_to(folder.name, siblings) if siblings else "no folder of that name is near"
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source):
        raise ModelError(source, "no such folder", near, "Name an existing folder, or a model of the hub (owner/name)")
    from huggingface_hub import snapshot_download

    wanted = [*_HUB_FILES, *(["*.bin"] if allow_pickle else []), *(["*.py"] if trust_remote_code else [])]
    try:
        got = snapshot_download(source, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"])
    except Exception as error:  # the network below raises many kinds; all mean: could not be had
        reason = str(error).strip().split("\n", 1)[0]
        raise ModelError(
            source, f"no such local folder, and the hub did not give it ({type(error).__name__}: {reason})",
            near if "/" in source else "accepted: a local folder, or owner/name on the hub",
            "Check the name, the network and access rights; without a network, give a local folder",
        ) from error
    return Path(got)


def refuse_unsafe(folder: Path, source: str, allow_pickle: bool, trust_remote_code: bool) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    pickles = [path.name for path in files if path.suffix in _PICKLES]
    safe = any(path.suffix == ".safetensors" for path in files)
    if pickles and not allow_pickle:
        do = "Remove what is not needed" if safe else "Save it again with safetensors on a machine you can lose"
        raise UnsafeArtefact(
            source, f"holds pickles, which run code when read: {', '.join(pickles)}", "accepted: safetensors only",
            f"{do}, or ask for it with allow_pickle (--allow-pickle) if you trust where it comes from",
        )
    code = [path.name for path in files if path.suffix == ".py"]
    code += [f"auto_map in {path.name}" for path in files if path.suffix == ".json" and "auto_map" in read_json(path)]
    if code and not trust_remote_code:
        raise UnsafeArtefact(
            source, f"brings code of its own: {', '.join(code)}", "accepted: architectures that transformers has",
            "Read the code, then ask for it with trust_remote_code (--trust-remote-code)",
        )
    if not safe and not (pickles and allow_pickle) and any(path.name.endswith("config.json") for path in files):
        raise ModelError(
            source, "no weights (no *.safetensors file)", "accepted: safetensors", "Check that the copy is complete"
        )


def named_task(folder: Path) -> Task:
    """What the model in a folder was made for, as its architecture says; "causal" where it says nothing."""
    from transformers.models.auto import modeling_auto as known

    names = read_json(folder / "config.json").get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    tables: tuple[tuple[Task, Mapping[str, Any], str], ...] = (  # BART stands among the masked models too
        ("causal", known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "ForCausalLM"),
        ("seq2seq", known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "ForConditionalGeneration"),
        ("masked", known.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "ForMaskedLM"),
        ("classification", known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "ForSequenceClassification"),
    )
    for task, table, _ in tables:
        if name in table.values():
            return task
    return next((task for task, _, ending in tables if name.endswith(ending)), "causal")


def read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever needs this file will say so
        return {}
    return content if isinstance(content, dict) else {}


def stored_tensors(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and plain tensors of a state dict; one that is kept packed (torchao) by the tensors it is made of."""
    for name, tensor in state.items():
        if hasattr(tensor, "__tensor_flatten__"):
            parts = tensor.__tensor_flatten__()[0]
            yield from stored_tensors({f"{name}.{part}": getattr(tensor, part) for part in parts})
        else:
            yield name, tensor
