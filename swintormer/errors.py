"""The exceptions for users, which the command line prints as one sentence and ends with exit code 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class SwintormerError(Exception):
    """One sentence for the user: what went wrong, what was expected and what to do."""


class InputError(SwintormerError, ValueError):
    """An argument that a function does not take: another type, shape, dtype, range or name."""


class PriorError(SwintormerError):
    """A prior that cannot be made: diffusers is not installed, or cannot make the parts."""


def is_out_of_memory(error: Exception) -> bool:
    """Torch's own errors differ by device and have no common class."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of another library's error without full stop, or its class; torch appends hints and its stack."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def first_fault(error: ValidationError) -> str:
    """The first fault of a configuration: where it is, if it is in one setting, and what, without full stop."""
    first = error.errors()[0]
    where, message = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def described(value: object) -> str:
    """What was found in the place of something else, in a few words."""
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{value!r} ({name})" if isinstance(value, str | int | float) else f"an object of {name}"
