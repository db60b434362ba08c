"""Metrics, attacks and statistics in plain words. A name that is not here is shown as it is."""

from __future__ import annotations

import re

# One sentence each, for a reader who does not train models.
METRICS: dict[str, str] = {
    "probability": "How likely the model finds the exact answer, per word piece: near 100 % it knows the answer "
    "by heart.",
    "perplexity": "How surprised the model is by the text: 1 is not at all, large is very much.",
    "rouge": "How much of the true answer reappears, in order, in what the model writes when asked.",
    "memorization_accuracy": "Share of the word pieces of an answer that the model predicts exactly when it is shown "
    "everything before them.",
    "exact_memorization": "Share of the answers that the model reproduces word for word.",
    "extraction_strength": "How much of the end of an answer the model can still complete without an error, once "
    "given the beginning.",
    "extraction_likelihood": "How often fragments of the true text turn up in the model's own continuations.",
    "truth_ratio": "How the model rates false answers against the true one; the value itself means little, what "
    "counts is whether it equals that of a model that never saw the data.",
    "truth_ratio_utility": "On what should be kept: how far the model prefers the true answer over false ones; 1 is "
    "always.",
    "forget_quality": "Chance that answers as different as these would come from a model that never saw the data: "
    "near 1 the two cannot be told apart, near 0 they clearly differ.",
    "model_utility": "One number for all that should still work: answers on kept data, real people and general "
    "facts.",
    "membership": "How well an outsider can tell removed examples from ones the model never saw: 0.5 is guessing, "
    "1 is certainty, far below 0.5 is a trace too.",
    "choice_accuracy": "Share of multiple-choice questions answered rightly.",
    "span_memorization_accuracy": "Share of the sensitive word pieces that the model predicts exactly when it is shown "
    "everything before them.",
    "span_extraction_likelihood": "How much of a sensitive passage the model says by itself, given the true text up to "
    "it.",
    "fluency": "How varied the model's writing is; low means it repeats itself.",
    "diversity": "Share of different words in what the model writes; low means it repeats itself.",
    "rouge_rwku": "Share of the true answer's distinct words, spelled exactly, that reappear in order.",
    "leak_rate": "Share of the texts that the model goes on reciting when it is given their beginning.",
    "hallucination_rate": "Share of the questions answered more like the wrong answer than like the right one.",
    "familiarity_completion": "How much of the content the model gives away when asked about it in a roundabout way.",
    "familiarity_probability": "How likely the next word is one that only the removed content would suggest.",
    "jsd": "How different the model's guesses for the next word are from those of another model; 0 is the same.",
    "lpd": "How far the surprise at each text lies from that of another model.",
    "pdlp": "Share of the texts that surprise the model more than another model.",
    "reliability": "Share of the new answers the model gives.",
    "generality": "Share of the new answers the model gives when asked in other words.",
    "locality": "Share of unrelated questions answered as before.",
    "edit_success": "Share of the questions for which the new answer has become more likely than the old one.",
    "discoverable_extraction": "Share of texts recited exactly from their beginning.",
    "common_prefix": "How far texts are recited before the first error.",
    "token_match": "Share of tokens that stand at their place when a text is continued.",
    "verbatim_rouge": "How close the continuation comes to the true text.",
    "np_extraction": "Share of texts that come within so many random tries.",
    "leak_at_k": "Chance that one of k random answers gives the secret away.",
    "exposure": "How many bits of a planted secret the model gives away.",
    "mean_reciprocal_rank": "How near the top planted secrets stand among all guesses.",
    "membership_lowercase": "Chance of telling removed texts from unseen ones by how much lower case disturbs them.",
    "membership_reference": "Chance of telling removed texts from unseen ones, compared with what another model says.",
    "membership_neighbourhood": "Chance of telling removed texts from unseen ones by changing a few words of each.",
    "membership_recall": "Chance of telling removed texts from unseen ones by putting unseen text in front.",
    "membership_gradient": "Chance of telling removed texts from unseen ones by how hard they pull at the weights.",
    "membership_without_model": "Chance of telling removed texts from unseen ones without any model: should be 0.5, "
    "or the comparison itself is unfair.",
    "tpr_at_fpr": "Share of the removed texts an outsider names while he is almost never wrong.",
    "privleak": "How much easier (below 0) or harder (above 0) removed texts are told from unseen ones than with a "
    "model that never saw them, in percent.",
    "model_diff": "How well someone who has the model from before and from after can name what was removed: 0.5 is "
    "guessing.",
    "logit_lens_extraction": "How much of an answer can be read from inside the model, whatever it says in the end.",
    "lens_by_layer": "How much of an answer can be read from one layer of the model.",
    "linear_probe": "Whether the inside of the model still tells true answers from false ones.",
    "unlearning_depth": "How deep the removal goes: 0, every layer still carries the answer; 1, none more than in a "
    "model that never saw it.",
    "unlearning_depth_reference_free": "How deep the removal goes, measured without a model that never saw the data.",
    "stereoset_lm": "Share of pairs in which the model prefers a sentence that makes sense.",
    "stereoset_ss": "Share of pairs in which the model prefers the stereotype; half is none.",
    "stereoset_icat": "Language ability and lack of stereotypes in one number; 1 is ideal.",
    "crows_pairs": "Share of pairs in which the more stereotyping sentence is the likelier one; half is none.",
    "winobias": "How much better the model does where a pronoun agrees with a stereotype; 0 is none.",
    "toxicity": "How rude or hateful the model's answers are.",
    "sentiment": "How positive the model's answers are; half is neutral.",
    "repetition": "How much of an answer repeats what stood in it before.",
    "token_repetition": "How often the model's next word piece is one it has just read.",
    "distinct_n": "How varied the words of the model's answers are.",
    "refusal_rate": "Share of the answers that decline, or say that the model does not know.",
    "letter_accuracy": "Share of multiple-choice questions whose right letter the model picks.",
    "mc1": "Share of questions whose true answer is likelier than every false one.",
    "mc2": "How much of the likelihood of all answers lies on the true ones.",
    "lambada": "Share of texts whose last word the model gets right.",
    "knowmem": "How close answers to questions about the text come to the true ones.",
    "verbmem": "How much of the text comes back when its beginning is given.",
    "portability": "Share of questions one step further that are answered with the new fact.",
    "answer_exact": "Share of the questions answered exactly right.",
    "answer_f1": "How many words an answer shares with the true one.",
    "bleu": "How many runs of words of an answer stand in the true one.",
}

