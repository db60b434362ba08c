"""The engine under a suffix search: shortcuts change no number, gradients are gradients, budgets and seeds hold."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import pytest
import torch
from torch import nn

from expunge.attacks.suffix import evaluate, losses, propose
from expunge.attacks.suffix.evaluate import Goal, Reader, changed, cuts
from expunge.attacks.suffix.problem import Problem
from expunge.attacks.suffix.search import Settings, goal_of, search
from expunge.attacks.suffix.slope import embedding_scale, token_slope
from expunge.errors import Interrupted, RecipeError
from expunge.models import weights_hash
from expunge.run import Run
from expunge.testing import tiny_subject
from expunge.types import Subject
from support import toys

BEFORE, START, AFTER, TARGET = (1, 5, 9, 14), (3, 3, 3, 3, 3), (7,), (11, 2, 8)


def problem(subject=None, *, start=START, after=AFTER, before=BEFORE, target=TARGET, id=""):
    return Problem(subject or Subject(toys.llama(), None), before, start, after, target, id)


def gemma():
    """A tiny Gemma 3: its embedding multiplies by sqrt(D), and one of its layers sees 6 tokens only."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=23, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, sliding_window=6, layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0, bos_token_id=1, eos_token_id=2, max_position_embeddings=64,
    )
    return Subject(toys.filled(Gemma3ForCausalLM(config), 1500), None)


FAMILIES = {
    "llama": lambda: Subject(toys.llama(), None), "gemma": cache(gemma),
    "gpt2": lambda: replace(tiny_subject(family="gpt2"), tokenizer=None),
}


def full_losses(subject, rows, before, after, target):
    """The plain way: whole sequences through the model, all logits, cross-entropy at the target."""
    ids = torch.cat([
        torch.tensor(before).expand(len(rows), -1).long(), rows, torch.tensor([*after, *target]).expand(len(rows), -1)
    ], dim=1)
    with torch.no_grad():
        logits = subject.model(input_ids=ids).logits[:, -len(target) - 1 : -1]
    return -logits.log_softmax(-1).gather(-1, ids[:, -len(target) :].unsqueeze(-1)).squeeze(-1).mean(-1)


def full_string_losses(subject, rows, before):
    ids = torch.cat([torch.tensor(before).expand(len(rows), -1).long(), rows], dim=1)
    with torch.no_grad():
        logp = subject.model(input_ids=ids).logits.log_softmax(-1)
    told = logp[:, len(before) - 1 : -1] if before else logp[:, :-1]
    read = rows if before else rows[:, 1:]
    return -told.gather(-1, read.unsqueeze(-1)).squeeze(-1).sum(-1) / rows.shape[1]


