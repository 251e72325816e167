"What `--help` says of `-o`."
import pytest
from typer.main import get_command

from wiseft.shell.cli import app

COMMANDS = {name: command for name, command in get_command(app).commands.items()
            if any("--output" in p.opts for p in command.params)}


@pytest.mark.parametrize("name", COMMANDS)
def test_output_says_what_is_written(name):
    output, = [p for p in COMMANDS[name].params if "--output" in p.opts]
    assert any(word in output.help for word in ("Folder", "File", "table", "CSV", "Page")), output.help
