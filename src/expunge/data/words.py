"""Words that carry the grammar of an English text and none of its content."""

from __future__ import annotations

_STOP = (
    "a about after all also am an and any are as at be because been before being but by can could did do does don down "
    "each else for from had has have he her here hers him his how i if in into is it its just ll m may me might more "
    "most must my no nor not of off on one only or other our out over own re s same shall she should so some such t "
    "than that the their them then there these they this those through to too under until up upon us ve very was we "
    "were what when where which while who whom whose why will with would yes you your"
)
STOP_WORDS = frozenset(_STOP.split())
