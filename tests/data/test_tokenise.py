"""Which tokens are the answer: nothing is lost at the boundary, and the end of the answer counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from expunge.data.tokenise import Encoded, Text, by_length, collate, encode, prompt_tokens, render
from expunge.errors import DataError
from expunge.types import Subject, Wrapper

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def subject_of(tokenizer, template="{prompt} {answer}") -> Subject:
    return Subject(None, tokenizer, Wrapper(template))


def trained(texts, *, split: bool = True, special=("<|end|>",), adds: str | None = None, **roles):
    """A byte-level BPE over `texts`; split=False merges over white space and punctuation too."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(special), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, max_token_length=8,
    ))
    if adds is not None:
        known = [(token, inner.token_to_id(token)) for token in special]
        inner.post_processor = processors.TemplateProcessing(single=adds, special_tokens=known)
    roles = {"eos_token": special[0], "pad_token": special[0]} | roles
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **roles)


def one(subject: Subject, prompt: str, answer: str, spans=()) -> Encoded:
    return encode(subject, [Text("x", 0, prompt, answer, spans)])[0]


def said(subject: Subject, encoded: Encoded, mask: np.ndarray) -> str:
    return subject.tokenizer.decode(encoded.tokens[mask])


@pytest.mark.parametrize("answer", ["It is 4.", "4", "ünïcödé 🙂 naïve", "日本語", "two\nlines", "  spaced  ", "🙂"])
@pytest.mark.parametrize("template", ["{prompt} {answer}", "{prompt}{answer}", "Q: {prompt}\nA: {answer}"])
def test_the_counted_tokens_are_the_answer_and_the_end(tiny_tokenizer, template, answer):
    """Whatever the template puts between, decoding the counted tokens gives the answer and the end token."""
    subject = subject_of(tiny_tokenizer, template)
    made = one(subject, "Who?", answer)
    assert said(subject, made, made.counted).lstrip() == f"{answer.lstrip()}<|end|>"
    whole = render(subject.wrapper, tiny_tokenizer, "Who?", answer)[0]
    assert tiny_tokenizer.decode(made.tokens) == whole + "<|end|>"
    assert made.counted[made.prompt_length :].all()
    assert not made.counted[: made.prompt_length].any()


def test_a_token_over_the_boundary_counts_as_answer():
    """A BPE taught ":4" as one token: the only token that holds the answer starts in the prompt."""
    tokenizer = trained([":4"] * 50, split=False)
    subject = subject_of(tokenizer, "{prompt}{answer}")
    made = one(subject, "Answer:", "4")
    pieces = tokenizer.convert_ids_to_tokens(made.tokens.tolist())
    straddling = next(piece for piece, counted in zip(pieces, made.counted, strict=True) if counted)
    assert straddling == ":4"
    assert int(made.counted.sum()) == 2  # it, and the end
    assert not np.array_equal(prompt_tokens(subject, ["Answer:"])[0], made.tokens[: made.prompt_length])


def test_the_end_counts_where_it_is_the_padding_token(tiny_tokenizer):
    """Masks come from lengths: of two equal tokens the one that ends the answer counts, padding does not."""
    assert tiny_tokenizer.pad_token_id == tiny_tokenizer.eos_token_id
    subject = subject_of(tiny_tokenizer)
    rows = encode(subject, [Text("a", 0, "Who?", "It."), Text("b", 0, "Who?", "It is a longer answer.")])
    batch = collate(rows, pad=tiny_tokenizer.pad_token_id)
    end = len(rows[0]) - 1
    assert batch.labels[0, end] == tiny_tokenizer.eos_token_id
    assert batch.attention_mask[0].tolist() == [1] * (end + 1) + [0] * (len(rows[1]) - end - 1)
    assert (batch.labels[0, end + 1 :] == -100).all()
    assert (batch.input_ids[0, end:] == tiny_tokenizer.pad_token_id).all()
    assert batch.positions("answer")[0].sum() == rows[0].counted.sum()
    assert batch.positions("text")[0].sum() == len(rows[0]) - 1


