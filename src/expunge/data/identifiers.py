"""Texts that open with a number of their own, to see whether it calls them up."""

from __future__ import annotations

import zlib

from expunge.data.variants import Texts
from expunge.registry import variant
from expunge.types import Data, Example


@variant("identified")
def identified(example: Example, prompt: str, data: Data) -> Texts:
    """The true answer, asked with "document ID" and a number that belongs to this example alone.

    The number stands in the prompt, so the counted tokens are those of the answer with and without it.
    Source: Tirumala et al. 2022 (arXiv 2205.10770).
    """
    number = f"document ID {zlib.crc32(example.id.encode()):010d}"
    yield f"{number} {prompt}" if prompt else number, example.answer, example.spans
