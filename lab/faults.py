"""The one error class of the lab: what is missing, why, and what to do about it."""

from __future__ import annotations


class LabFault(Exception):
    """A part of the lab cannot be had here; the others go on.

    Attributes:
        what: one clause that names the part and what is wrong with it.
        hint: what a person can do about it.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class Interrupted(Exception):
    """The operator pressed Ctrl-C; a step in hand stopped where it is safe to go on later."""
