"""Errors that speak to a user: one line that names what was wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A request that cannot be served as it stands.

    The message is one line. The command line prints it without a traceback and exits with 2.
    """


class UnknownNameError(UserError, KeyError):
    """A name that no registry knows; the message carries the nearest known ones."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message.
        return str(self.args[0])


def unknown(kind: str, name: str, known: Iterable[str], command: str = "") -> UnknownNameError:
    """The error for an unknown `name` of this `kind`.

    Names the nearest of `known`, and the `command` that lists them all.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if not near:
        near = [other for other in known if name and name in other][:3]
    message = f"unknown {kind} {name!r}"
    if near:
        message += "; did you mean " + " or ".join(near) + "?"
    elif not command:
        message += "; known: " + ", ".join(known)
    if command:
        message += f" (`{command}` lists all)"
    return UnknownNameError(message)
