"""Text for a terminal: boundaries and blanks can be seen, and nothing steers the terminal."""

_SYMBOLS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}


def visible(text: str) -> str:
    """Return ``text`` with blanks and control characters as symbols."""
    return "".join(_SYMBOLS.get(character) or harmless(character) for character in text)


def harmless(text: str) -> str:
    """Return ``text`` with every control character but newline and tab as a symbol.

    What a model writes is no more to be trusted than any other input: escape sequences in it could
    change the window's title, the clipboard or what the reader believes to have been printed.
    """
    return "".join(_harmless_character(character) for character in text)


def _harmless_character(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return f"\\u{code:04x}"
