"""Models in and out: load safely, save whole, hash, copy, and find the parts every method needs.

Which artefacts may be loaded at all is decided in `artefacts.py`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import string
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from expunge.artefacts import bring, named_task, read_json, refuse_unsafe, stored_tensors
from expunge.errors import ModelError, close_to
from expunge.evidence.files import base_of
from expunge.machine import storage_error, whole_folder
from expunge.types import Subject, Task, Wrapper

if TYPE_CHECKING:
    from torch import Tensor, nn

_CLASSES: dict[Task, str] = {
    "causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM", "seq2seq": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
}
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_PLAIN = "{prompt} {answer}"
_LENGTH_FIELDS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "seq_length")


class ExpungeWarning(UserWarning):
    """Something to know that stops nothing. Has the four parts of an ExpungeError."""

    def __init__(self, where: str, found: str, accepted: str, do: str) -> None:
        super().__init__(f"{where}: {found}; {accepted}. {do}")


def load(
    source: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    template: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    task: Task | Literal["auto"] = "auto",
) -> Subject:
    """Load a model and its tokenizer from a local folder or the hub; a PEFT adapter brings its base along.

    Args:
        source: folder, or hub name such as "owner/name".
        dtype: what to compute in: float32, bfloat16, float16 or float64.
        template: "chat" (the tokenizer's own), a format string with {prompt} and {answer}, or "auto": chat where
            the tokenizer has a chat template, else "{prompt} {answer}". Encoder-decoders and classifiers read the
            prompt alone, through "{prompt}" or such as "translate: {prompt}".
        task: causal, masked, seq2seq or classification; "auto": as the architecture says.
        trust_remote_code: run Python modules that come with the model. allow_pickle: read pickled weights.
    Returns: a Subject in evaluation mode (dropout off), named after the last part of `source`.
    Raises: UnsafeArtefact for pickles and remote code; ModelError for everything else that is not as it must be.
    Cost: the weights once, plus a second copy while they are converted to `dtype`.
    """
    _check_choice("dtype", dtype, _DTYPES)
    _check_choice("task", task, ("auto", *_CLASSES))
    folder = bring(source, allow_pickle, trust_remote_code)
    refuse_unsafe(folder, source, allow_pickle, trust_remote_code)
    flags = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    if (folder / "adapter_config.json").is_file():
        labels = read_json(folder / "adapter_config.json").get("task_type") == "SEQ_CLS"
        base = load(
            _base_of(folder), dtype=dtype, device=device, task="classification" if labels and task == "auto" else task,
            trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
        )
        model, made_for = _load_adapter(base.model, folder, source), base.task
        own = (folder / "tokenizer_config.json").is_file()
        tokenizer = _load_tokenizer(folder, source, flags, made_for) if own else base.tokenizer
    else:
        made_for = named_task(folder) if task == "auto" else task
        model = _load_model(folder, source, dtype, _CLASSES[made_for], flags)
        _name(model, source)
        tokenizer = _load_tokenizer(folder, source, flags, made_for)
    _check_fit(model, tokenizer, source)
    if made_for == "classification":
        _check_classes(model, tokenizer, source)
    wrapper = Wrapper(template=_template(tokenizer, template, source, made_for))
    model = _to(model, device, source).eval()
    return Subject(model, tokenizer, wrapper, name=Path(source).name or source, task=made_for)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars of transformers, and nothing that peft and transformers have to tell each other."""
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
            yield
    finally:
        if bar:
            logging.enable_progress_bar()


def _check_choice(where: str, value: str, known: Any) -> None:
    if value not in known:
        raise ModelError(where, f"got '{value}'", close_to(value, known), "Correct the value")


def _base_of(folder: Path) -> str:
    """Where the base model of an adapter lies: as written, or relative to the adapter."""
    base = base_of(folder)
    if not base:
        raise ModelError(
            str(folder / "adapter_config.json"), "names no base model", "'base_model_name_or_path' must be there",
            "Add the folder or hub name of the model the adapter was trained on",
        )
    return base


def _failures() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    return (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)


def _load_model(folder: Path, source: str, dtype: str, class_name: str, flags: Mapping[str, Any]) -> Any:
    import torch
    import transformers

    if not (folder / "config.json").is_file():
        inside = [p.name for p in folder.iterdir() if p.is_dir() and (p / "config.json").is_file()]
        near = f"did you mean '{folder / inside[0]}'?" if inside else "accepted: config.json, safetensors, tokenizer"
        raise ModelError(source, "no config.json in this folder", near, "Name the folder that save_pretrained wrote")
    try:
        with quiet_libraries():
            model, info = getattr(transformers, class_name).from_pretrained(
                str(folder), dtype=getattr(torch, dtype), output_loading_info=True,
                use_safetensors=any(folder.glob("*.safetensors")), **flags,
            )
    except _failures() as error:
        raise ModelError(
            source, f"could not be loaded ({_first_line(error)})", f"accepted: what {class_name} loads",
            "Check that the copy is complete and the architecture is one transformers knows",
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            source, f"{len(missing)} weights are missing ({', '.join(missing[:3])}, ...) and would be random",
            f"accepted: a complete {class_name}", "Check the copy, or load it for the task it was trained for",
        )
    return model


def _name(model: Any, source: str) -> None:
    """What an adapter on this model will name as its base: the hub name, or an absolute path that survives a cd."""
    folder = Path(source).expanduser()
    model.name_or_path = model.config._name_or_path = str(folder.resolve()) if folder.is_dir() else source


def _load_adapter(base: Any, folder: Path, source: str) -> Any:
    import peft

    try:
        with quiet_libraries():
            return peft.PeftModel.from_pretrained(base, str(folder), is_trainable=False)
    except _failures() as error:
        raise ModelError(
            source, f"the adapter does not load on {base.name_or_path} ({_first_line(error)})",
            "accepted: a PEFT adapter trained on that base", "Correct base_model_name_or_path in adapter_config.json",
        ) from error


def _load_tokenizer(folder: Path, source: str, flags: Mapping[str, Any], task: Task) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **flags)
    except _failures() as error:
        raise ModelError(
            source, f"no tokenizer could be loaded ({_first_line(error)})", "accepted: tokenizer.json",
            "Copy the tokenizer files of the base model into the folder",
        ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            source, f"{type(tokenizer).__name__} is a slow tokenizer: it gives no character offsets",
            "accepted: fast tokenizers (tokenizer.json)", "Convert it to tokenizer.json",
        )
    if tokenizer.eos_token_id is None and task in ("causal", "seq2seq"):
        warnings.warn(
            ExpungeWarning(
                source, "the tokenizer has no end-of-sequence token", "answers then end where their text ends",
                "Set eos_token in tokenizer_config.json if the model was trained with one",
            ),
            stacklevel=3,
        )
    return tokenizer


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def _check_fit(model: Any, tokenizer: Any, source: str) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise ModelError(
            source, f"the tokenizer knows {tokenizer.vocab_size} tokens, the model {rows}",
            "the model must have an embedding for every token", "Use the tokenizer the model was trained with",
        )


