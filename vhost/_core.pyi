# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# The C core as Python sees it: csrc/api.h and csrc/sys.h.
from typing import Any, Final

ffi: Final[Any]
lib: Final[Any]
