"A number of processes that is no number is refused in a line."
import os
import sys

import pytest
from conftest import run


@pytest.mark.parametrize("command, message", [
    (["methods"], "error: `wiseft methods` runs in one process, and the environment variable WORLD_SIZE is 'x'."),
    (["evaluate", "."], "error: The environment variable WORLD_SIZE is 'x'; expected a number, 0 or more."),
])
def test_commands_name_the_variable(command, message):
    result = run(sys.executable, "-m", "wiseft", *command, ok=False, env=os.environ | dict(WORLD_SIZE="x"))
    assert result.stderr.startswith(message) and "Traceback" not in result.stderr
