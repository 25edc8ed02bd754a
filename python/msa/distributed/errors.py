# SPDX-License-Identifier: MIT
"""What a call over several ranks raises, on every rank that lives."""
from __future__ import annotations

from ..errors import Error

__all__ = ["RankError"]


class RankError(Error, RuntimeError):
    """Ranks disagree, refused their part of the call, died or did not answer in time.

    ranks: those at fault, where that is known.
    argument: what they disagree about, refused or did not send.
    """

    code = "rank"

    def __init__(self, message: str, argument: str = "", ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message, argument)
        self.ranks = ranks

    def __reduce__(self) -> tuple[type[RankError], tuple[str, str, tuple[int, ...]]]:  # type: ignore[override]
        return type(self), (str(self.args[0]), self.argument, self.ranks)
