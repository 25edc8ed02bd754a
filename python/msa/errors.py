# SPDX-License-Identifier: MIT
"""What a failed call raises: Error, and one child for each code of the library."""
from __future__ import annotations

__all__ = ["DeviceError", "Error", "InternalError", "InvalidArgument", "InvalidContent", "OutOfMemory", "Unsupported",
           "WorkspaceError"]


class Error(Exception):
    """A call failed and left its outputs untouched.

    code: "invalid argument", "unsupported", ...
    argument: the name of the argument at fault, or "".
    """

    code = "error"

    def __init__(self, message: str, argument: str = "") -> None:
        super().__init__(message)
        self.argument = argument

    def __reduce__(self) -> tuple[type[Error], tuple[str, str]]:
        return type(self), (str(self.args[0]), self.argument)


class InvalidArgument(Error, ValueError):
    """A number, shape, dtype, device, stride or overlap that the contract forbids."""

    code = "invalid argument"


class InvalidContent(Error, ValueError):
    """What an index tensor holds: a length, page id or block id out of range."""

    code = "invalid content"


class Unsupported(Error, RuntimeError):
    """Legal, but no backend serves it; the message holds every reason."""

    code = "unsupported"


class WorkspaceError(Error, ValueError):
    """The workspace is missing, too small or misaligned."""

    code = "workspace"


class OutOfMemory(Error, MemoryError):
    """An allocation of the call failed."""

    code = "out of memory"


class DeviceError(Error, RuntimeError):
    """The driver or a device reported a failure."""

    code = "device"


class InternalError(Error, RuntimeError):
    """A defect of the library."""

    code = "internal"
