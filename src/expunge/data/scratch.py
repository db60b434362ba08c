"""A model from nothing: untrained weights and a tokenizer made from the streams of the recipe."""

from __future__ import annotations

from expunge.data.examples import stream_of
from expunge.data.synthetic_base import build_model, build_tokenizer
from expunge.errors import ModelError
from expunge.types import Data, Subject, Wrapper


def new_model(
    data: Data, seed: int, *, width: int = 128, layers: int = 3, heads: int = 4, vocabulary: int = 2048,
    text: list[str] | None = None,
) -> Subject:
    """A small Llama with random weights (tied embeddings, context 512, float32) and a byte-level tokenizer.

    Args:
        width: of the hidden states, a multiple of 2 * heads. layers, heads: of the transformer.
        vocabulary: tokens, at most; at least 258. text: streams the tokenizer is made from; None: all of them.
    Returns: a Subject with the question / answer template; the same data, seed and arguments give the same one.
    Raises: ModelError for a shape that cannot be; DataError for a stream that does not exist.
    """
    sizes = {"width": width, "layers": layers, "heads": heads}
    if min(sizes.values()) < 1 or width % (2 * heads):
        raise ModelError(
            "model.new", ", ".join(f"{name} {size}" for name, size in sizes.items()),
            "1 or more of each, width a multiple of 2 * heads", "Correct the shape",
        )
    if vocabulary < 258:  # 256 bytes and two tokens of its own
        raise ModelError("model.new.vocabulary", f"got {vocabulary}", "258 or more", "Correct the value")
    streams = [stream_of(data, name, "model.new.text") for name in text] if text is not None else list(data.values())
    tokenizer = build_tokenizer((one for stream in streams for one in stream.examples), size=vocabulary)
    model = build_model(tokenizer, width=width, layers=layers, heads=heads, seed=seed)
    return Subject(model.eval(), tokenizer, Wrapper("chat"), name=f"new-{width}x{layers}")
