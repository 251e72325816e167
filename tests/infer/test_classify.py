"Classes of pictures as people have them."
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from wiseft.infer.classify import classify
from wiseft.models.testing import pico_classifier


@pytest.mark.skipif(sys.platform != "linux", reason="other systems don't allow such names")
def test_file_names_that_are_not_utf8(tmp_path):
    "With pyarrow installed, pandas keeps texts in Arrow, which takes UTF-8 only."
    name = os.fsdecode("café.png".encode("latin1"))
    Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    classifier = pico_classifier(["cat", "dog"])
    table = classify(classifier, tmp_path, progress=False)
    assert table.file.tolist() == [str(tmp_path / name)] and table.file.dtype == object
    assert list(table)[:3] == ["file", "class", "probability"]
    from wiseft.shell.cli import app

    classifier.save(tmp_path / "c")
    done = CliRunner().invoke(app, ["predict", *map(str, [tmp_path / "c", tmp_path / name, "-o", tmp_path / "p.csv"])])
    assert done.exit_code == 0, done.output
    assert pd.read_csv(tmp_path / "p.csv").file[0].endswith(r"caf\udce9.png")


def test_a_folder_has_the_pictures_that_a_labeled_one_has(tmp_path):
    for name in ("a.jpg", "b.jfif", "c.pgm", "d.tga", ".trash/e.png", ".f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name, "TGA" if name.endswith("tga") else "PNG")
    classifier = pico_classifier(["cat", "dog"])
    for pictures in (tmp_path, (tmp_path / name for name in ("a.jpg", "b.jfif", "c.pgm", "d.tga"))):
        table = classify(classifier, pictures, top=1, progress=False)
        assert [Path(f).name for f in table.file] == ["a.jpg", "b.jfif", "c.pgm", "d.tga"]
