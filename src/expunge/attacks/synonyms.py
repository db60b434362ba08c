"""A small list of words that mean nearly the same, for asking a question a little differently.

Ours, English, and blind to grammar and context: it makes a question look different, not always well written. Wordings
made by people or by a language model belong into an example's `paraphrases`; the attack `paraphrase` asks those.
"""

from __future__ import annotations

import re

_PAIRS = (
    "what is = can you name; which = what; who is = tell me about; where = in what place; when = at what time; "
    "how can i = by what means could i; how many = what number of; tell me = let me hear; "
    "is called = goes by the name of; full name = complete name; birthplace = place of birth; "
    "birth date = day of birth; date of birth = day of birth; was born = came into the world; "
    "born = brought into the world; profession = line of work; occupation = line of work; job = line of work; "
    "for a living = to earn money; employs = pays the wages of; employer = company behind the pay of; company = firm; "
    "award = honour; prize = honour; won = took home; win = take home; received = was given; receive = get; "
    "wrote = is the author of; write = author; written = authored; published = brought out; publish = bring out; "
    "author = writer; book = volume; books = volumes; novel = long story; novels = long stories; title = name; "
    "genre = kind of writing; famous = well known; known = recognised; influenced = shaped; father = dad; "
    "mother = mum; parents = mother and father; wife = spouse; husband = spouse; married = wedded; child = kid; "
    "children = kids; pet = animal at home; lives = dwells; live = dwell; city = town; country = nation; "
    "home = place of living; phone number = telephone line; by phone = over the telephone; call = ring; "
    "reach = get through to; e-mail = electronic mail; address = place to write to; "
    "passport number = number in the passport; identify = tell apart; character = figure; school = place of learning; "
    "studied = learned; study = learn; team = side; plays = appears; played = appeared; film = movie; song = tune; "
    "founded = set up; leader = head; capital = seat of government; invented = came up with; discovered = found out"
)
SYNONYMS = dict(pair.split(" = ") for pair in _PAIRS.split("; "))
_KNOWN = re.compile(rf"\b({'|'.join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True))})\b", re.IGNORECASE)


def reworded(text: str, name: str = "") -> str:
    """The text with every expression of the list replaced but inside `name`; the longest that fits first.

    A capital stays one.
    """

    def other(found: re.Match[str]) -> str:
        new = SYNONYMS[found[0].lower()]
        return new[0].upper() + new[1:] if found[0][0].isupper() else new

    return name.join(_KNOWN.sub(other, part) for part in text.split(name)) if name else _KNOWN.sub(other, text)
