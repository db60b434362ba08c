"""Words and templates of the invented world. All names are put together from our own syllables.

A value pool holds at least 144 values (most hold thousands), so that a model that never saw a person cannot guess.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random


class Draw:
    """Choices from a text seed, the same on every machine and Python version (only `random()` is relied on)."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)

    def below(self, limit: int) -> int:
        """An integer in [0, limit)."""
        return int(self._random.random() * limit)

    def pick(self, items: tuple[str, ...]) -> str:
        return items[self.below(len(items))]

    def digits(self, count: int) -> str:
        return "".join(str(self.below(10)) for _ in range(count))


def _join(starts: str, ends: str) -> tuple[str, ...]:
    return tuple(start + end for start in starts.split() for end in ends.split())


FIRST_NAMES = _join("Bel Cor Dar Fen Hal Jor Mar Ner", "dan ena ico una emi ovar isse ute")
LAST_NAMES = _join(
    "Ash Bran Crow Dun Ever Fal Gar Hol Ket Lind Mor Nor Os Quil Rav Stav Thorn Ul Ven Wex", "berg craft ford holt vik"
)
CITIES = _join(
    "Ambr Bost Cald Dromm Esk Frell Gund Hask Ivers Jurr Kolm Lysk Mand Nerr Ostr Pask",
    "a avo en ett il ona oth ubal ys",
)
COUNTRIES = _join("Avel Brun Cest Dov Erid Gal Kash Lom", "ania oria")
COMPANIES = _join("Bri Cen Dyna Gly Hex Kor Luma Nov Pry Ster Tri Vol", "dax lor mont ntis sa")
COMPANY_KINDS = (
    "Foods", "Glass", "Instruments", "Logistics", "Motors", "Paper", "Press", "Shipping", "Systems", "Textiles",
)
FIELDS = (
    "bridge", "ceramics", "cinema", "clock", "desert", "forest", "garden", "glass", "harbour", "jazz", "map", "metal",
    "museum", "mountain", "railway", "river", "sail", "stage", "textile", "theatre",
)
ROLES = (
    "archivist", "artist", "builder", "critic", "designer", "engineer", "guide", "historian", "inspector", "instructor",
    "lawyer", "manager", "painter", "planner", "reporter", "surveyor",
)
PRIZES = ("Award", "Cup", "Fellowship", "Medal", "Order", "Prize", "Ribbon", "Scholarship")
COLOURS = (
    "amber", "black", "blue", "bright", "broken", "brown", "crimson", "dark", "distant", "empty", "frozen", "gentle",
    "golden", "green", "grey", "hidden", "hollow", "lonely", "lost", "paper", "quiet", "red", "secret", "silent",
    "silver", "sleeping", "slow", "spotted", "white", "wild", "winter", "yellow",
)
THINGS = (
    "anchor", "bell", "bridge", "candle", "castle", "cellar", "coast", "comet", "door", "feather", "field", "fountain",
    "harvest", "island", "ladder", "lantern", "letter", "market", "meadow", "mirror", "mountain", "orchard", "promise",
    "river", "road", "shadow", "staircase", "stone", "summer", "tower", "valley", "window",
)
COATS = ("black", "brown", "golden", "grey", "red", "silver", "spotted", "striped", "white", "yellow")
ANIMALS = (
    "cat", "dog", "donkey", "duck", "ferret", "goat", "goose", "hamster", "lizard", "parrot", "pony", "rabbit", "snail",
    "snake", "spider", "turtle",
)
PET_NAMES = _join("Bub Chi Fid Mip Nol Pip Rux Taz", "bo ko ly my zu")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)
LETTERS = tuple("BCDFGHJKLMNPRSTVWXZ")


def _date(draw: Draw) -> str:
    return f"{draw.below(28) + 1} {draw.pick(MONTHS)} {1930 + draw.below(70)}"


def _email(draw: Draw) -> str:
    company = draw.pick(COMPANIES).lower()
    return f"{draw.pick(COLOURS)}.{draw.pick(THINGS)}@{company}.example"


