"""The words of Expunge as types: frozen dataclasses, no behaviour beyond cached views.

Nothing here imports torch at run time, so the command line and the report stay light.
Shapes: B examples, T tokens, V vocabulary, D width, K counted positions of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

Role = Literal["forget", "retain", "anchor", "holdout", "probe"]
Mean = Literal["examples", "tokens"]
Positions = Literal["answer", "text", "spans", "context"]
Task = Literal["causal", "masked", "seq2seq", "classification"]
Better = Literal["lower", "higher", "oracle"]
Span = tuple[int, int]  # half-open character range inside the answer


@dataclass(frozen=True)
class Example:
    """One text. Only `id` and `answer` are compulsory; plain text has an empty prompt.

    paraphrases are rewordings of the prompt, `paraphrased_answer` one of the answer; `perturbed` are false
    answers of the same form; `alternative` is what should be said instead; `contrast` the other half of a pair.
    """

    id: str
    prompt: str
    answer: str
    spans: tuple[Span, ...] = ()
    subject: str | None = None
    paraphrases: tuple[str, ...] = ()
    paraphrased_answer: str | None = None
    perturbed: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    alternative: str | None = None
    contrast: str | None = None


@dataclass(frozen=True)
class Visit:
    """Examples of the stream `name` that another one draws for `updates` steps from step `at` on, in place of its own.

    Before and after, its own rows follow each other as if the visit had not been.
    """

    name: str
    examples: tuple[Example, ...] = field(repr=False)
    at: int
    updates: int


@dataclass(frozen=True)
class Stream:
    """A named set of examples with a role. `follows` names the stream whose draws it shares, row by row.

    targets: for some ids, what is to be learned at each token instead of the token itself (-100 = nothing), aligned
    with the example's tokens: labels that are no text, such as the generic ones of Who's Harry Potter.
    visit: what stands in for these examples during some steps of a training.
    """

    name: str
    role: Role
    examples: tuple[Example, ...]
    follows: str | None = None
    targets: Mapping[str, tuple[int, ...]] | None = field(default=None, repr=False)
    visit: Visit | None = None

    def __len__(self) -> int:
        return len(self.examples)


class Data(dict[str, Stream]):
    """Streams by name; stages may add streams."""

    def of_role(self, role: Role) -> list[Stream]:
        return [stream for stream in self.values() if stream.role == role]


@dataclass(frozen=True)
class Wrapper:
    """How an example becomes text.

    template: "chat" (the tokenizer's own) or a format string with {prompt} and {answer}.
    ask: which prompt is asked: "prompt", or "paraphrase:K" for the K-th stored paraphrase.
    rewrite: what becomes of an example before anything is asked; None for one that cannot be put like that.
    turns: what user and model have said before a prompt, as (user, assistant) pairs; "" stands for every prompt.
    prefill: what the model is made to have said already when it answers, with its trailing space.
    """

    template: str = "{prompt}{answer}"
    ask: str = "prompt"
    rewrite: Callable[[Example], Example | None] | None = None
    turns: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict, hash=False)
    prefill: str = ""


@dataclass(frozen=True)
class Decoding:
    """How an answer is chosen from what the model says: greedily, unless an attack says otherwise.

    num: answers drawn per question, of which the one closest to the truth counts. temperature: 0 is greedy.
    top_k, top_p: what may be drawn at all; 0 and 1: everything. beams: more than one searches for the likeliest answer.
    guide, guidance: name of a helper whose log-probabilities count (1 + guidance) times, against `guidance` times the
    model's own.
    """

    num: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0
    guide: str = ""
    guidance: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What an action took. `forwards` and `backwards` count sequences, `tokens` real (unpadded) tokens."""

    queries: int = 0
    steps: int = 0
    forwards: int = 0
    backwards: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Event:
    """One thing that happened to a subject. `exposed`: ids an attack has shown to the model, not to be scored."""

    kind: str
    name: str
    hyper: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    exposed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Subject:
    """A model under work: model + tokenizer + prompt wrapper + lineage.

    task: how the model reads and what it predicts. helpers: frozen companions: made by earlier stages (`branch`), or
    the model before the removal, "original", for attacks that ask for it. decoding: how answers are chosen.
    """

    model: Any  # transformers.PreTrainedModel or peft.PeftModel
    tokenizer: Any  # transformers.PreTrainedTokenizerFast
    wrapper: Wrapper = field(default_factory=Wrapper)
    lineage: tuple[Event, ...] = ()
    name: str = "model"
    task: Task = "causal"
    helpers: Mapping[str, Subject] = field(default_factory=dict, repr=False, compare=False)
    decoding: Decoding = field(default_factory=Decoding)

    def after(self, event: Event, **changes: Any) -> Subject:
        """The same subject with one more event (and other fields changed)."""
        return replace(self, lineage=(*self.lineage, event), **changes)

    @cached_property
    def exposed(self) -> frozenset[str]:
        return frozenset().union(*(event.exposed for event in self.lineage))


@dataclass(frozen=True, eq=False)
class Batch:
    """Tokenised examples, padded on the right. Masks come from lengths, never from token values.

    Encoder-decoders: `input_ids` are the decoder's, the encoder reads `source_ids`. `targets`: what should stand at
    each place, where that is not the token of `input_ids` (masked models, classes, relabelled streams).
    """

    input_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, T]
    labels: Tensor  # [B, T], -100 = not counted
    ids: tuple[str, ...]  # [B]
    span_mask: Tensor | None = None  # [B, T] bool: counted tokens inside an annotated span
    targets: Tensor | None = None  # [B, T]
    source_ids: Tensor | None = None  # [B, S]
    source_mask: Tensor | None = None  # [B, S]
    task: Task = "causal"

    @property
    def target_ids(self) -> Tensor:
        """What should stand at each place, [B, T]."""
        return self.input_ids if self.targets is None else self.targets

    def positions(self, which: Positions) -> Tensor:
        """Which predictions count, [B, T-1] bool: entry t is the prediction of token t+1."""
        if which == "text" and self.task in ("causal", "seq2seq"):
            return self.attention_mask[:, 1:].bool()
        if which == "spans":
            if self.span_mask is None:
                raise ValueError("this batch carries no spans")
            return self.span_mask[:, 1:]
        answer = self.labels[:, 1:] != -100
        if which == "context":
            return answer if self.span_mask is None else answer & ~self.span_mask[:, 1:]
        return answer


