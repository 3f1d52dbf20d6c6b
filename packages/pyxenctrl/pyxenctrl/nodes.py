# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libxenstore's functions, and what can be done with the nodes of xenstore (xenstore.h).

Values are bytes. Permissions of a node are those of its owner, who may do everything and whose entry says
what all others may, followed by entries for single domains.
"""

import ctypes
import enum
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Final, NamedTuple, TypeVar

from pyxenctrl.library import Prototype, declare, failure

__all__ = (
    "SONAME",
    "FUNCTIONS",
    "Access",
    "Permission",
    "Nodes",
    "library",
    "check",
    "encoded",
    "strings",
    "taken",
)

SONAME: Final = "libxenstore.so.4"


class Access(enum.IntFlag):
    """What a domain may do with a node."""

    NONE = 0
    READ = 1
    WRITE = 2


class Permission(NamedTuple):
    """One entry of a node's permissions; of the first one the domain is the owner, the access everybody's."""

    domid: int
    access: Access


class _Permission(ctypes.Structure):
    _fields_ = [("domid", ctypes.c_uint), ("access", ctypes.c_uint)]


_HANDLE, _BUFFER, _TEXT, _TEXTS = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
_TRANSACTION, _COUNT, _COUNTED = ctypes.c_uint32, ctypes.c_uint, ctypes.POINTER(ctypes.c_uint)
_NODE = (_HANDLE, _TRANSACTION, _TEXT)

#: What is called, by name without ``xs_``. What is returned by address is freed by us.
FUNCTIONS: Final[dict[str, Prototype]] = {
    "open": (_HANDLE, (ctypes.c_ulong,)),
    "close": (None, (_HANDLE,)),
    "directory": (_TEXTS, (*_NODE, _COUNTED)),
    "read": (_BUFFER, (*_NODE, _COUNTED)),
    "write": (ctypes.c_bool, (*_NODE, ctypes.c_char_p, _COUNT)),
    "mkdir": (ctypes.c_bool, _NODE),
    "rm": (ctypes.c_bool, _NODE),
    "get_permissions": (_BUFFER, (*_NODE, _COUNTED)),
    "set_permissions": (ctypes.c_bool, (*_NODE, ctypes.POINTER(_Permission), _COUNT)),
    "watch": (ctypes.c_bool, (_HANDLE, _TEXT, _TEXT)),
    "unwatch": (ctypes.c_bool, (_HANDLE, _TEXT, _TEXT)),
    "fileno": (ctypes.c_int, (_HANDLE,)),
    "check_watch": (_TEXTS, (_HANDLE,)),
    "transaction_start": (_TRANSACTION, (_HANDLE,)),
    "transaction_end": (ctypes.c_bool, (_HANDLE, _TRANSACTION, ctypes.c_bool)),
    "get_domain_path": (_BUFFER, (_HANDLE, ctypes.c_uint)),
}

_Value = TypeVar("_Value")


@cache
def library() -> ctypes.CDLL:
    """The library, with its functions declared.

    :raises OSError: it is not installed, or too old.
    """
    return declare(SONAME, "xs_", FUNCTIONS)


@cache
def _free() -> Callable[[int], None]:
    free = ctypes.CDLL(None).free
    free.restype, free.argtypes = None, (ctypes.c_void_p,)
    return free


def encoded(text: str) -> bytes:
    """A name as the library takes it.

    :raises ValueError: it has a zero character.
    """
    if "\0" in text:
        raise ValueError(f"no name in xenstore: {text!r}")  # C would see the beginning of it
    return os.fsencode(text)


def check(done: object, what: str) -> None:
    """Raise the library's error if a call was not done.

    :param what: what was tried, in words.
    """
    if not done:
        raise failure(what)


def taken(address: int, value: Callable[[], _Value]) -> _Value:
    """What a function makes of the memory at an address, which is then freed."""
    try:
        return value()
    finally:
        _free()(address)


def strings(address: int, count: int) -> tuple[str, ...]:
    """The texts that an array of pointers leads to."""
    texts = (ctypes.c_char_p * count).from_address(address)
    return tuple(os.fsdecode(text or b"") for text in texts)


class Nodes(ABC):
    """The tree, as it is or as a transaction sees it."""

    _library: ctypes.CDLL
    _number = 0  # of the transaction; 0: none

    @abstractmethod
    def _live(self) -> AbstractContextManager[int]:
        raise NotImplementedError

    def read(self, path: str) -> bytes | None:
        """A node's value, None if there is no such node.

        :raises OSError: EACCES: not for us.
        """
        count = ctypes.c_uint()
        with self._live() as handle:
            value = self._library.xs_read(handle, self._number, encoded(path), ctypes.byref(count))
            if not value:
                error = failure(f"cannot read {path} in xenstore")
                if error.errno == errno.ENOENT:
                    return None
                raise error
        return taken(value, lambda: ctypes.string_at(value, count.value))

    def list(self, path: str) -> tuple[str, ...]:
        """The names of a node's children.

        :raises OSError: ENOENT: no such node; EACCES: not for us.
        """
        count = ctypes.c_uint()
        with self._live() as handle:
            names = self._library.xs_directory(handle, self._number, encoded(path), ctypes.byref(count))
            if not names:
                raise failure(f"cannot list {path} in xenstore")
        return taken(names, lambda: strings(names, count.value))

    def permissions(self, path: str) -> tuple[Permission, ...]:
        """A node's permissions, the owner's first.

        :raises OSError: ENOENT: no such node; EACCES: not for us.
        """
        count = ctypes.c_uint()
        with self._live() as handle:
            found = self._library.xs_get_permissions(handle, self._number, encoded(path), ctypes.byref(count))
            if not found:
                raise failure(f"cannot read the permissions of {path} in xenstore")
        return taken(
            found,
            lambda: tuple(
                Permission(entry.domid, Access(entry.access))
                for entry in (_Permission * count.value).from_address(found)
            ),
        )

    def write(self, path: str, value: bytes) -> None:
        """Set a node's value; it and the nodes above it are made if they are missing.

        :raises OSError: EACCES: not for us; ENOSPC: over the quota; E2BIG: it is too long.
        """
        with self._live() as handle:
            done = self._library.xs_write(handle, self._number, encoded(path), value, len(value))
            check(done, f"cannot write {path} in xenstore")

    def make_directory(self, path: str) -> None:
        """Make a node with no value, and the nodes above it; one that exists stays as it is.

        :raises OSError: EACCES: not for us; ENOSPC: over the quota.
        """
        with self._live() as handle:
            done = self._library.xs_mkdir(handle, self._number, encoded(path))
            check(done, f"cannot make {path} in xenstore")

    def remove(self, path: str) -> None:
        """Remove a node and all below it; that it is missing is no error if its parent exists.

        :raises OSError: ENOENT: not even its parent exists; EACCES: not for us.
        """
        with self._live() as handle:
            done = self._library.xs_rm(handle, self._number, encoded(path))
            check(done, f"cannot remove {path} in xenstore")

    def set_permissions(self, path: str, permissions: Sequence[tuple[int, Access]]) -> None:
        """Set a node's owner, what everybody may, and what single domains may.

        :raises OSError: ENOENT: no such node, or no such domain; EACCES: we are not its owner.
        """
        entries = (_Permission * len(permissions))(*(_Permission(*entry) for entry in permissions))
        with self._live() as handle:
            done = self._library.xs_set_permissions(
                handle, self._number, encoded(path), entries, len(permissions)
            )
            check(done, f"cannot set the permissions of {path} in xenstore")