def _check_classes(model: Any, tokenizer: Any, source: str) -> None:
    """A classifier must choose among classes, and tell padding where it reads the last token."""
    config = model.config
    if config.num_labels < 2 or config.problem_type == "regression":
        raise ModelError(
            source, f"a head with {config.num_labels} output(s) predicts a number", "two classes or more",
            "Load a classifier whose config.json has label2id",
        )
    if config.pad_token_id is None:
        config.pad_token_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _template(tokenizer: Any, template: str, source: str, task: Task) -> str:
    has_chat = bool(getattr(tokenizer, "chat_template", None)) and task == "causal"
    reads_prompt = task in ("seq2seq", "classification")
    plain = "{prompt}" if reads_prompt else _PLAIN
    if template == "auto":
        return "chat" if has_chat else plain
    if template == "chat":
        if not has_chat:
            found = "the tokenizer has no chat template" if task == "causal" else f"a {task} model holds no chat"
            raise ModelError(
                f"{source}: template", found, 'accepted: "auto", or a format string', f'Write template: "{plain}"'
            )
        return template
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        fields = [str(error)]
    needed, known = ("prompt", {"prompt"}) if reads_prompt else ("answer", {"prompt", "answer"})
    if fields.count(needed) != 1 or not known >= set(fields):
        one = "with one {prompt}" if reads_prompt else "with {prompt} and one {answer}"
        raise ModelError(
            f"{source}: template", f"got {template!r}", f'accepted: "auto", "chat", or a string {one}',
            f'Write for example: "{plain}"',
        )
    return template


def _to(model: Any, device: str, source: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"{source}: device", f"'{device}' cannot be used here ({_first_line(error)})",
            "accepted: cpu, or cuda / cuda:N / mps where present", "Choose another device",
        ) from error