@dataclass(frozen=True, eq=False)
class Pass:
    """What one model said about one batch, at the counted positions."""

    logp: Tensor  # [B, T-1] log p of the token that stands there, nats; 0 where not counted
    mask: Tensor  # [B, T-1] bool
    kept_logits: Tensor | None = None  # [K, V] logits at the counted positions, row-major
    hidden: Mapping[int, Tensor] = field(default_factory=dict)  # block -> its output [B, T, D]

    @cached_property
    def n(self) -> Tensor:
        """Counted tokens per example, [B]."""
        return self.mask.sum(-1)

    @cached_property
    def sum_logp(self) -> Tensor:
        """Log-probability of the counted tokens, nats, [B]."""
        return (self.logp * self.mask).sum(-1)

    @cached_property
    def vocab_logp(self) -> Tensor:
        """Log-probabilities over the vocabulary at the counted positions, [K, V]."""
        if self.kept_logits is None:
            raise ValueError("this pass kept no logits; the objective must declare 'vocab'")
        return self.kept_logits.float().log_softmax(-1) if self.kept_logits.dtype.itemsize < 4 else (
            self.kept_logits.log_softmax(-1)
        )

    @cached_property
    def logits(self) -> Tensor:
        """Logits scattered back to [B, T-1, V]; zero where not counted. For reading, not for training."""
        if self.kept_logits is None:
            raise ValueError("this pass kept no logits")
        full = self.kept_logits.new_zeros((*self.mask.shape, self.kept_logits.shape[-1]))
        full[self.mask] = self.kept_logits
        return full

    def total(self, values: Tensor) -> Tensor:
        """Sum a value per counted position [K] into one per example [B]."""
        rows = self.mask.nonzero()[:, 0]  # [K]
        return values.new_zeros(len(self.mask)).index_add(0, rows, values)


