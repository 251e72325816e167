"Tables whose rows don't belong together: every way to show them says so, once."
import pickle
import re
import warnings

import pandas as pd
import pytest
from conftest import later
from typer.testing import CliRunner

from wiseft.shell.cli import app
from wiseft.stats.caveats import reasons_to_doubt
from wiseft.stats.robustness import robustness
from wiseft.stats.table import CONTROL_MEAN, MEAN, compact, results_table, wide
from wiseft.stats.table_io import append_results, write_results

plot_alpha, plot_frontier, plot_shifts = later("wiseft.show.plots", "plot_alpha", "plot_frontier", "plot_shifts")
write_report = later("wiseft.show.report", "write_report")

SETS = {"photos": "reference", "line": "shift", "sketch": "shift"}
VALUES = {("zero-shot", 0): (.76, .58, .60), ("weight-space", .5): (.87, .63, .66), ("fine-tuned", 1): (.86, .57, .61)}


def table(fingerprint="a", **identity):
    "A sweep's table of two shifted sets, with their mean"
    rows = []
    for (method, alpha), values in VALUES.items():
        who = dict(classifier="clip", method=method, alpha=alpha) | identity
        rows += [who | dict(dataset=d, role=role, value=v, n=250, low=v-.05, high=v+.05, data_fingerprint=fingerprint)
                 for (d, role), v in zip(SETS.items(), values)]
        mean = (values[1] + values[2])/2
        rows.append(who | dict(dataset=MEAN, role="shift", value=mean, n=500, low=mean-.03, high=mean+.03,
                               data_fingerprint=f"{fingerprint}{fingerprint}"))
    return results_table(rows)


def sentences(function, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as for a user: a text once from one line
        result = function(*args)
    return result, [str(w.message) for w in caught]


WAYS = dict(wide=wide, compact=compact, robustness=robustness, plot_shifts=plot_shifts, plot_alpha=plot_alpha,
            plot_frontier=plot_frontier)


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_different_images_are_told_apart(way):
    "Two classifiers in one table; those of the same images, and numbers of papers, side by side without a word"
    half = table().assign(data_fingerprint=lambda t: t.data_fingerprint.where(t.alpha != 1, t.data_fingerprint + "x"))
    [said] = sentences(WAYS[way], half)[1]
    assert said.startswith("'photos', 'line', 'sketch': rows of the table are of different images"), said
    assert "Evaluate all classifiers on the same images" in said
    assert not sentences(WAYS[way], table())[1] and not sentences(WAYS[way], table(""))[1]


def test_a_report_of_different_images_says_so(tmp_path):
    "On the page, and in the shell, where the table was appended to"
    write_results(table()[lambda t: t.alpha != 1], tmp_path / "results.csv")
    append_results(table("other")[lambda t: t.alpha == 1], tmp_path / "results.csv")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "results.csv")])
    assert done.exit_code == 0 and done.output.count("are of different images") == 1, done.output
    assert (tmp_path / "results.html").read_text().count("are of different images") == 1
    done = CliRunner().invoke(app, ["plot", str(tmp_path / "results.csv"), "-o", str(tmp_path / "pictures")])
    assert done.exit_code == 0 and done.output.count("are of different images") == 1, done.output
    other = table().assign(data_fingerprint=[*"abcd"]*2 + [*"efgh"])
    assert any("different images" in s for s in reasons_to_doubt(other))


@pytest.mark.parametrize("edit, means", [
    pytest.param(lambda t: t[t.dataset != "sketch"], [58, 63, 57], id="taken out"),
    pytest.param(lambda t: t.assign(role=t.role.mask(t.dataset == "line", "aside")), [60, 66, 61], id="excluded"),
    pytest.param(lambda t: t.assign(value=t.value.mask(t.dataset == MEAN, .9), high=1), [59, 64.5, 59], id="typed"),
    pytest.param(lambda t: t.assign(n=t.n.mask(t.dataset == MEAN, 9999)), [59, 64.5, 59], id="other n"),
])
def test_a_mean_that_is_not_of_its_rows_is_recomputed(edit, means, tmp_path):
    "In tables, pictures, and reports, with a warning, and without an interval that would be another's"
    shown, [said] = sentences(wide, edit(table()))
    assert shown[MEAN].tolist() == means and said.startswith(f"{MEAN}: 3 of 3 rows were of other sets"), said
    rho, [said] = sentences(robustness, edit(table()))
    assert (100*rho[rho.dataset == MEAN].value).round(1).tolist() == means
    assert f"| {means[0]:.1f} |" in sentences(compact, edit(table()))[0]
    for plot in plot_shifts, plot_frontier:
        assert len(sentences(plot, edit(table()))[1]) == 1
    page, [said] = sentences(write_report, edit(table()), tmp_path / "page.html")
    assert f"{means[1]:.1f}" in page.read_text()


def test_a_mean_whose_sets_are_missing_for_one_classifier_is_named():
    less = table()[lambda t: (t.alpha != .5) | (t.dataset != "line")]
    shown, [said] = sentences(wide, less)
    assert said.startswith(f"{MEAN}: 1 of 3 rows are of other sets") and "some of these are missing" in said
    assert shown[MEAN].tolist() == [59, 64.5, 59]


def test_means_beside_no_sets_and_of_control_sets():
    "A selection of columns is no stale mean; control sets have a mean of their own"
    assert not sentences(wide, table()[lambda t: t.dataset.isin(["photos", MEAN])])[1]
    control = table().replace({"role": {"shift": "control"}, "dataset": {MEAN: CONTROL_MEAN}})
    assert not sentences(wide, control)[1]
    shown, said = sentences(wide, control[control.dataset != "line"])
    assert shown[CONTROL_MEAN].tolist() == [60, 66, 61] and len(said) == 1


def test_a_table_shows_what_matters_first_and_is_a_data_frame():
    "All that pandas does with it gives what it gives of a plain one, to the byte"
    own = table()
    plain = pd.DataFrame(own)
    first, _, every = own._repr_html_().partition("<details>")
    assert re.findall("<th>(value|low|high|n|version)</th>", first) == ["value", "low", "high", "n"]
    assert all(f"<th>{c}</th>" in every for c in own)  # on request
    assert repr(own).splitlines()[0].split()[-4:] == ["value", "low", "high", "n"]
    for f in (lambda t: t.to_csv(index=False), lambda t: pd.concat([t, t]).to_csv(), lambda t: t.to_json(),
              lambda t: t.groupby("method").value.mean().to_csv(), lambda t: t.groupby(["alpha", "role"]).agg(
                  {"value": "max", "n": "sum"}).to_csv(), lambda t: t.merge(plain, on="dataset").to_csv(),
              lambda t: pickle.loads(pickle.dumps(t)).to_csv(), lambda t: t.pivot_table("value", "alpha").to_csv(),
              lambda t: t.assign(value=2*t.value).query("alpha > 0").T.to_csv(), lambda t: t[["value"]]._repr_html_()):
        assert f(own) == f(plain)
    with pd.option_context("display.notebook_repr_html", False):
        assert own._repr_html_() is None
    assert own[:0]._repr_html_().count("<th>value</th>") == 2