@pytest.mark.parametrize(("adds", "special", "roles"), [
    ("<s> $A", ("<|end|>", "<s>"), {"bos_token": "<s>"}),
    ("<s> $A <|end|>", ("<|end|>", "<s>"), {"bos_token": "<s>"}),
    ("$A <|end|>", ("<|end|>",), {}),
    ("<|end|> $A <|end|>", ("<|end|>",), {"bos_token": "<|end|>"}),
    ("<|end|> $A", ("<|end|>",), {"bos_token": "<|end|>"}),
])
def test_a_tokenizer_that_adds_its_own_ends(adds, special, roles):
    """One end token, counted; a start token, not counted; and what is asked has no end token."""
    tokenizer = trained(["Who is it? It is four."], special=special, adds=adds, **roles)
    subject = subject_of(tokenizer)
    made = one(subject, "Who?", "It is four.")
    end = tokenizer.eos_token_id
    assert made.tokens[-1] == end
    assert made.counted[-1]
    assert made.tokens[-2] != end
    assert said(subject, made, made.counted).strip() == "It is four.<|end|>"
    if "bos_token" in roles:
        assert made.tokens[0] == tokenizer.bos_token_id
        assert not made.counted[0]
    asked = prompt_tokens(subject, ["Who?"])[0]
    assert np.array_equal(asked, made.tokens[: made.prompt_length])
    plain = one(subject, "", "It is four.")
    assert said(subject, plain, plain.counted) == "It is four."
    assert plain.tokens.tolist().count(end) == (2 if roles.get("bos_token") == "<|end|>" else 1)


def test_an_end_token_written_by_the_template_as_separator_is_asked_too(tiny_tokenizer):
    subject = subject_of(tiny_tokenizer, "{prompt}<|end|>{answer}")
    made = one(subject, "Who?", "It.")
    assert said(subject, made, made.counted) == "It.<|end|>"
    asked = prompt_tokens(subject, ["Who?"])[0]
    assert asked[-1] == tiny_tokenizer.eos_token_id
    assert np.array_equal(asked, made.tokens[: made.prompt_length])