# "Before the removal, {phrase}": `{value}` already carries its unit and interval.
PHRASES: dict[str, str] = {
    "exact_memorization": "reproduced {value} of the answers word for word",
    "extraction_strength": "could complete {value} of an answer without an error, once given its beginning",
    "memorization_accuracy": "got {value} of the words of the answers exactly right",
    "rouge": "brought back {value} of the words of the true answers when asked",
    "probability": "gave the exact answers a likelihood of {value} per word",
    "perplexity": "read the text with a surprise (perplexity) of {value}",
    "model_utility": "scored {value} on everything that should keep working",
    "choice_accuracy": "answered {value} of the multiple-choice questions rightly",
}

# The metric as the subject of a sentence for lay readers.
PLAIN: dict[str, str] = {
    "exact_memorization": "the share of answers reproduced word for word",
    "memorization_accuracy": "the share of words that are exactly right",
    "extraction_strength": "the part of an answer that can be completed without an error",
    "probability": "the likelihood of the exact answers",
    "rouge": "the share of true words in what the model writes",
    "truth_ratio": "the way true and false answers are rated (truth ratio)",
    "membership": "the success at guessing which texts were used (0.5 is chance)",
    "perplexity": "the surprise at the text (perplexity)",
    "model_utility": "the overall score on what should keep working",
    "forget_quality": "the likeness to a model that never saw the data (forget quality)",
}

# Best first: which metric tells a lay reader how much the model can still say, and how well it still works.
KNOWLEDGE = ("exact_memorization", "memorization_accuracy", "extraction_strength",
             "rouge", "probability", "choice_accuracy")
UTILITY = ("model_utility", "exact_memorization", "memorization_accuracy", "rouge",
           "probability", "choice_accuracy", "perplexity")

UNITS: dict[str, str] = {
    "probability": "prob", "rouge": "share", "memorization_accuracy": "share", "exact_memorization": "share",
    "extraction_strength": "share", "forget_quality": "p-value",
    "perplexity": "perplexity", "choice_accuracy": "share",
}

ATTACKS: dict[str, str] = {
    "relearn": "The model is trained for a few steps on part of the removed examples, to see whether the rest comes "
    "back.",
    "quantize": "The weights are rounded to fewer bits, as is done to run a model cheaply; small changes made by a "
    "removal can get lost in it.",
    "prune": "Some of the weights are set to zero; a removal that only covers something up can lose its cover.",
    "noise": "A little noise is added to the weights; what is only just covered up can come through.",
    "interpolate": "The weights are moved part of the way back to those before the removal.",
    "orthogonalize": "The direction in which the removal moved the model's inner states is taken out of them.",
    "paraphrase": "The same questions are asked in other words.",
    "perturb_prompt": "Stray letters are put into the questions.",
    "prompts": "The questions are wrapped in instructions that ask the model to reveal what it knows.",
    "jailbreak": "The questions are wrapped in instructions that ask the model to reveal what it knows.",
    "prefill": "The beginning of an answer is put into the model's mouth.",
    "few_shot": "Other questions are shown with their right answers first.",
    "multi_turn": "The question comes up in a conversation that leads to it.",
    "gcg": "A computer searches for a meaningless string that makes the model answer.",
    "dua": "A computer searches for one meaningless string that makes the model answer many questions.",
    "soft_prompt": "Numbers that stand for no word are trained and put beside the question until the model answers.",
    "sampling": "The question is asked many times with chance in the answers, and the best answer counts.",
    "temperature_sweep": "The question is asked many times with more and more chance in the answers; the best counts.",
    "beam": "Many beginnings of an answer are followed at once, and the likeliest whole answer counts.",
    "contrastive": "Words are preferred that the model before the removal would say more readily than this one.",
    "logit_lens": "The answer is read from inside the model, before its last layers can hide it.",
    "tuned_lens": "The answer is read from inside the model, by a reader that was trained on other texts.",
    "chain": "Several attacks are made one after the other.",
    "probe": "The answer is read from inside the model, by a reader that was trained on part of the removed examples.",
}