def random_rows(num, length, seed=0, share=2):
    """Strings that agree with START in some first places, in mixed order."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, 23, (num, length), generator=rng)
    keep = torch.randint(0, length, (num,), generator=rng)
    base = torch.tensor([*START, 3, 3])[:length]
    return torch.where(torch.arange(length) < keep.unsqueeze(1) // share * share, base, rows)


# -- scoring ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "parts", [(BEFORE, AFTER, TARGET), ((), AFTER, TARGET), (BEFORE, (), TARGET), (BEFORE, (), (11,)), ((), (), (11,))]
)
def test_every_way_of_reading_gives_the_losses_of_whole_sequences(family, parts, monkeypatch):
    """Prefix kept or not, any buckets, any batches, other lengths, any order."""
    monkeypatch.setattr(evaluate, "LEAST_TOKENS", 1)
    subject, (before, after, target) = FAMILIES[family](), parts
    one = problem(subject, before=before, after=after, target=target)
    goal = Goal(losses.cross_entropy, (losses.Term(losses.fluency, 1.0, string=True),))
    every = [{"share": False}, {"buckets": 1}, {"buckets": 0}, {"buckets": 3, "batch_tokens": 40}]
    for length, ways in ((5, every), (4, every[2:3]), (6, every[2:3])):
        rows = random_rows(6, length)
        target_loss = full_losses(subject, rows, before, after, target)
        total = target_loss + full_string_losses(subject, rows, before)
        for way in ways:
            for asked, wanted in ((goal, total), (Goal(losses.cross_entropy), target_loss)):
                reader = Reader(one, asked, **way)
                found = reader.score(rows, reader.base(START))
                torch.testing.assert_close(found.total, wanted.double(), atol=2e-6, rtol=2e-6)
                torch.testing.assert_close(found.target, target_loss.double(), atol=2e-6, rtol=2e-6)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
        moved = reader.score(rows[order], reader.base(START)).target
        torch.testing.assert_close(moved, target_loss[order].double(), atol=2e-6, rtol=2e-6)


def test_shortcuts_are_taken_where_they_can_be_and_only_there():
    rows = torch.tensor([START] * 8)
    rows[:, -1] = torch.arange(8)  # they differ in the last place
    bills = {}
    for name, how in {"whole": {"share": False}, "prefix": {"buckets": 1}, "buckets": {"buckets": 4}}.items():
        reader = Reader(problem(), Goal(losses.cross_entropy), **how)
        base = reader.base(START)
        held = reader.bill
        reader.score(rows, base)
        bills[name] = reader.bill.tokens - held.tokens
    assert bills == {"whole": 8 * 12, "prefix": 8 * 8, "buckets": 8 * 4}  # the last target token is never read
    windowed = Reader(problem(gemma(), start=(3,) * 9), Goal(losses.cross_entropy))
    assert windowed.base((3,) * 9).past is None  # 13 tokens, and a layer that keeps 5 of them


def test_what_is_kept_does_not_grow():
    reader = Reader(problem(), Goal(losses.cross_entropy))
    base = reader.base(START)
    for _ in range(2):
        reader.score(random_rows(5, 5), base)
        reader.slope(base)
    assert all(keys.shape[-2] == len(BEFORE) == values.shape[-2] for keys, values in reader.past)
    assert all(keys.shape[-2] == len(BEFORE) + len(START) for keys, _ in base.past)


def test_which_are_said_whole():
    """Whatever the model says greedily after a string is solved by that string, and nothing else is."""
    subject = Subject(toys.llama(), None)
    ids = torch.tensor([[*BEFORE, *START, *AFTER]])
    with torch.no_grad():
        for _ in range(3):
            ids = torch.cat([ids, subject.model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    said = tuple(ids[0, -3:].tolist())
    for target, wanted in ((said, True), ((*said[:2], (said[2] + 1) % 23), False), (((said[0] + 1) % 23,), False)):
        found = Reader(problem(subject, target=target), Goal(losses.cross_entropy)).score(torch.tensor([START]))
        assert bool(found.solved[0]) is wanted


def test_terms_read_hidden_states_where_the_target_is_predicted():
    heard = {}

    def length(seen):
        heard.update(seen.hidden)
        return seen.hidden[1].norm(dim=-1).mean(-1)

    goal = Goal(losses.cross_entropy, (losses.Term(length, 2.0, layers=(1,)),))
    rows = random_rows(4, 5)
    found = Reader(problem(), goal, buckets=1).score(rows)
    model = toys.llama()
    ids = torch.cat([
        torch.tensor(BEFORE).expand(4, -1), rows, torch.tensor([*AFTER, *TARGET[:-1]]).expand(4, -1)
    ], dim=1)
    with torch.no_grad():
        block = model(input_ids=ids, output_hidden_states=True).hidden_states[2][:, -len(TARGET) :]
    torch.testing.assert_close(found.total - found.target, 2 * block.norm(dim=-1).mean(-1))
    assert heard[1].shape == (4, len(TARGET), 8)


def test_places_and_buckets():
    base = torch.tensor([1, 2, 3])
    rows = torch.tensor([[1, 2, 3], [0, 2, 3], [1, 2, 0]])
    assert changed(rows, base).tolist() == [2, 0, 2]
    assert changed(torch.tensor([[1, 2], [0, 2]]), base).tolist() == [1, 0]  # shorter
    assert changed(torch.tensor([[1, 2, 3, 9], [1, 2, 9, 3]]), base).tolist() == [3, 2]  # longer
    first = torch.tensor([0, 0, 1, 3, 3])
    assert cuts(first, 0) == [(0, 2), (2, 3), (3, 5)]
    assert cuts(first, 2) == [(0, 2), (2, 5)]
    assert cuts(first[:1], 8) == [(0, 1)]
    assert cuts(first[:0], 8) == cuts(first[:0], 0) == []


# -- gradient --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_the_slope_is_the_derivative_along_the_line_to_another_token(family):
    """slope[i, j] - slope[i, current] = d loss / dt of the vectors at e_current + t (e_j - e_current)."""
    subject = FAMILIES[family]()
    subject = replace(subject, model=subject.model.double()) if family == "gpt2" else subject
    reader = Reader(problem(subject), Goal(losses.cross_entropy))
    found = token_slope([reader], [reader.base(START)]).double()
    embed = subject.model.get_input_embeddings()
    ids = torch.tensor([[*BEFORE, *START, *AFTER, *TARGET]])
    near = {"abs": 2e-3, "rel": 2e-2} if family != "gpt2" else {"abs": 1e-6, "rel": 1e-4}

    def loss(place, token, t):
        vectors = embed(ids).detach()
        vectors[0, len(BEFORE) + place] += t * (embed(torch.tensor(token)) - embed(ids[0, len(BEFORE) + place]))
        logits = subject.model(inputs_embeds=vectors).logits[:, -len(TARGET) - 1 : -1]
        return float(losses.cross_entropy(losses.Seen(None, ids, logits, torch.tensor(TARGET))))

    step = 1e-4 if family == "gpt2" else 1e-2  # the others compute their norms in float32
    with torch.no_grad():
        for place, token in ((0, 11), (2, 20), (4, 6)):
            measured = (loss(place, token, step) - loss(place, token, -step)) / (2 * step)
            assert float(found[place, token] - found[place, START[place]]) == pytest.approx(measured, **near)


def test_the_scale_inside_an_embedding_module():
    assert embedding_scale(gemma().model.get_input_embeddings()) == pytest.approx(8**0.5, rel=1e-4)
    assert embedding_scale(toys.llama().get_input_embeddings()) == pytest.approx(1.0)


def test_fluency_counts_both_ways_a_token_matters():
    """The slope of the string's own NLL: as what is read (vectors) and as what is said (its log-probability)."""
    subject = FAMILIES["gpt2"]()
    model = subject.model.double()
    goal = Goal(lambda seen: 0.0 * losses.cross_entropy(seen), (losses.Term(losses.fluency, 1.0, string=True),))
    reader = Reader(problem(subject), goal)
    found = token_slope([reader], [reader.base(START)])
    table = model.get_input_embeddings().weight
    one_hot = torch.nn.functional.one_hot(torch.tensor(START), len(table)).double().requires_grad_()
    before = table[torch.tensor(BEFORE)]
    logp = model(inputs_embeds=torch.cat([before, one_hot @ table]).unsqueeze(0)).logits[0].log_softmax(-1)
    told = logp[len(BEFORE) - 1 : -1]
    (-(one_hot * told).sum() / len(START)).backward()
    torch.testing.assert_close(found, one_hot.grad, atol=1e-9, rtol=1e-6)
    model.float()


