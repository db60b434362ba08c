"""From a recipe to a run folder: load, check, measure, remove, attack, write evidence. What every command calls."""

from __future__ import annotations

import datetime
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge import dist, machine
from expunge.artefacts import bring
from expunge.audit import Audit
from expunge.data.examples import check_overlap, check_stream, stream_hash
from expunge.dynamics.chapters import chapters_of
from expunge.errors import DataError, RecipeError, close_to
from expunge.evidence.files import base_of, hashes_of
from expunge.measure.desk import Partner
from expunge.measure.plan import identity
from expunge.models import ExpungeWarning, is_adapter, load, save, weights_hash
from expunge.recipe import Recipe
from expunge.report import card, html, lines, schema
from expunge.run import Progress, Run, _silent, write_json, write_text
from expunge.scopes.weights import merged
from expunge.types import Bound, Data, Event, Stream, Subject
from expunge.verdicts import overall

RECIPE_FILE = "recipe.resolved.yaml"
MOVING = ("forget", "add_vector", "noise")  # stages after which the base of an adapter is another model


def warn_on_screen(text: str) -> None:
    """Where warnings go unless somebody else wants them."""
    print(f"expunge: warning: {text}", file=sys.stderr)


@dataclass
class Workflow:
    """One recipe being carried out in one folder."""

    recipe: Recipe
    folder: Path
    resume: bool = False
    progress: Progress = _silent
    save_every: int = 100
    tell: Callable[[str], None] = warn_on_screen
    notes: list[str] = field(default_factory=list)
    files: dict[str, dict[str, str]] = field(default_factory=dict)  # what is certified: names and hashes

    def note(self, text: str) -> None:
        """Keep a warning for the evidence, and say it now."""
        if text not in self.notes:
            self.notes.append(text)
            if dist.rank() == 0:
                self.tell(text)

    def execute(self) -> schema.Evidence | None:
        """Everything the recipe asks for; None when it has no audit.

        Raises: ExpungeError for a user's mistake; Interrupted when stopped, with the state on disk.
        """
        begun = time.perf_counter()
        with collect_warnings(self.note):
            device = dist.setup(self.recipe.device)
            self._check_folder()
            data = self.read_data()
            check_streams(self.recipe.stages, data)
            subject = self._start(data, device)
            inputs = self._inputs(subject, data)
            self._claim_folder(inputs)  # not before data and model are there: a mistyped path leaves no folder behind
            audit = self._audit(data, device)
            if audit is not None and self.recipe.stages and self.recipe.audit and not self.recipe.audit.original:
                audit.measure(subject, "original")  # now, while these are still the weights that were loaded
            if not self.recipe.stages and dist.rank() == 0:  # the very files that were loaded
                self.files = self._files()
            start = subject
            streams = Data(data)
            subject = self._run_stages(subject, streams, device)
            _adopt_spans(data, streams)
            done = subject.lineage[len(start.lineage) :]
            if self.recipe.stages:
                subject = self._settle(subject, start, done)
            if self.recipe.stages and dist.rank() == 0:
                self._save(subject)
            evidence = self._conclude(audit, subject, device, done, begun) if audit is not None else None
        if dist.rank() == 0:
            self._write(evidence, subject, inputs, done)
        return evidence

    @property
    def _recipe_text(self) -> str:
        return f"# expunge recipe, digest {self.recipe.digest()}\n{self.recipe.to_yaml()}"

    def _check_folder(self) -> None:
        """Refuse a folder that holds a run; a resumed run must be the same recipe."""
        file = self.folder / RECIPE_FILE
        taken = dist.agree(file.exists())
        if taken and not self.resume:
            raise RecipeError(
                str(self.folder),
                "already holds a run",
                "an empty or new folder, or --resume to go on with it",
                "Choose another --out, or add --resume",
            )
        if taken and file.read_text(encoding="utf-8") != self._recipe_text:
            raise RecipeError(
                str(file),
                "another recipe was started here",
                f"the same recipe (this one has digest {self.recipe.digest()})",
                "Resume with the recipe it was started with, or choose another --out",
            )

    def _inputs(self, subject: Subject, data: Data) -> dict[str, Any]:
        """Hashes of what goes in; a resumed run must get the same."""
        return {
            "recipe": self.recipe.digest(),
            "model": {"source": self.recipe.source, "weights": weights_hash(subject), "identity": identity(subject)},
            "data": {name: stream_hash(stream) for name, stream in data.items()},
        }

    def _claim_folder(self, inputs: dict[str, Any]) -> None:
        path = self.folder / "lineage.json"
        if self.resume and dist.agree(path.exists()):
            began = json.loads(path.read_text(encoding="utf-8"))
            changed = [key for key in inputs if began.get(key) != inputs[key]]
            if changed:
                raise DataError(
                    str(self.folder),
                    f"{' and '.join(changed)} changed since this run was started",
                    "the very inputs it was started with",
                    "Put them back, or start anew in another --out",
                )
        if dist.rank() == 0:
            write_json(path, inputs)
            write_text(self.folder / RECIPE_FILE, self._recipe_text)
            write_json(self.folder / "env.json", machine.environment() | {"parallelism": dist.describe()})

    def read_data(self) -> Data:
        """Read and check every stream before anything is spent."""
        data = Data()
        for name, source in self.recipe.data.items():
            examples = tuple(source.reader())
            check_stream(name, examples)
            data[name] = Stream(name, source.role, examples)
        check_overlap(data, self.note)
        return data

    def _start(self, data: Data, device: str) -> Subject:
        """The model the recipe starts from: loaded, or made from nothing."""
        if self.recipe.new is None:
            return self._load(self.recipe.source, device)
        made: Subject = self.recipe.new(data, self.recipe.seed)
        made.model.to(device)
        return made

    def _load(self, source: str, device: str) -> Subject:
        hyper = {**self.recipe.model.hyper, "device": device}
        return load(source, **hyper)

    def _audit(self, data: Data, device: str) -> Audit | None:
        if self.recipe.audit is None:
            return None
        before = self.recipe.audit.original or (self.recipe.source if self.recipe.stages else None)
        own = before == self.recipe.source
        partner = Partner(lambda: self._start(data, device) if own else self._load(before, device)) if before else None
        return Audit(
            data, self.recipe.audit, self.folder / "tables", device, self.progress, partner=partner,
            folder=self.folder, resume=self.resume, seed=self.recipe.seed, lens=True,
        )

    def _run_stages(self, subject: Subject, data: Data, device: str) -> Subject:
        for index, stage in enumerate(self.recipe.stages):
            run = Run(
                self.folder, self.recipe.seed, device, self.resume, self.save_every, self.progress, index,
                watch=self.recipe.watch,
            )
            subject = stage(subject, data, run)
        return subject

    def _settle(self, subject: Subject, start: Subject, done: tuple[Event, ...]) -> Subject:
        """Fold an adapter in when its base is no longer the model that was loaded: alone it would be saved wrong."""
        moved = [event for event in done if event.kind in ("adapter", "merge") or event.name in MOVING]
        alone = not is_adapter(start.model) and moved[:1] and moved[0].kind == "adapter" and len(moved) == 2
        if is_adapter(subject.model) and not alone:
            return subject.after(Event("merge", "adapter"), model=merged(subject.model))
        return subject

    def _save(self, subject: Subject) -> None:
        save(subject, self.folder / ("adapter" if is_adapter(subject.model) else "model"))
        self.files = self._files()

    def _conclude(
        self, audit: Audit, subject: Subject, device: str, done: tuple[Event, ...], begun: float
    ) -> schema.Evidence:
        spec = self.recipe.audit
        assert spec is not None
        twin, before = spec.against, spec.original
        audit.run(
            subject,
            original=(lambda: self._load(before, device)) if before else None,
            oracle=(lambda: self._load(twin, device)) if twin else None,
        )
        verdicts = audit.verdicts()
        return schema.Evidence(
            title=self.recipe.title or self._title(audit.data),
            subject=Path(self.recipe.source).name,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            digest=self.recipe.digest(),
            conditions=tuple(state.condition for state in audit.states.values()),
            scores=tuple(audit.rows()),
            verdicts=tuple(verdicts),
            verdict=overall(verdicts),
            method=self._method(),
            streams=tuple(schema.StreamCount(s.name, s.role, len(s)) for s in audit.data.values() if s.follows is None),
            cost=bill(done, audit, time.perf_counter() - begun),
            untested=tuple(audit.not_tested()),
            warnings=tuple(dict.fromkeys(self.notes)),
            environment=machine.environment() | {"parallelism": dist.describe()},
            training=self._curve(),
            changes=tuple(audit.changes()),
            recoveries=tuple(audit.recoveries()),
            residue=tuple(audit.residue()),
            chapters=chapters_of(self.folder),
        )

    def _title(self, data: Data) -> str:
        size = sum(len(stream) for stream in data.of_role("forget"))
        return f"Removal of {size} examples from {Path(self.recipe.source).name}"

    def _method(self) -> schema.Method | None:
        made, recipe = self.recipe.method, self.recipe.to_yaml(show_text=False)
        if not self.recipe.stages:
            return None
        if made is None:
            return schema.Method("recipe", summary="stages composed by hand", recipe=recipe)
        summary = (made.fn.__doc__ or "").split("\n", 1)[0]
        return schema.Method(made.name, made.meta.get("paper", ""), summary, recipe, made.meta.get("differs", ""))

    def _curve(self) -> tuple[schema.TrainingPoint, ...]:
        path = self.folder / "log.jsonl"
        if not path.exists():
            return ()
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [record for record in records if "loss" in record]
        stride = -(-len(kept) // 200) or 1
        return tuple(
            schema.TrainingPoint(i, r["loss"], r["terms"], r["grad_norm"]) for i, r in list(enumerate(kept))[::stride]
        )

    def _write(
        self, evidence: schema.Evidence | None, subject: Subject, inputs: dict[str, Any], done: tuple[Event, ...]
    ) -> None:
        lineage = inputs | {
            "stages": [{"use": event.name, **_plain(event.hyper)} for event in done],
            "result": {"weights": weights_hash(subject)},
            "files": self.files,
        }
        write_json(self.folder / "lineage.json", lineage)
        if evidence is None:
            self._write_chapters()
            return
        evidence.write(self.folder)
        write_text(self.folder / "report.html", html.render(evidence))
        for name, library in (("model", "transformers"), ("adapter", "peft")):
            if (self.folder / name).is_dir():
                base = None if self.recipe.new else self.recipe.source
                text = card.model_card(evidence, base_model=base, library=library)
                write_text(self.folder / name / "README.md", text)


    def _files(self) -> dict[str, dict[str, str]]:
        """Hashes of the files that were audited: what the run saved, or the folder that was named."""
        made = next((self.folder / name for name in ("model", "adapter") if (self.folder / name).is_dir()), None)
        if made is None and self.recipe.new is not None:
            return {}
        trust = {name: self.recipe.model.hyper[name] for name in ("allow_pickle", "trust_remote_code")}
        folder = made or bring(self.recipe.source, **trust)
        base = base_of(folder)
        return {"model": hashes_of(folder)} | ({"base": hashes_of(bring(base, **trust))} if base else {})

    def _write_chapters(self) -> None:
        """The report of a run without an audit: what was watched, if anything was."""
        chapters = chapters_of(self.folder)
        if chapters:
            title = self.recipe.title or f"Training of {self.folder.name}"
            today = f"{datetime.datetime.now(datetime.UTC):%d %B %Y}"
            meta = (("Recipe digest", self.recipe.digest()), ("Date", today))
            page = lines.page(title, chapters, over="Expunge training report", meta=meta)
            write_text(self.folder / "report.html", page)


def bill(done: tuple[Event, ...], audit: Audit, seconds: float) -> schema.RunCost:
    """What the run cost, stage by stage."""
    stages = [
        schema.StageCost(
            e.name, e.cost.steps, e.cost.forwards, e.cost.backwards, e.cost.tokens, round(e.cost.seconds, 2)
        )
        for e in done
        if e.kind == "stage"
    ]
    stages.append(schema.StageCost("measure", forwards=audit.forwards, tokens=audit.tokens))
    return schema.RunCost(tuple(stages), round(audit.seconds, 2), round(seconds, 2), machine.peak_memory_mb())


def check_streams(stages: Sequence[Bound], known: Iterable[str]) -> None:
    """Every stream a term reads must be given, or made by an earlier stage: told before anything is spent.

    Raises: DataError.
    """
    names = set(known)
    for stage in stages:
        hyper = stage.hyper
        check_streams(hyper.get("stages", ()), names)
        inner = hyper["schedule"].hyper.get("make", ()) if "schedule" in hyper else ()
        check_streams(inner, names)
        for made in (*inner, stage):
            if made.name in ("relabel", "sample", "translate"):
                names |= {made.hyper["name"], made.hyper["name"] + "_asked"}
        for term in hyper.get("terms", ()):
            linked = [term.link.hyper["stream"]] if term.link and "stream" in term.link.hyper else []
            for name in (*term.on, *linked):
                base = name.partition(":")[0]
                if base not in names:
                    raise DataError(
                        f"term {term.label}", f"no stream '{base}'", close_to(base, names),
                        f"Give it under data ({base}: ...), or choose a method that does without",
                    )


def _adopt_spans(data: Data, streams: Data) -> None:
    """An annotator's spans serve the audit only where the file brought none: before and after must look at the same."""
    for name, stream in data.items():
        if not any(example.spans for example in stream.examples):
            data[name] = streams[name]


def _plain(hyper: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.name if isinstance(value, Bound) else value for key, value in hyper.items()}


@contextmanager
def collect_warnings(note: Callable[[str], None]) -> Iterator[None]:
    """Our own warnings go to `note`; everybody else's pass on."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ExpungeWarning)
        others = warnings.showwarning

        def show(message: Warning | str, *where: Any) -> None:
            note(str(message)) if isinstance(message, ExpungeWarning) else others(message, *where)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def default_folder(name: str) -> Path:
    """A new folder under runs/."""
    stem = Path("runs") / name
    folder, number = stem, 2
    while folder.exists():
        folder, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return folder
