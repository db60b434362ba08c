"""Parts of speech of tokens: which tagger there is, and how a tag of a word becomes a tag of its word pieces.

"patterns" needs nothing installed and knows no grammar: lists of function words, capitals inside a sentence, endings
and neighbours. Its classes are named for what they are ("noun-like"), so that nobody takes them for a treebank's.
"nltk" and "spacy" give the universal tags (NOUN, PROPN, VERB, ...) of their models where those are installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from expunge.errors import MissingExtra, ModelError, RecipeError, close_to

Tagged = list[tuple[int, int, str]]  # words in order: first character, the one after the last, tag
Tagger = Callable[[str], Tagged]
NONE = "none"  # of characters that belong to no word: what a template writes, the end of the text

WORD = re.compile(r"\d[\d,.:/-]*\d|\d|[^\W\d_]+(?:['\u2019][^\W\d_]+)?|[^\w\s]+|_+")
_LISTS: Mapping[str, str] = {
    "determiner": "the a an this that these those each every no some any all both another such what which whose",
    "possessive": "my your his her its our their",
    "pronoun": "i you he she it we they me him us them who whom myself yourself himself herself itself ourselves "
    "themselves someone somebody something everyone everybody everything anyone anything nobody nothing one there",
    "preposition": "of in to for with on at by from about into over after before under between through during without "
    "against among within along across behind beyond near up down off out around upon toward towards until since "
    "onto inside outside above below",
    "conjunction": "and or but nor so yet because if when while although though as than whether where unless once",
    "auxiliary": "am is are was were be been being has have had having do does did will would can could shall should "
    "may might must isn't aren't wasn't weren't hasn't haven't hadn't don't doesn't didn't won't wouldn't can't "
    "couldn't shouldn't i'm you're he's she's it's we're they're i've you've we've they've i'll you'll he'll she'll "
    "it'll we'll they'll i'd you'd he'd she'd we'd they'd let's that's there's",
    "adverb": "not never very too also then now just again always often soon still even only here away together back "
    "more most much many few several first last other same own well",
}
_CLOSED = {word: tag for tag, words in _LISTS.items() for word in words.split()}
_SUBJECTS = frozenset(("i", "you", "he", "she", "it", "we", "they", "who"))
_NOUN = re.compile(r"\w{2,}(?:tion|sion|ment|ness|ity|ship|hood|ism|ance|ence)s?$")
_VERB = re.compile(r"\w{3,}(?:ed|ing)$")


def patterns(text: str) -> Tagged:
    """Word classes by lists, capitals, endings and the words beside them; no grammar, no model.

    Classes: number, name (a capital inside a sentence), determiner, possessive, pronoun, preposition, conjunction,
    auxiliary, adverb, punctuation; of what is left: noun-like, verb-like and other.
    """
    words = [(found.start(), found.end()) for found in WORD.finditer(text)]
    shown = [text[start:end] for start, end in words]
    plain = [word.lower().replace("\u2019", "'") for word in shown]
    tags = [_surface(shown, plain, i) for i in range(len(words))]
    whole = [tag or _by_neighbours(plain, tags, i) for i, tag in enumerate(tags)]
    return [(start, end, tag) for (start, end), tag in zip(words, whole, strict=True)]


def _surface(shown: Sequence[str], plain: Sequence[str], i: int) -> str:
    """What a word is by its own looks; empty for a content word."""
    if shown[i][0].isdigit():
        return "number"
    if not shown[i][0].isalnum():
        return "punctuation"
    if plain[i] in _CLOSED:
        return _CLOSED[plain[i]]
    starts = i == 0 or bool(re.search(r"[.!?:\u201c\"\u2026]", shown[i - 1]))
    return "name" if shown[i][0].isupper() and not starts else ""


def _by_neighbours(plain: Sequence[str], tags: Sequence[str], i: int) -> str:
    """A content word by its ending and the classes beside it."""
    before = tags[i - 1] if i else "punctuation"
    after = tags[i + 1] if i + 1 < len(tags) else "punctuation"
    to = i > 0 and plain[i - 1] == "to"
    opens = before in ("determiner", "possessive", "preposition", "number") and not to
    if plain[i].endswith("ly"):
        return "adverb"
    if _NOUN.match(plain[i]) or (before in ("determiner", "possessive") and after):
        return "noun-like"
    subject = i > 0 and plain[i - 1] in _SUBJECTS
    infinitive = to and after in ("determiner", "possessive", "pronoun")
    if subject or infinitive or (_VERB.match(plain[i]) and not opens):
        return "verb-like"
    if before == "auxiliary" and after in ("determiner", "possessive", "pronoun"):
        return "verb-like"
    if before == "name" and after in ("determiner", "possessive", "preposition", "pronoun"):
        return "verb-like"
    return "noun-like" if opens and after else "other"


def by_nltk() -> Tagger:
    """NLTK's tagger with universal tags.

    Raises: MissingExtra without nltk; ModelError when its tagger's data is not there (it is never downloaded).
    """
    if importlib.util.find_spec("nltk") is None:
        raise MissingExtra("watch.tagger: nltk", "nltk", "tags")
    nltk: Any = importlib.import_module("nltk")

    def tag(text: str) -> Tagged:
        words = [(found.start(), found.end()) for found in WORD.finditer(text)]
        try:
            tags = nltk.pos_tag([text[start:end] for start, end in words], tagset="universal")
        except LookupError as error:
            raise ModelError(
                "watch.tagger: nltk", "its tagger's data is not installed", "averaged_perceptron_tagger_eng and "
                "universal_tagset", "Run: python -m nltk.downloader averaged_perceptron_tagger_eng universal_tagset",
            ) from error
        return [(start, end, name) for (start, end), (_, name) in zip(words, tags, strict=True)]

    return tag


def by_spacy(model: str = "en_core_web_sm") -> Tagger:
    """A spaCy pipeline's universal tags.

    Raises: MissingExtra without spacy; ModelError when the pipeline is not installed (it is never downloaded).
    """
    if importlib.util.find_spec("spacy") is None:
        raise MissingExtra("watch.tagger: spacy", "spacy", "tags")
    spacy: Any = importlib.import_module("spacy")
    if not spacy.util.is_package(model):
        raise ModelError(
            "watch.tagger: spacy", f"the pipeline '{model}' is not installed", "an installed spaCy pipeline",
            f"Run: python -m spacy download {model}",
        )
    pipeline = spacy.load(model, disable=["parser", "ner", "lemmatizer"])
    return lambda text: [(one.idx, one.idx + len(one.text), one.pos_) for one in pipeline(text) if not one.is_space]


def tagger_of(name: str) -> Tagger | None:
    """A tagger by name: patterns, nltk, spacy, none, or `module:function` from a text to (start, end, tag) of words.

    Raises: RecipeError for another name; see the taggers.
    """
    if name == NONE:
        return None
    if name == "patterns":
        return patterns
    if name in ("nltk", "spacy"):
        return by_nltk() if name == "nltk" else by_spacy()
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ("patterns", "nltk", "spacy", NONE, "module:function")
        raise RecipeError("watch.tagger", f"got '{name}'", close_to(name, known), "Correct the name")
    try:
        made: Tagger = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            "watch.tagger", f"cannot import '{name}' ({error})", "module:function", "Correct the name"
        ) from error
    return made


def tags_of_pieces(text: str, words: Tagged, pieces: Iterable[tuple[int, int]], first: int = 0) -> list[str]:
    """The tag of each word piece: that of the word it starts in, leading spaces of the piece aside.

    Args:
        words: tagged words of `text`, from its character `first` on. pieces: (first character, one after the last).
    Returns: one tag per piece; NONE where it starts in no word.
    """
    starts = [start + first for start, _, _ in words]
    found = []
    for begin, end in pieces:
        while begin < end and text[begin : begin + 1].isspace():
            begin += 1
        at = bisect_right(starts, begin) - 1
        inside = at >= 0 and begin < end and begin < words[at][1] + first
        found.append(words[at][2] if inside else NONE)
    return found