class Linear(nn.Module):
    """Logits linear in the embeddings of all that was read; keeps no keys and values."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(23, 6), nn.Linear(6, 23, bias=False)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data = toys.fill(parameter.shape, seed + 1)
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=False):
        vectors = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        return type("Out", (), {"logits": self.head(vectors.cumsum(1))})


def test_on_a_linear_model_the_best_token_by_slope_is_the_best_swap():
    def minus_logit(seen):
        return -seen.logits.gather(-1, seen.target.expand(len(seen.logits), -1).unsqueeze(-1)).mean((1, 2))

    reader = Reader(problem(Subject(Linear(), None)), Goal(minus_logit))
    assert not reader.share
    base = reader.base(START)
    found = token_slope([reader], [base])
    every = reader.score(propose.all_swaps(base.ids, torch.arange(23).expand(5, -1)), base).total.view(5, 23)
    assert torch.equal(propose.best_tokens(found, torch.ones(23, dtype=torch.bool), 1)[:, 0], every.argmin(1))


# -- the loop --------------------------------------------------------------------------------------------------------
def steps_of(settings, *problems, run=None, **rest):
    return list(search(problems or [problem()], settings, run or Run(), **rest))


def test_all_swaps_of_all_tokens_is_coordinate_descent():
    """Each step takes the best of all strings one token away, found by brute force; the loss never rises."""
    steps = steps_of(Settings(steps=4, exhaustive=True, top_k=23, keep_best=True, early_stop=False))
    subject = Subject(toys.llama(), None)
    for one, after in pairwise(steps):
        near = {
            (*one.current[:i], token, *one.current[i + 1 :]) for i, token in product(range(5), range(23))
        } - {one.current}
        every = full_losses(subject, torch.tensor(sorted(near)), BEFORE, AFTER, TARGET)
        assert after.current_loss == pytest.approx(min(one.current_loss, float(every.min())), abs=1e-6)
        assert after.loss == after.current_loss <= one.loss
    assert steps[-1].loss < steps[0].loss


def test_the_best_string_has_its_own_loss():
    """With a buffer, with a subset of the problems scored, and with strings that vary: never somebody else's."""
    two = [problem(id="a"), problem(target=(6, 4), after=(9, 7), before=(1, 20), id="b")]
    base = Settings(steps=2, width=10, top_k=8, early_stop=False)
    for more in ({"buffer": 4}, {"sample": 1}, {"mellowmax": 1.0}, {"operators": (1, 1, 1, 1), "buffer": 4},
                 {"repetition": 3.0, "fluency": 0.5}, {"num_replace": 3, "keep_best": True}):
        settings = replace(base, **more)
        readers = [Reader(one, goal_of(settings), share=False) for one in two]
        for step in steps_of(settings, *two):
            scored = [reader.score(torch.tensor([step.ids])) for reader in readers]
            assert step.loss == pytest.approx(sum(float(one.total) for one in scored) / 2, abs=1e-5), more
            assert step.losses == pytest.approx([float(one.target) for one in scored], abs=1e-5)
            assert step.solved == sum(bool(one.solved) for one in scored)


