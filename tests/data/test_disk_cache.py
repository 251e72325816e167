"The cache of several users."
import os

import pytest
from PIL import Image
from tests.promises.test_other_users import as_nobody
from typer.testing import CliRunner

from wiseft.data.disk_cache import cache_table
from wiseft.data.labels import image_folder
from wiseft.data.pixels import Pixels, ShortSide, decode_once

pytestmark = pytest.mark.skipif(os.name == "nt", reason="users and modes of POSIX")


def cache_command(*options):
    from wiseft.shell.cli import app

    return CliRunner().invoke(app, ["cache", *options]).output


def test_clear_counts_what_is_gone(tmp_path, monkeypatch):
    "An entry that another user made stays, and isn't counted."
    for folder in (tmp_path, *tmp_path.parents):  # pytest closes its own to other users
        if folder == tmp_path or folder.name.startswith(("pytest-", "popen-")):
            folder.chmod(0o755)
    monkeypatch.setenv("WISEFT_CACHE", str(tmp_path / "cache"))
    for c in "ab":
        (tmp_path / "pictures" / c).mkdir(parents=True)
        Image.new("RGB", (400, 400), (0, 0, ord(c))).save(tmp_path / "pictures" / c / "1.png")
    decode_once(Pixels(image_folder(tmp_path / "pictures"), ShortSide(400)), progress=False)
    for folder in (tmp_path / "cache/pixels", *(tmp_path / "cache/pixels").iterdir()):
        folder.chmod(0o555)  # for who runs this without being root
    assert "1 entry, 1.0 MB of at most" in cache_command()  # which imports all before rights are gone

    def clear():
        output = cache_command("--clear")
        assert "removed 0 entries, 0.0 MB" in output, output
        assert "1 entry, 1.0 MB can't be removed" in output, output
    as_nobody(clear)
    assert len(cache_table()) == 1
    for folder in (tmp_path / "cache/pixels", *(tmp_path / "cache/pixels").iterdir()):
        folder.chmod(0o755)
    assert "removed 1 entry, 1.0 MB" in cache_command("--clear") and not len(cache_table())