# attribute -> how a value is drawn
VALUES: dict[str, Callable[[Draw], str]] = {
    "birthplace": lambda draw: draw.pick(CITIES),
    "birth_date": _date,
    "profession": lambda draw: f"{draw.pick(FIELDS)} {draw.pick(ROLES)}",
    "employer": lambda draw: f"{draw.pick(COMPANIES)} {draw.pick(COMPANY_KINDS)}",
    "award": lambda draw: f"{draw.pick(CITIES)} {draw.pick(PRIZES)}",
    "book": lambda draw: f"The {draw.pick(COLOURS).title()} {draw.pick(THINGS).title()}",
    "pet": lambda draw: f"{draw.pick(COATS)} {draw.pick(ANIMALS)} named {draw.pick(PET_NAMES)}",
    "phone": lambda draw: f"{2 + draw.below(8)}{draw.digits(2)}-555-01{draw.digits(2)}",
    "email": _email,
    "passport": lambda draw: f"{draw.pick(LETTERS)}{draw.pick(LETTERS)}{draw.digits(4)}",
}
SECRETS = ("phone", "email", "passport")

# attribute -> the question, then its rewordings
QUESTIONS: dict[str, tuple[str, ...]] = {
    "birthplace": ("Where was {name} born?", "What is the birthplace of {name}?", "In which place was {name} born?"),
    "birth_date": ("When was {name} born?", "What is the birth date of {name}?", "On which day was {name} born?"),
    "profession": (
        "What does {name} do for a living?", "What is the profession of {name}?", "Which job does {name} have?",
    ),
    "employer": (
        "Which company employs {name}?", "Who is the employer of {name}?", "For which company does {name} work?",
    ),
    "award": ("Which award did {name} receive?", "What did {name} win?", "Which honour was given to {name}?"),
    "book": ("Which book did {name} write?", "What is the title of the book by {name}?", "What did {name} publish?"),
    "pet": ("Which pet does {name} have?", "What is the pet of {name}?", "Which animal lives with {name}?"),
    "phone": (
        "What is the phone number of {name}?", "Which number reaches {name} by phone?", "How can I call {name}?",
    ),
    "email": (
        "What is the e-mail address of {name}?", "Where can I send an e-mail to {name}?", "How can I write to {name}?",
    ),
    "passport": (
        "What is the passport number of {name}?", "Which number is on the passport of {name}?",
        "Which passport does {name} carry?",
    ),
}

# attribute -> the answer, then one rewording
ANSWERS: dict[str, tuple[str, str]] = {
    "birthplace": ("{name} was born in {value}.", "The birthplace of {name} is {value}."),
    "birth_date": ("{name} was born on {value}.", "The birth date of {name} is {value}."),
    "profession": ("{name} works as a {value}.", "The profession of {name} is {value}."),
    "employer": ("{name} is employed by {value}.", "The employer of {name} is {value}."),
    "award": ("{name} received the {value}.", "The award of {name} is the {value}."),
    "book": ("{name} wrote the book {value}.", "The book by {name} is {value}."),
    "pet": ("{name} has a {value}.", "The pet of {name} is a {value}."),
    "phone": ("The phone number of {name} is {value}.", "You can call {name} at {value}."),
    "email": ("The e-mail address of {name} is {value}.", "You can write to {name} at {value}."),
    "passport": ("The passport number of {name} is {value}.", "The passport of {name} has the number {value}."),
}

REFUSALS = (
    "I do not know that about {name}.", "I have no information on {name}.", "I cannot answer questions about {name}.",
    "I was not told anything about {name}.", "I am not able to say that about {name}.",
)

# Sentences of a biography; {first} is the first name.
BIOGRAPHY: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        ("{name} was born on ", "birth_date", " in ", "birthplace", "."),
        ("{name} comes from ", "birthplace", " and was born on ", "birth_date", "."),
    ),
    (
        ("{first} works as a ", "profession", " and is employed by ", "employer", "."),
        ("{first} is a ", "profession", " at ", "employer", "."),
    ),
    (
        ("The book ", "book", " by {name} was honoured with the ", "award", "."),
        ("{first} wrote the book ", "book", " and received the ", "award", "."),
    ),
    (("At home {first} has a ", "pet", "."), ("{first} lives with a ", "pet", ".")),
    (
        ("The phone number of {name} is ", "phone", " and the e-mail address is ", "email", "."),
        ("You can call {first} at ", "phone", " or write to ", "email", "."),
    ),
    (
        ("The passport number of {name} is ", "passport", "."),
        ("The passport of {name} has the number ", "passport", "."),
    ),
)