def test_problems_may_differ_in_model():
    other = Subject(toys.shifted(toys.toy_llama()), None)
    pair = [problem(), problem(other)]
    step = steps_of(Settings(steps=2, width=8, top_k=8), *pair)[-1]
    wanted = [full_losses(one.subject, torch.tensor([step.ids]), BEFORE, AFTER, TARGET) for one in pair]
    assert step.losses == pytest.approx([float(loss) for loss in wanted], abs=1e-6)


def test_searches_are_seeded_and_leave_the_model_alone():
    subject = Subject(toys.llama(), None)
    before = weights_hash(subject), [p.requires_grad for p in subject.model.parameters()]
    settings = Settings(steps=2, width=12, top_k=8)
    assert steps_of(settings) == steps_of(settings)
    assert steps_of(settings)[-1].ids != steps_of(replace(settings, seed=1))[-1].ids
    assert before == (weights_hash(subject), [p.requires_grad for p in subject.model.parameters()])
    assert all(parameter.grad is None for parameter in subject.model.parameters())


@pytest.mark.parametrize("more", [{}, {"operators": (1, 1, 1, 1), "buffer": 3}])
def test_a_stopped_search_goes_on_bit_by_bit(tmp_path, more):
    settings = Settings(steps=4, width=10, top_k=8, early_stop=False, **more)
    whole = steps_of(settings)
    run = Run(tmp_path)

    def until_stopped():
        for step in search([problem()], settings, run):
            run.stopped = step.number == 2

    with pytest.raises(Interrupted):
        until_stopped()
    assert steps_of(settings, run=Run(tmp_path, resume=True)) == whole  # the earlier steps are told again
    assert steps_of(settings, run=Run(tmp_path, resume=True)) == whole  # it had ended
    assert steps_of(replace(settings, seed=5), run=Run(tmp_path, resume=True))[1:] != whole[1:]  # another search


