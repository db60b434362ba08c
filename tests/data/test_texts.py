"""Chat templates: where the answer stands in a past turn, whatever words it is made of."""

from __future__ import annotations

import pytest

from expunge.data.texts import render
from expunge.errors import DataError
from expunge.types import Wrapper

CHAT = Wrapper("chat")
ORDINARY = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = (  # asked to think first; in past turns the thoughts are gone
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
THOUGHT = (  # asked without, but a past turn shows that nothing was thought
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACED = (
    "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else ' ' + m['content'] }}"
    "{% endfor %}"
)
ANSWERS = ["It is four.", "end", "im", "im_end", "assistant", "user", "think", "Who is it?", "|", "ANSWER", "n", "<"]


@pytest.fixture
def told(tiny_tokenizer, monkeypatch):
    """A tokenizer with a chat template."""

    def make(template):
        monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
        return tiny_tokenizer

    return make


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize(("template", "speaks", "opening"), [
    (ORDINARY, "<|im_start|>assistant\n", "<|im_start|>assistant\n"),
    (THINKS, "<|im_start|>assistant\n", "<|im_start|>assistant\n"),
    (THOUGHT, "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    (SPACED, " [/INST]", " [/INST] "),
])
def test_the_answer_is_found_where_it_is_said(told, template, speaks, opening, answer):
    """Not in the marks, not in the thoughts, not in the question, which here holds every answer as well."""
    prompt = f"Who is it? ANSWER, ANSWERS or {answer}"
    asked = prompt if template == SPACED else f"<|im_start|>user\n{prompt}<|im_end|>\n"
    start = f"[INST] {asked}" if template == SPACED else asked
    closing = "" if template == SPACED else "<|im_end|>\n"
    text, says, at = render(CHAT, told(template), prompt, answer)
    assert text == start + opening + answer + closing
    assert (says, at) == (len(start + speaks), len(start + opening))


@pytest.mark.parametrize("template", [ORDINARY, THINKS])
def test_spans_count_from_the_answer_as_given(told, template):
    """Two spaces are trimmed: the answer as given would start two characters earlier."""
    text, says, at = render(CHAT, told(template), "end?", "  end")
    assert text[says:].startswith("end<|im_end|>")
    assert says - at == 2


@pytest.mark.parametrize(("template", "answer"), [
    (THINKS, "a </think> b"), (ORDINARY.replace("| trim", "| upper"), "yes"),
    ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}", "Who"),
])
def test_a_template_that_does_not_write_the_answer_is_an_error(told, template, answer):
    with pytest.raises(DataError, match=r"chat template: an answer of \d+ characters .*; accepted: .*\. Correct"):
        render(CHAT, told(template), "Who?", answer)
