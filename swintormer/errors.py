"""The exception for users, which the command line prints as one sentence and ends with exit code 1."""


class SwintormerError(Exception):
    """One sentence for the user: what went wrong, what was expected and what to do."""


class PriorError(SwintormerError):
    """A prior that cannot be made: diffusers is not installed, or cannot make the parts."""


def first_line(error: Exception) -> str:
    """The first line of another library's error without full stop, or its class; torch appends hints and its stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
