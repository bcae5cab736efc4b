"""What probably went wrong with the blanks between a prompt and a completion."""

import unicodedata

# After these a word follows with a blank before it.
_BEFORE_A_BLANK = ".,;:!?)]}%"


def leading_space_hint(prompt: str, completion: str) -> str | None:
    """Return a hint when a completion probably lacks its leading space, else None.

    Prompt and completion are tokenised apart, and most tokenizers attach a blank to the word that
    follows: " np" is one common token, "np" another and rarer one.
    """
    if not prompt or not completion or not _is_word(completion[0]):
        return None
    if prompt[-1] == " ":
        return (
            f"the prompt ends in a space; most tokenizers attach it to the word that follows: did "
            f"you mean the prompt {prompt.rstrip(' ')!r} and the completion {' ' + completion!r}?"
        )
    if _is_word(prompt[-1]) or prompt[-1] in _BEFORE_A_BLANK:
        return (
            f"the completion {completion!r} follows without a space; did you mean "
            f"{' ' + completion!r}? Most tokenizers attach the space to the word that follows"
        )
    return None


def _is_word(character: str) -> bool:
    """Return whether a letter or digit of a script that puts blanks between words."""
    return character.isalnum() and unicodedata.east_asian_width(character) not in ("W", "F")
