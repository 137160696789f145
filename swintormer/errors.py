"""The one exception that the command line turns into a sentence and exit code 1, and numbers as sentences tell them."""


class SwintormerError(Exception):
    """What went wrong, what was expected and what to do, in one sentence for the person at the keyboard."""


def counted(count: int, noun: str) -> str:
    """1 tile, 2 tiles."""
    return f"{count} {noun}{'s' * (count != 1)}"


def bytes_in_words(count: int) -> str:
    """12 MB, 3 KB, 102 bytes: powers of 1000."""
    for unit, factor in (("MB", 10**6), ("KB", 10**3)):
        if count >= factor:
            return f"{count / factor:,.0f} {unit}"
    return counted(count, "byte")
