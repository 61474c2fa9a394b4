"""The one exception that a user's input can cause."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: one sentence that says what was wrong, what was found and what to do.

    The command line prints the sentence to standard error and exits with status 2.
    """
