# SPDX-License-Identifier: MIT
"""Changing a framework politely: a stated range of versions, targets checked by name, all or nothing, undo.

A patch is a list of changes. Every change is checked before the first one is made; if one fails while
being made, those before it are taken back. undo() restores only what is still ours.
"""
from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import Unsupported


class IntegrationError(Unsupported):
    """A framework is not what an integration was written for."""


# ---- versions --------------------------------------------------------------------------------------------------------

_BOUND = re.compile(r"(>=|<)\s*(\d+(?:\.\d+)*)")


def release_of(version: str) -> tuple[int, ...]:
    """The numbers a version begins with: "5.24.0.dev1" is (5, 24, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    if found is None:
        raise IntegrationError(f"a version that begins with numbers was expected, found {version!r}")
    return tuple(int(part) for part in found.group().split("."))


def _padded(release: tuple[int, ...]) -> tuple[int, ...]:
    return release + (0,) * (4 - len(release))


def check_version(supported: str) -> str:
    """The installed version of "package >= a, < b"; IntegrationError where it lies outside."""
    package, _, bounds = supported.partition(" ")
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise IntegrationError(f"{supported} is needed, found no {package}: install it") from None
    release = _padded(release_of(version))
    for sign, bound in _BOUND.findall(bounds):
        limit = _padded(release_of(bound))
        if not (release >= limit if sign == ">=" else release < limit):
            raise IntegrationError(f"{supported} is needed, found {package} {version}: install a version in that range")
    return version


# ---- changes ---------------------------------------------------------------------------------------------------------


class Change(Protocol):
    """One thing that is put in place and can be taken back."""

    @property
    def name(self) -> str: ...

    def check(self) -> None: ...

    def make(self) -> None: ...

    def is_ours(self) -> bool: ...

    def take_back(self) -> None: ...


@dataclass
class Rebind:
    """An attribute of a class or module becomes wrap(original). `parameters` are the leading names that the
    original must have; a tuple among them lists names of which one must stand there."""

    module: str
    qualname: str
    parameters: Sequence[str | tuple[str, ...]]
    wrap: Callable[[Any], Any]
    _original: Any = field(default=None, init=False)
    _ours: Any = field(default=None, init=False)

    @property
    def name(self) -> str:
        return f"{self.module}.{self.qualname}"

    def _owner(self) -> tuple[Any, str]:
        *path, last = self.qualname.split(".")
        owner: Any = importlib.import_module(self.module)
        for part in path:
            owner = getattr(owner, part)
        return owner, last

    def check(self) -> None:
        try:
            owner, last = self._owner()
            function = getattr(owner, last)
        except (ImportError, AttributeError) as error:
            raise IntegrationError(f"{self.name} is to be replaced, found nothing there ({error})") from None
        found = list(inspect.signature(function).parameters)
        for at, want in enumerate(self.parameters):
            names = (want,) if isinstance(want, str) else want
            if at >= len(found) or found[at] not in names:
                raise IntegrationError(
                    f"{self.name} is to be replaced and should take {' or '.join(names)} as parameter {at}, "
                    f"found ({', '.join(found)})")

    def make(self) -> None:
        owner, last = self._owner()
        self._original = getattr(owner, last)
        self._ours = self.wrap(self._original)
        setattr(owner, last, self._ours)

    def is_ours(self) -> bool:
        owner, last = self._owner()
        return getattr(owner, last) is self._ours

    def take_back(self) -> None:
        owner, last = self._owner()
        setattr(owner, last, self._original)


@dataclass
class Register:
    """A key of a framework's own table, which must be free."""

    table_name: str
    table: MutableMapping[str, Any]
    key: str
    value: Any

    @property
    def name(self) -> str:
        return f"{self.table_name}[{self.key!r}]"

    def check(self) -> None:
        if self.key in self.table:
            raise IntegrationError(f"{self.name} is to be registered, found {self.table[self.key]!r} there already")

    def make(self) -> None:
        self.table[self.key] = self.value

    def is_ours(self) -> bool:
        return self.table.get(self.key) is self.value

    def take_back(self) -> None:
        del self.table[self.key]


class Patch:
    """Changes that stand or fall together."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = list(changes)
        self._made: list[Change] = []

    @property
    def names(self) -> list[str]:
        """What is in place, in the order it was put there."""
        return [change.name for change in self._made]

    def apply(self) -> None:
        for change in self._changes:
            change.check()
        try:
            for change in self._changes:
                change.make()
                self._made.append(change)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Takes back what is still ours; IntegrationError names what somebody else replaced since."""
        foreign = []
        while self._made:
            change = self._made.pop()
            if change.is_ours():
                change.take_back()
            else:
                foreign.append(change.name)
        if foreign:
            raise IntegrationError(f"{', '.join(foreign)} was replaced by somebody else after enable() and is left as it is; "
                                   "whoever replaced it may still call msa")
