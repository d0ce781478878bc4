"""One token per byte, and eight that text cannot contain."""

SPECIALS = (
    "bos",
    "eos",
    "pad",
    "user",
    "assistant",
    "fim_begin",
    "fim_hole",
    "fim_end",
)
BOS, EOS, PAD, USER, ASSISTANT, FIM_BEGIN, FIM_HOLE, FIM_END = range(256, 264)
VOCAB_SIZE = 256 + len(SPECIALS)


def encode(text: str) -> list[int]:
    """The bytes of a text; it can never spell a special token."""
    return list(text.encode("utf8"))


def decode(tokens: list[int]) -> str:
    """Text with special tokens as ``<bos>``; broken bytes become U+FFFD.

    Raises ``ValueError`` for a token outside the vocabulary.
    """
    parts: list[bytes] = []
    for token in tokens:
        if not 0 <= token < VOCAB_SIZE:
            raise ValueError(f"token {token} is not below {VOCAB_SIZE}")
        special = f"<{SPECIALS[token - 256]}>" if token > 255 else ""
        parts.append(special.encode() or bytes([token]))
    return b"".join(parts).decode("utf8", errors="replace")
