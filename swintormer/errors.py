"""The one exception that the command line turns into a sentence and exit code 1."""


class SwintormerError(Exception):
    """What went wrong, what was expected and what to do, in one sentence for the person at the keyboard."""
