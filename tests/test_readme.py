"""What the README says is true: its code runs, its commands are those that CI runs."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from cio_batch.simulator import Simulator

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(PYTHON)))
async def test_the_code_runs(number: int, tmp_path: Path) -> None:
    """Each block of Python is a program that ends well against a simulator, and delivers what it enqueues."""
    script = tmp_path / "block.py"
    script.write_text(PYTHON[number], encoding="utf-8")
    async with Simulator() as sim:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "error",
            str(script),
            cwd=tmp_path,
            env={**os.environ, **sim.environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0, output.decode()
        if "asyncio.run" in PYTHON[number]:
            assert sim.workspace.person("id", "user-1").events or sim.workspace.messages


def test_ci_runs_the_readmes_test_command() -> None:
    """The second command of the README stands in .ci/run, letter by letter."""
    assert len(SHELL) == 2
    demo, tests = (command.strip() for command in SHELL)
    assert demo.endswith("cio-batch demo")
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_every_environment_variable_is_documented() -> None:
    """The README names each variable that the settings read."""
    from cio_batch.settings import _VARIABLES

    assert not [variable for variable in _VARIABLES.values() if variable not in README]
