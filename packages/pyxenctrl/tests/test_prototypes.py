# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The declared functions against the C headers, where those are installed (libxen-dev, xen-devel)."""

import ctypes
import importlib
import re
import shutil
import subprocess
from functools import cache
from typing import Any

import pytest

#: module, header, prefix of its functions
BINDINGS = [
    ("gnttab", "xengnttab.h", "xengnttab_"),
    ("gntshr", "xengnttab.h", "xengntshr_"),
    ("foreignmemory", "xenforeignmemory.h", "xenforeignmemory_"),
    ("evtchn", "xenevtchn.h", "xenevtchn_"),
    ("devicemodel", "xendevicemodel.h", "xendevicemodel_"),
    ("nodes", "xenstore.h", "xs_"),
]

CTYPES = {
    "void": None,
    "char": ctypes.c_char,
    "bool": ctypes.c_bool,
    "_Bool": ctypes.c_bool,
    "int": ctypes.c_int,
    "unsigned": ctypes.c_uint,
    "unsigned int": ctypes.c_uint,
    "unsigned long": ctypes.c_ulong,
    "size_t": ctypes.c_size_t,
    "uint8_t": ctypes.c_uint8,
    "uint16_t": ctypes.c_uint16,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "xen_pfn_t": ctypes.c_uint64,
    "domid_t": ctypes.c_uint16,
    "evtchn_port_t": ctypes.c_uint32,
    "ioservid_t": ctypes.c_uint16,
    "xenevtchn_port_or_error_t": ctypes.c_int,
    "xs_transaction_t": ctypes.c_uint32,
}


@cache
def preprocessed(header: str) -> str:
    """A header's text without comments; skips the test if it is not installed."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to find headers with")
    source = f"#if __has_include(<{header}>)\n#include <{header}>\n#else\nMISSING\n#endif\n"
    done = subprocess.run(
        [compiler, "-E", "-P", "-"], input=source, capture_output=True, text=True, check=True, timeout=60
    )
    if "MISSING" in done.stdout:
        pytest.skip(f"{header} is not installed")
    return " ".join(done.stdout.split())


def fits(declared: Any, text: str) -> bool:
    """Whether a ctypes type stands for a parameter or result in C."""
    words = [word for word in re.findall(r"\w+", text) if word not in ("const", "extern", "struct")]
    if " ".join(words) not in CTYPES:
        words.pop()  # a parameter's name
    base = " ".join(words)
    pointers = text.count("*") + text.count("[")
    if not pointers:
        return declared is CTYPES[base]
    if declared in (ctypes.c_void_p, ctypes.c_char_p):
        return declared is ctypes.c_void_p or (base, pointers) == ("char", 1) or base == "void"
    # A pointer to a number must be one to that number; structures have other names here.
    target = declared._type_
    return pointers > 1 or issubclass(target, ctypes.Structure) or target is CTYPES[base]


@pytest.mark.parametrize(("module", "header", "prefix"), BINDINGS)
def test_functions_are_what_the_headers_say(module: str, header: str, prefix: str) -> None:
    text = preprocessed(header)
    functions = importlib.import_module(f"pyxenctrl.{module}").FUNCTIONS
    assert functions
    for name, (result, arguments) in functions.items():
        found = re.search(rf"([\w ]+[ *]+){prefix}{name}\s*\(([^()]*)\)\s*;", text)
        assert found, f"{prefix}{name} is not in {header}"
        parameters = found.group(2).split(",")
        assert len(arguments) == len(parameters), found.group()
        assert fits(result, found.group(1)), found.group()
        for argument, parameter in zip(arguments, parameters, strict=True):
            assert fits(argument, parameter), f"{argument} is not {parameter} in {found.group()}"