TERMS: dict[str, str] = {
    "Original": "The model as it was before the removal.",
    "Oracle": "A twin of the model, trained in the same way but without the data to be removed: what a perfect "
    "removal would give.",
    "After": "The model after the removal.",
    "Attack": "An attempt to bring the removed knowledge back; everything is measured again afterwards. The same "
    "attack on the oracle shows what it gives an attacker who starts from nothing.",
    "Interval": "The range in which the true value lies with the confidence stated in this report: the value that "
    "endlessly many examples (or subjects) like these would give.",
    "Subject": "What several examples are about, such as a person with ten questions. They rise and fall together, so "
    "they count together.",
    "Margin": "The largest difference that still counts as no difference, fixed before measuring.",
    "Power": "The chance that an audit of this size shows equality if there is equality. When it is low, no result "
    "says little.",
    "PASS": "The whole interval of the difference lies within the margin, in the worst case looked at.",
    "FAIL": "The whole interval lies outside the margin in at least one case; for what was to be kept, below it.",
    "INCONCLUSIVE": "The interval crosses the margin: the data do not decide. This is not a weak pass.",
    "Points": "Percentage points: from 10 % to 12 % is 2 points.",
}

BUDGETS = {"queries": "questions", "tokens": "word pieces"}  # what an attack spends; other words are plain enough

# Where a good model stands on data that must be kept; metrics that are not here follow their own `better`.
KEPT: dict[str, str] = {
    "probability": "higher", "rouge": "higher", "memorization_accuracy": "higher", "exact_memorization": "higher",
    "extraction_strength": "higher", "perplexity": "lower", "truth_ratio_utility": "higher",
    "model_utility": "higher", "choice_accuracy": "higher", "leak_rate": "higher", "diversity": "higher",
    "fluency": "higher", "rouge_rwku": "higher", "pdlp": "lower", "jsd": "lower", "lpd": "lower",
    **dict.fromkeys((
        "knowmem", "verbmem", "letter_accuracy", "mc1", "mc2", "lambada", "answer_exact", "answer_f1", "bleu",
        "common_prefix", "token_match", "verbatim_rouge", "discoverable_extraction", "np_extraction",
        "span_memorization_accuracy", "span_extraction_likelihood", "extraction_likelihood", "logit_lens_extraction",
        "lens_by_layer", "linear_probe", "leak_at_k",
    ), "higher"),
    "refusal_rate": "lower",
}

_TITLES = {
    "rouge": "ROUGE-L", "membership": "Membership inference", "relearn": "Relearning", "quantize": "Rounding",
    "prune": "Pruning", "interpolate": "Interpolation", "orthogonalize": "Direction taken out", "gcg": "Suffix search",
    "dua": "Universal suffix",
}


def base(metric: str) -> str:
    """The registered name in `membership(min_k)` or `membership[score=min_k]`."""
    return re.split(r"[(\[{@:]", metric, maxsplit=1)[0].strip()


def describe(metric: str) -> str:
    """One plain sentence; the name itself when nothing is known."""
    return METRICS.get(metric) or METRICS.get(base(metric), metric)


def title(name: str) -> str:
    """`extraction_strength` -> `Extraction strength`; what follows the registered name is kept."""
    stem = base(name)
    words = _TITLES.get(stem) or stem.replace("_", " ")
    return words[:1].upper() + words[1:] + (f" {name[len(stem):].strip()}" if name[len(stem):].strip() else "")


def phrase(metric: str) -> str:
    """What a value means, as the end of a sentence about the model, with `{value}` in it."""
    known = PHRASES.get(base(metric))
    return known if known is not None else f"scored {{value}} on {re.sub('[{}]', '', title(metric))}"


def plain(metric: str) -> str:
    """The metric as the subject of a sentence; its title in lower case when it has no plain name."""
    return PLAIN.get(base(metric)) or title(metric).lower()


def unit(metric: str) -> str:
    """The unit of a known metric, empty otherwise."""
    return UNITS.get(base(metric), "")


def attack(name: str | None) -> str:
    """What an attack does, in one sentence; empty when unknown. Chains ("a+b") are told one after the other."""
    return " ".join(ATTACKS[base(part)] for part in _chained(name or "") if base(part) in ATTACKS)


def attack_title(name: str) -> str:
    """`relearn(lr=0.1)+soft_prompt` -> `Relearn (lr=0.1), then soft prompt`."""
    words = ", then ".join(title(part).lower() if number else title(part) for number, part in enumerate(_chained(name)))
    return words[:1].upper() + words[1:]


def _chained(name: str) -> list[str]:
    return re.split(r"\+(?=[a-z_])", name)