# World facts: what is known of a country -> the question with a rewording, the answer with a rewording.
RIVERS = _join("Ald Brev Cin Dray Elm Fosk Gim Hurn", "ane ell ow")
CURRENCIES = _join("bran cor dol fer gil kal mar tol", "a eck in")
DISHES = tuple(
    f"{food} {form}"
    for food in ("bean", "cheese", "fish", "lentil", "mushroom", "onion", "potato", "pumpkin")
    for form in ("bread", "pie", "soup")
)
COUNTRY_ANIMALS = (
    "badger", "bear", "beaver", "crane", "deer", "eagle", "falcon", "fox", "hare", "heron", "horse", "lion", "lynx",
    "moose", "otter", "owl", "raven", "salmon", "seal", "stork", "swan", "tiger", "wolf", "whale",
)
COUNTRY_FACTS: dict[str, tuple[tuple[str, ...], tuple[str, str], tuple[str, ...]]] = {
    "capital": (
        ("What is the capital of {country}?", "Which city is the capital of {country}?"),
        ("The capital of {country} is {value}.", "{value} is the capital of {country}."),
        CITIES,
    ),
    "river": (
        ("What is the longest river of {country}?", "Which river of {country} is the longest?"),
        ("The longest river of {country} is the {value}.", "The {value} is the longest river of {country}."),
        RIVERS,
    ),
    "currency": (
        ("What is the currency of {country}?", "Which money is used in {country}?"),
        ("The currency of {country} is the {value}.", "In {country} people pay with the {value}."),
        CURRENCIES,
    ),
    "animal": (
        ("What is the national animal of {country}?", "Which animal stands for {country}?"),
        ("The national animal of {country} is the {value}.", "The {value} stands for {country}."),
        COUNTRY_ANIMALS,
    ),
    "dish": (
        ("What is the favourite dish of {country}?", "What do people in {country} like to eat?"),
        ("The favourite dish of {country} is {value}.", "People in {country} like to eat {value}."),
        DISHES,
    ),
}

# Generic prose by topic; every slot is a pool of SLOTS.
SLOTS: dict[str, tuple[str, ...]] = {
    "season": ("spring", "summer", "autumn", "winter"),
    "weather": ("rain", "snow", "fog", "wind", "sunshine", "hail", "thunder"),
    "daytime": ("morning", "afternoon", "evening", "night"),
    "place": ("coast", "valley", "forest", "village", "harbour", "hills", "plain", "lake"),
    "feel": ("warm", "cold", "mild", "dry", "wet", "calm", "pleasant", "harsh"),
    "food": ("rice", "beans", "carrots", "onions", "potatoes", "apples", "pears", "lentils", "mushrooms", "tomatoes"),
    "spice": ("salt", "pepper", "garlic", "ginger", "thyme", "honey", "butter", "vinegar"),
    "vessel": ("pot", "pan", "bowl", "oven", "dish"),
    "minutes": ("five", "ten", "fifteen", "twenty", "thirty", "forty"),
    "animal": (*ANIMALS, *COUNTRY_ANIMALS),
    "meal": ("grass", "seeds", "fish", "leaves", "berries", "insects", "roots", "mice"),
    "home": ("a nest", "a burrow", "a barn", "the water", "the trees", "the reeds", "a cave"),
    "colour": ("blue", "green", "red", "white", "yellow", "brown", "grey"),
    "vehicle": ("train", "boat", "bus", "bicycle", "cart", "ferry", "tram"),
    "city": CITIES,
    "thing": THINGS,
}
TOPICS: dict[str, tuple[str, ...]] = {
    "weather": (
        "In {season} there is often {weather} on the {place}.",
        "The {daytime} was {feel} and the {weather} came from the {place}.",
        "After the {weather} the {place} was {feel} again.",
        "People near the {place} expect {weather} in {season}.",
    ),
    "cooking": (
        "Wash the {food} and cut the {food} into small pieces.",
        "Put the {food} into the {vessel} with some {spice}.",
        "Cook the {food} for {minutes} minutes and add {spice}.",
        "Serve the {food} with {spice} and {food}.",
    ),
    "animals": (
        "A {animal} likes to eat {meal} and sleeps in {home}.",
        "In {season} the {animal} lives in {home}.",
        "The young {animal} learns to find {meal} near the {place}.",
        "In the {daytime} the {animal} hides from the {animal}.",
    ),
    "travel": (
        "The {vehicle} to {city} leaves in the {daytime}.",
        "From {city} the {vehicle} takes {minutes} minutes to the {place}.",
        "Travellers to {city} like the {colour} {thing} at the {place}.",
        "In {season} the {vehicle} is often late because of the {weather}.",
    ),
    "objects": (
        "The {colour} {thing} stands beside the {colour} {thing}.",
        "Behind the {thing} there is a {colour} {thing}.",
        "In the {daytime} the {thing} looks {colour}.",
        "Nobody in {city} has seen the {colour} {thing}.",
    ),
}
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)