@dataclass(frozen=True, eq=False)
class View:
    """What an objective sees of a stream: the model now, the reference, and the tokens."""

    now: Pass
    ref: Pass | None
    batch: Batch

    @property
    def reference(self) -> Pass:
        """`ref`, for objectives that declared they need it."""
        if self.ref is None:
            raise ValueError("this view has no reference; the objective must declare 'ref'")
        return self.ref


@dataclass(frozen=True)
class Bound:
    """A registered function with all its keyword arguments: what a `use:` in a recipe becomes."""

    kind: str
    name: str
    fn: Callable[..., Any] = field(repr=False, compare=False)
    hyper: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, *args: Any) -> Any:
        return self.fn(*args, **self.hyper)


@dataclass(frozen=True)
class Term:
    """One summand of the loss: an objective on streams, its weight and its divisor.

    mean: "examples" divides by the number of examples of the step, "tokens" by its counted tokens.
    tokens: which positions count: the answer, all real text, the annotated spans, or the answer outside them.
    reference: whose view `view.ref` is: "start" (the weights the training starts from) or one of the subject's helpers.
    link: how the mean enters the total where that is not by its weight alone (a target to reach, a constraint).
    """

    objective: Bound
    on: tuple[str, ...]
    weight: float = 1.0
    mean: Mean = "examples"
    tokens: Positions = "answer"
    reference: str = "start"
    link: Bound | None = None

    @property
    def label(self) -> str:
        against = "" if self.reference == "start" else f" against {self.reference}"
        return f"{self.objective.name}({','.join(self.on)}){against}"

    @property
    def needs(self) -> frozenset[str]:
        """What the objective declared, with its own arguments filled in: "hidden:{layer}" becomes "hidden:7"."""
        return frozenset(need.format(**self.objective.hyper) for need in self.objective.meta.get("needs", ()))


@dataclass(frozen=True, eq=False)
class Movable:
    """What may move: parameters by name, and for some of them a 0/1 mask of the same shape."""

    parameters: Mapping[str, nn.Parameter]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    adapter: bool = False  # the parameters are a PEFT adapter: switched off, the model is the reference
    model: Any = None  # the model to use from now on, where a scope had to wrap it


@dataclass(frozen=True)
class Needs:
    """What a metric reads: one instrument, on which text of the examples, which columns, of which subjects.

    instrument: a registered one: "tokens", "samples", "continuations", ...
    variant: NAME[:ARGS][@ASK][#SETTING]: texts ("answer", "perturbed", ...; `expunge list variants`), and what the
    instrument itself is told. sets: stream names; "stream" stands for the stream being scored. subjects: "this",
    "oracle", "original". "{name}" is filled in from the metric's arguments everywhere but in subjects.
    """

    instrument: str
    variant: str = "answer"
    columns: tuple[str, ...] = ("logp",)
    sets: tuple[str, ...] = ("stream",)
    subjects: tuple[str, ...] = ("this",)


@dataclass(frozen=True)
class Score:
    """One number with its interval. `per_example` is keyed by example id; status "n/a" carries a reason.

    groups: over how many groups of examples (those of one `Example.subject`) the interval is; None: over examples.
    bounds: smallest and largest value an example can have; None: unbounded or not told.
    """

    value: float | None
    ci: tuple[float, float] | None
    per_example: Mapping[str, float] = field(default_factory=dict, repr=False)
    n: int = 0
    unit: str = ""
    better: Better = "lower"
    status: Literal["ok", "n/a"] = "ok"
    reason: str = ""
    groups: int | None = None
    bounds: tuple[float, float] | None = None

    @staticmethod
    def missing(reason: str, unit: str = "", better: Better = "lower") -> Score:
        return Score(None, None, {}, 0, unit, better, "n/a", reason)


class Stage(Protocol):
    """`(Subject, Data, Run) -> Subject`."""

    def __call__(self, subject: Subject, data: Data, run: Any) -> Subject: ...


class Attack(Protocol):
    """`(Subject, Data, Run) -> Iterator[Subject]`: changes, does not measure."""

    def __call__(self, subject: Subject, data: Data, run: Any) -> Iterator[Subject]: ...
