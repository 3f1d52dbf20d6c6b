# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The README's example does what the README says."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vhost import mem

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(mem.SELECTED != "unix", reason="the example shares memory of its own process")
def test_the_device_and_its_driver(tmp_path: Path) -> None:
    path = tmp_path / "upper.sock"
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    device, driver = (block.replace("/tmp/upper.sock", str(path)) for block in blocks)
    assert sum(bool(line.strip()) for line in device.splitlines()) <= 20
    (tmp_path / "device.py").write_text(device)
    with subprocess.Popen([sys.executable, "-P", tmp_path / "device.py"]) as process:
        try:
            deadline = time.monotonic() + 30
            with socket.socket(socket.AF_UNIX) as probe:
                while probe.connect_ex(str(path)):
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            subprocess.run([sys.executable, "-P", "-c", driver], check=True, timeout=30)
        finally:
            process.terminate()
