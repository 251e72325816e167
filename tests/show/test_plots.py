"Pictures of tables that lack an end, and their files."
import pytest
from PIL import Image

from wiseft.shell.report import draw_pictures
from wiseft.show.plot_data import initial_name
from wiseft.stats.table import METHODS, results_table


def table(*methods):
    rows = [dict(classifier="clip", method=m, alpha=a, dataset=d, role=r, value=.5+.1*a, low=.4, high=.7, n=100)
            for m, a in methods for d, r in (("photos", "reference"), ("mean over shifts", "shift"))]
    return results_table(rows)


def test_an_initial_model_is_called_zero_shot_where_the_table_lacks_it():
    "And as the table calls it, where it has one"
    half = "weight-space", .5
    assert initial_name(table(half)) == initial_name(table(half, ("zero-shot", 0))) == "zero-shot"
    assert initial_name(table(half, ("start", 0))) == "start"


def test_pictures_have_the_resolution_of_print(tmp_path):
    "150 dots an inch, which the file says"
    draw_pictures(table(("zero-shot", 0), ("weight-space", .5), ("fine-tuned", 1)), tmp_path)
    pictures = sorted(tmp_path.glob("*.png"))
    assert [p.stem for p in pictures] == ["alpha", "frontier", "shifts"]
    for p in pictures:
        assert Image.open(p).info["dpi"] == pytest.approx((150, 150), abs=.1)


def test_methods_have_different_colors():
    "The known ones, and a dozen others after them."
    from wiseft.show.style import COLORS

    names = [*METHODS, *(f"mine {i}" for i in range(12))]
    assert len({tuple(COLORS[name]) for name in names}) == len(names)