def save(subject: Subject, folder: str | Path, *, dtype: str | None = None) -> Path:
    """Write model and tokenizer in the standard layout; an adapter is written as PEFT, without its base.

    The folder appears complete or not at all; one that stood there is replaced only by a complete one.

    Args:
        dtype: store the floating-point weights in this type ("float16", ...); None: as they are. Adapters are always
            stored as they are.
    Raises: StorageError (disk full, no permission); ModelError when a weight does not fit into `dtype`.
    """
    from safetensors import SafetensorError

    if dtype is not None:
        _check_choice("dtype", dtype, _DTYPES)
    folder, model = Path(folder), subject.model
    try:
        with whole_folder(folder) as aside, quiet_libraries():
            if is_adapter(model):
                model.save_pretrained(str(aside), save_embedding_layers=False)
            else:
                state = _stored(model, dtype, str(folder)) if dtype else None
                model.save_pretrained(str(aside), state_dict=state)
                if dtype:
                    config = json.loads((aside / "config.json").read_text(encoding="utf-8"))
                    text = json.dumps({**config, "dtype": dtype}, indent=2, sort_keys=True)
                    (aside / "config.json").write_text(text + "\n", encoding="utf-8")
            subject.tokenizer.save_pretrained(str(aside))
    except SafetensorError as error:  # the writer in Rust wraps the system's error
        raise storage_error(folder, error) from error
    return folder


def _stored(model: Any, dtype: str, where: str) -> dict[str, Tensor]:
    """The state dict in another type; tensors that share memory (tied weights) go on sharing it."""
    import torch

    cast: dict[tuple[int, Any], Tensor] = {}
    stored = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            stored[name] = tensor
            continue
        key = (tensor.data_ptr(), tensor.shape)
        if key not in cast:
            cast[key] = tensor.to(getattr(torch, dtype))
            if bool((cast[key].isfinite() != tensor.isfinite()).any()):
                raise ModelError(
                    where, f"{name} has values too large for {dtype}", "accepted: float32 or bfloat16",
                    "Save with dtype=None",
                )
        stored[name] = cast[key]
    return stored


def is_adapter(model: Any) -> bool:
    """Whether the model is a base with a PEFT adapter on it."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def weights_hash(subject: Subject) -> str:
    """Sixteen hex digits that change when any weight does, adapters included.

    The start of SHA-256 over names, types, shapes and bytes of the state dict, in the order of the names.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(stored_tensors(subject.model.state_dict()), key=lambda one: one[0]):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def clone(subject: Subject) -> Subject:
    """The same subject on a copy of its model: what happens to the copy does not touch the original."""
    model = copy.deepcopy(subject.model)
    model.zero_grad(set_to_none=True)
    return replace(subject, model=model)


def blocks(model: Any) -> list[tuple[str, nn.Module]]:
    """The transformer blocks in order, with their names: the longest list of modules of one class with weights.

    Of an encoder-decoder those of its decoder, the half that speaks.
    """
    from torch import nn

    best: list[tuple[str, nn.Module]] = []
    halves = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    inside = set(model.get_decoder().modules()) if halves else None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) <= len(best):
            continue
        if inside is not None and module not in inside:
            continue
        kinds = Counter(type(entry) for entry in module)
        if len(kinds) == 1 and all(len(list(entry.parameters())) > 1 for entry in module):
            best = [(f"{name}.{i}", entry) for i, entry in enumerate(module)]
    if not best:
        raise ModelError(
            type(model).__name__, "no list of transformer blocks found", "a ModuleList of blocks of one class",
            "Name the layers you mean by module name",
        )
    return best


def several_labels(model: Any) -> bool:
    """Whether a classifier says yes or no to each label instead of choosing one."""
    return getattr(model.config, "problem_type", None) == "multi_label_classification"


def adapter_task(model: Any) -> str | None:
    """What PEFT calls the task of a model. None where it would add what we do not want: generation, a new head."""
    if type(model).__name__.endswith(("ForMaskedLM", "ForSequenceClassification")):
        return None
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def context_length(subject: Subject) -> int:
    """Most tokens the model can take at once (on each side of an encoder-decoder)."""
    config = subject.model.config
    for owner in (config, getattr(config, "text_config", None)):
        for name in _LENGTH_FIELDS:
            length = getattr(owner, name, None)
            if isinstance(length, int) and length > 0:
                # RoBERTa and its kin count positions from behind the padding token: two of its 514 are never read
                tables = (m for n, m in subject.model.named_modules() if n.endswith("position_embeddings"))
                behind = getattr(next(tables, None), "padding_idx", None)
                return length if behind is None else length - 1 - int(behind)
    return int(min(subject.tokenizer.model_max_length, 2**31 - 1))  # no limit of its own (e.g. a recurrent model)
