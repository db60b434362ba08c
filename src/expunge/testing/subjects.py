"""Checks of what works on a model: attacks and scopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

from expunge.run import Run
from expunge.testing.models import tiny_data, tiny_subject
from expunge.testing.parts import bound_of, require
from expunge.types import Bound, Cost, Data, Movable, Subject


# -- attacks ---------------------------------------------------------------------------------------------------
def _outside(subject: Subject) -> tuple[Any, ...]:
    """Everything of a subject that an attack may not touch."""
    from expunge.models import weights_hash

    flags = tuple(parameter.requires_grad for parameter in subject.model.parameters())
    kept = [name for name, parameter in subject.model.named_parameters() if parameter.grad is not None]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in subject.model.modules())
    return weights_hash(subject), flags, kept, hooks, subject.model.training, subject.wrapper, subject.lineage


def check_attack_leaves_subject_and_data_alone(part: Bound, subject: Subject, data: Data) -> None:
    before, streams = _outside(subject), dict(data)
    for _ in part(subject, data, Run()):
        require(_outside(subject) == before, part, "the subject it was given was changed")
    require(_outside(subject) == before, part, "the subject it was given was changed")
    require(dict(data) == streams, part, "the data it was given was changed")


def check_attack_records_lineage_and_cost(part: Bound, subject: Subject, data: Data) -> None:
    made = list(part(subject, data, Run()))
    require(bool(made), part, "nothing came of it on data that has every field")
    for changed in made:
        known = len(subject.lineage)
        require(changed.lineage[:known] == subject.lineage, part, "the lineage does not go on from the subject's")
        events = changed.lineage[known:]
        attacks = [e for e in events if e.kind == "attack"]
        require(bool(attacks) and all(e.name for e in attacks), part, "the lineage names no attack")
        require(sum((e.cost for e in attacks), Cost()) != Cost(), part, "no cost was recorded")
        told = part.meta.get("says", "")
        require(bool(told.format(**{**part.hyper, **attacks[-1].hyper})) or not told, part, "says nothing")
        ids = {example.id for stream in data.values() for example in stream.examples}
        require(changed.exposed <= ids, part, "it exposed ids that are not in the data")


def check_attack_changes_what_it_declares(part: Bound, subject: Subject, data: Data) -> None:
    from expunge.models import weights_hash

    kind = part.meta.get("changes")
    for changed in part(subject, data, Run()):
        moved = weights_hash(changed) != weights_hash(subject)
        asked = changed.wrapper != subject.wrapper
        decoded = changed.decoding != subject.decoding
        require(moved or kind not in ("weights", "precision", "reading"), part, "declares a new model and changes none")
        require(not moved or kind not in ("prompt", "decoding"), part, f"declares {kind} and changes weights")
        require(asked or kind != "prompt", part, "declares a new prompt and changes none")
        require(decoded or kind != "decoding", part, "declares another decoding and changes none")


def check_attack_is_repeatable(part: Bound, subject: Subject, data: Data) -> None:
    from expunge.models import weights_hash

    def once() -> list[Any]:
        return [(weights_hash(changed), changed.wrapper, changed.exposed) for changed in part(subject, data, Run())]

    runs = once(), once()
    require(runs[0] == runs[1], part, "a second run gives other subjects")


def check_attack_results_can_be_measured(part: Bound, subject: Subject, data: Data) -> None:
    from expunge.measure.plan import Plan, measure
    from expunge.types import Needs

    plan = Plan()
    plan.add("forget", [Needs("tokens")])
    for changed in part(subject, data, Run()):
        table = measure(changed, data, plan).tables.get(("forget", "tokens", "answer"))
        require(table is not None and len(table) > 0, part, "its subject leaves no example to score")
        require(not set(table.ids if table else ()) & changed.exposed, part, "an exposed example is scored")


ATTACK_CHECKS: tuple[Callable[[Bound, Subject, Data], None], ...] = (
    check_attack_leaves_subject_and_data_alone,
    check_attack_records_lineage_and_cost,
    check_attack_changes_what_it_declares,
    check_attack_is_repeatable,
    check_attack_results_can_be_measured,
)


def check_attack(part: Any, subject: Subject | None = None, data: Data | None = None) -> None:
    """Run every check of attacks, on a tiny model, one it was made from, and tiny data unless others are given.

    Args:
        part: a name, spec (give few steps), registry entry or Bound.
    """
    given = subject or replace(tiny_subject(), helpers={"original": tiny_subject(seed=1)})
    for check in ATTACK_CHECKS:
        check(bound_of("attack", part), given, data or tiny_data())


# -- scopes ----------------------------------------------------------------------------------------------------
Family = Literal["llama", "gpt2", "bart", "bert", "distilbert"]


def _scoped(part: Bound, family: Family) -> tuple[Any, Movable]:
    """The model after the scope, and what may move."""
    subject = tiny_subject(family=family)
    movable: Movable = part(subject.model)
    return (subject.model if movable.model is None else movable.model), movable


def check_scope_names_parameters_of_the_model(part: Bound, family: Family) -> None:
    model, movable = _scoped(part, family)
    known = dict(model.named_parameters())
    require(bool(movable.parameters), part, "nothing may move")
    for name, parameter in movable.parameters.items():
        require(known.get(name) is parameter, part, f"'{name}' is no parameter of the model")


def check_scope_freezes_everything_else(part: Bound, family: Family) -> None:
    model, movable = _scoped(part, family)
    for name, parameter in model.named_parameters():
        wanted = "movable" if name in movable.parameters else "frozen"
        require(parameter.requires_grad == (wanted == "movable"), part, f"'{name}' should be {wanted}")


def check_scope_masks_fit(part: Bound, family: Family) -> None:
    _, movable = _scoped(part, family)
    for name, mask in movable.masks.items():
        require(name in movable.parameters, part, f"a mask for '{name}', which may not move")
        require(mask.shape == movable.parameters[name].shape, part, f"the mask of '{name}' has another shape")
        require(bool(((mask == 0) | (mask == 1)).all()), part, f"the mask of '{name}' is not 0 or 1")


def check_scope_receives_gradients(part: Bound, family: Family) -> None:
    import torch

    model, movable = _scoped(part, family)
    model(input_ids=torch.arange(1, 9).unsqueeze(0)).logits.logsumexp(-1).sum().backward()
    reached = [name for name, parameter in movable.parameters.items() if parameter.grad is not None]
    require(bool(reached), part, "no gradient reaches what may move")


def check_scope_adapter_off_is_the_start(part: Bound, family: Family) -> None:
    import torch

    ids = torch.arange(1, 9).unsqueeze(0)
    with torch.no_grad():
        before = tiny_subject(family=family).model(input_ids=ids).logits
        model, movable = _scoped(part, family)
        if not movable.adapter:
            return
        for parameter in movable.parameters.values():
            parameter.add_(0.1)
        with model.disable_adapter():
            require(torch.equal(model(input_ids=ids).logits, before), part, "switched off, it is not the start model")
        require(not torch.equal(model(input_ids=ids).logits, before), part, "switched on, the adapter does nothing")


SCOPE_CHECKS: tuple[Callable[[Bound, Family], None], ...] = (
    check_scope_names_parameters_of_the_model,
    check_scope_freezes_everything_else,
    check_scope_masks_fit,
    check_scope_receives_gradients,
    check_scope_adapter_off_is_the_start,
)


def check_scope(part: Any) -> None:
    """Run every check of scopes, on a model of each task and a GPT-2. `part`: a name, spec, registry entry or Bound."""
    for family in get_args(Family):
        for check in SCOPE_CHECKS:
            check(bound_of("scope", part), family)