def test_budgets_are_kept_to_the_query():
    pair = [problem(), problem(target=(6, 4))]
    for most in (2, 19, 42):
        for more in ({}, {"sample": 1}, {"exhaustive": True}, {"buffer": 9}):
            settings = Settings(steps=9, width=10, top_k=8, max_queries=most, early_stop=False, **more)
            steps = steps_of(settings, *pair)
            assert steps[-1].cost.queries <= most
            assert most - steps[-1].cost.queries < 4, (most, more)
    last = steps_of(Settings(steps=3, width=10, top_k=8), *pair)[-1]
    assert (last.cost.steps, last.cost.backwards, last.number) == (3, 6, 3)
    assert last.cost.queries <= 2 + 3 * 2 * 10 < last.cost.forwards + 6


def test_early_stop_prefers_the_string_that_says_it():
    """A target the model says after a known string is found, and the search ends there."""
    subject = Subject(toys.llama(), None)
    ids = torch.tensor([[*BEFORE, 3, 3, 17, 3, 3, *AFTER]])
    with torch.no_grad():
        said = int(subject.model(input_ids=ids).logits[0, -1].argmax())
        start = int(subject.model(input_ids=torch.tensor([[*BEFORE, *START, *AFTER]])).logits[0, -1].argmax())
    settings = Settings(steps=20, exhaustive=True, top_k=23)
    steps = steps_of(settings, problem(target=(said,)))
    assert steps[-1].solved == 1
    assert len(steps) <= 2 + (said != start)
    assert len(steps_of(replace(settings, early_stop=False, steps=3), problem(target=(start,)))) == 4


def test_a_perfect_draft_changes_nothing_but_the_price():
    settings = Settings(steps=4, width=20, top_k=8, early_stop=False)
    plain = steps_of(settings)
    drafted = steps_of(replace(settings, probe_share=0.2), draft=Subject(toys.llama(), None))
    assert drafted[1].ids == plain[1].ids
    assert drafted[1].cost.queries <= plain[1].cost.queries / 2
    first_two = steps_of(replace(settings, probe=2))
    assert first_two[-1].cost.queries < plain[-1].cost.queries
    with pytest.raises(RecipeError, match=r"search\.probe: got 3; 1 to 2 blocks"):
        steps_of(replace(settings, probe=3))


def test_strings_that_vary_stay_between_their_lengths_and_the_best_is_kept():
    settings = Settings(
        steps=14, width=6, top_k=6, operators=(0.4, 0.2, 0.2, 0.2), shortest=3, longest=7, buffer=4, early_stop=False,
        fluency=0.5, repetition=3.0,
    )
    steps = steps_of(settings)
    lengths = {len(step.current) for step in steps}
    assert len(lengths) > 2
    assert lengths <= set(range(3, 8))
    assert all(after.loss <= one.loss for one, after in pairwise(steps))


@pytest.mark.parametrize(("wrong", "where"), [
    ({"width": 0}, "width"), ({"random": 1.5}, "random"), ({"operators": (0, 0, 0, 0)}, "operators"),
    ({"sample": 2}, "sample"), ({"probe_share": 0.0}, "probe_share"), ({"mellowmax": 0.0}, "mellowmax"),
])
def test_settings_out_of_range_are_told(wrong, where):
    with pytest.raises(RecipeError, match=rf"search\.{where}: got"):
        steps_of(Settings(**wrong))


def test_problems_that_share_no_start_are_told():
    with pytest.raises(RecipeError, match=r"search\.problems: 2 different starts"):
        steps_of(Settings(), problem(), problem(start=(4, 4)))
