"""Texts of others as one line that a terminal shows as it is."""


def printable(text: str) -> str:
    """A text whose line breaks, control characters and the like are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