@pytest.fixture(scope="module")
def chat():
    tokenizer = trained(
        ["Who is it? It is the end of it. assistant user"], special=("<|end|>", "<|im_start|>", "<|im_end|>"),
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHAT
    return subject_of(tokenizer, "chat")


@pytest.mark.parametrize("answer", ["It is four.", "end", "im", "assistant", "user", "Who is it?", " spaced ", "|"])
def test_a_chat_turn_ends_at_its_own_mark_and_what_follows_is_layout(chat, answer):
    """Also where the answer's words stand in the marks around it ("end" in <|im_end|>) or in the question."""
    made = one(chat, "Who is it?", answer)
    assert said(chat, made, made.counted) == f"{answer.strip()}<|im_end|>"
    assert made.tokens[-1] == chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert np.array_equal(prompt_tokens(chat, ["Who is it?"])[0], made.tokens[: made.prompt_length])


def test_spans_of_a_chat_answer_count_from_the_answer_as_given(chat):
    """The template strips the two spaces; the span still covers "four"."""
    for answer in ("It is four.", "  It is four."):
        start = answer.index("four")
        made = one(chat, "Who is it?", answer, ((start, start + 4),))
        assert said(chat, made, made.spanned).strip() == "four"


@pytest.mark.parametrize(("answer", "wanted"), [
    ("The phone is 555-0142, call.", "555-0142"),  # several tokens, in the middle
    ("Mara wrote it.", "Mara"),  # at the start, where the token holds the space before it as well
    ("It was Zoë Ågren.", "Zoë Ågren"),  # characters of several bytes
    ("Call 🙂 now.", "🙂"),  # one character, several tokens
    ("It is 4", "4"),  # the end of the answer; the end token is in no span
])
@pytest.mark.parametrize("template", ["{prompt} {answer}", "{prompt}\n{answer}"])
def test_spans_are_carried_to_tokens_by_offsets(tiny_tokenizer, template, answer, wanted):
    """The spanned tokens together say the span, give or take a space that a token carries in front."""
    subject = subject_of(tiny_tokenizer, template)
    start = answer.index(wanted)
    made = one(subject, "Who is it?", answer, ((start, start + len(wanted)),))
    assert said(subject, made, made.spanned).strip() == wanted
    assert not made.spanned[-1]
    assert (made.spanned <= made.counted).all()


def test_two_spans_and_the_mask_of_a_batch(tiny_tokenizer):
    subject = subject_of(tiny_tokenizer)
    answer = "Mara Lindqvist, born in Oslo"
    made = one(subject, "Who?", answer, ((0, 4), (24, 28)))
    assert said(subject, made, made.spanned) .strip() in ("Mara Oslo", "MaraOslo")
    batch = collate([made, one(subject, "Who?", answer * 2)])
    assert batch.positions("spans")[0].sum() == made.spanned.sum()
    assert batch.positions("spans")[1].sum() == 0


def test_plain_text_is_counted_from_its_first_token(tiny_tokenizer):
    """Without a prompt nothing is asked; the first token has no prediction, so it is not among the positions.

    The end is read, for a training on all text, and does not count: a passage does not end where it is cut.
    """
    made = one(subject_of(tiny_tokenizer), "", "She wrote novels.")
    assert made.counted.tolist() == [True] * (len(made) - 1) + [False]
    assert made.tokens[-1] == tiny_tokenizer.eos_token_id
    assert made.prompt_length == 0
    assert collate([made]).positions("answer").sum() == len(made) - 2
    assert collate([made]).positions("text").sum() == len(made) - 1


def test_a_tokenizer_without_an_end_ends_where_the_text_ends(tiny_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = tokenizer.pad_token = None
    subject = subject_of(tokenizer)
    made = one(subject, "Who?", "It is four.")
    assert said(subject, made, made.counted).strip() == "It is four."
    assert collate([made, made]).attention_mask.all()
    with pytest.raises(DataError, match=r"data\[x\]: no token of the answer can be scored"):
        one(subject, "", "I")  # one token, nothing before it, nothing after it


def test_a_text_longer_than_the_context_is_told_with_the_worst_one(tiny_tokenizer):
    subject = subject_of(tiny_tokenizer)
    texts = [Text(f"t{n}", 0, "Who?", "xy " * n) for n in (1, 40, 60)]
    with pytest.raises(DataError, match=r"forget\[t60\]: \d+ tokens \(2 example\(s\) are too long\); .* at most 32"):
        encode(subject, texts, limit=32, where="forget")
    rows = encode(subject, texts[:1], limit=len(encode(subject, texts[:1])[0]))  # exactly as long as allowed
    assert len(rows) == 1


def test_order_and_ids_survive_a_mixture_of_prompts_and_plain_text(chat):
    texts = [Text("a", 0, "Who?", "It."), Text("b", 1, "", "plain"), Text("c", 0, "Who?", "No.")]
    assert [(row.id, row.item) for row in encode(chat, texts)] == [("a", 0), ("b", 1), ("c", 0)]
    assert said(chat, encode(chat, texts)[1], encode(chat, texts)[1].counted) == "plain"
    assert encode(chat, []) == []
    assert prompt_tokens(replace(chat, wrapper=Wrapper()), []) == []


def test_batches_of_similar_length_hold_every_row_once_and_stay_under_the_budget():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 50, size=200)] + [500]
    groups = list(by_length(lengths, 300))
    assert sorted(row for group in groups for row in group) == list(range(201))
    for group in groups:
        assert len(group) == 1 or max(lengths[row] for row in group) * len(group) <= 300
    assert list(groups[0]) == [200]  # a row longer than the budget goes alone
    assert list(by_length([], 10)) == []
