"""The errors that a user can fix, as one family. Whatever else is raised is a bug and keeps its traceback.

    StemmaError                  one sentence or two: what, where, how to fix it
    ├── ConfigError              a setting or an argument that cannot be used      (also a ValueError)
    ├── DataError                a file whose content is not what it should be     (also a ValueError)
    ├── MissingError             something that was not made yet or is not there   (also a FileNotFoundError)
    ├── WorkspaceError           the project's folder: locks, disk, versions       (also a RuntimeError)
    └── RunError                 work that began and could not be finished         (also a RuntimeError)

A package derives its own kinds from these; each also is the built-in error that a caller in Python would expect.
"""

from __future__ import annotations


class StemmaError(Exception):
    """What went wrong, where, and how to fix it, in plain sentences for the user."""


class ConfigError(StemmaError, ValueError):
    """A setting or an argument that cannot be used: which one, where it is, which values are valid."""


class DataError(StemmaError, ValueError):
    """A file or record whose content is not what it should be: which one, and how to replace it."""


class MissingError(StemmaError, FileNotFoundError):
    """Something that was not made yet, or is not where it should be: what it is, and what makes it."""


class WorkspaceError(StemmaError, RuntimeError):
    """The project's folder cannot be used in its present state: a lock, the disk, a version that is not recorded."""


class RunError(StemmaError, RuntimeError):
    """Work that began and could not be finished: what stopped it, and how to continue."""
