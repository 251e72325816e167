"""Commands that are killed, as their users' machines kill them: what they write is whole or not there.

They run in a copy of this process, which has imported all that is heavy: nothing is written before that.
"""
import tempfile
from functools import cache
from pathlib import Path

from crash import table
from tests.promises.test_no_file_is_lost import photographs
from typer.testing import CliRunner

from wiseft.base.files import existing_folder
from wiseft.analysis.predictions import predictions_file, read_predictions
from wiseft.models.load import load_classifier
from wiseft.models.testing import pico_classifier
from wiseft.shell.cli import app
from wiseft.stats.table_io import read_results, write_results
from wiseft.weights.merge import interpolate


def wiseft(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert not done.exit_code, done.output


@cache
def work():
    "A folder with what commands read: pictures, two ends and what lies between, tables"
    folder = Path(tempfile.mkdtemp())
    for name in "photos", "others":
        photographs(folder / name)
    start = pico_classifier(["cat", "dog"], transformer=True)
    start.save(folder / "start")
    wiseft("finetune", folder / "start", folder / "photos", "--epochs", 1, "--lr", 1e-2, "-o", folder / "finetuned")
    finetuned = load_classifier(folder / "finetuned")
    for value in 0.25, 0.75:
        interpolate(start, finetuned, value).save(folder / f"at {value}")
        write_results(table(value), folder / f"{value}.csv")
        (folder / f"{value}.txt").write_text(f"cat {value}\ndog\n")
    return folder


class Zeroshot:
    "`wiseft zeroshot`"
    share, name = 0.2, "out"

    def write(self, folder, value):
        wiseft(*self.words(work(), value, folder), "-o", folder / self.name, "--force")

    def read(self, folder):
        content = self.content(existing_folder(folder / self.name))
        return {value for value in (0.25, 0.75) if content == self.expected(value)}

    @cache
    def expected(self, value):
        "What nobody disturbed"
        with tempfile.TemporaryDirectory() as d:
            self.write(Path(d), value)
            return self.content(Path(d) / self.name)

    def words(self, work, value, folder):
        return "zeroshot", work / f"{value}.txt", "--model", f"local-dir:{work}/start"

    def content(self, path):
        classifier = load_classifier(path)
        return classifier.hash, classifier.classnames


class Finetune(Zeroshot):
    "`wiseft finetune --checkpoints --resume`"
    def words(self, work, value, folder):
        return ("finetune", work / "start", work / "photos", "--epochs", 2, "--batch-size", 8, "--seed", int(4 * value),
                "--checkpoints", folder / f"checkpoints {value}", "--resume")


class Merge(Zeroshot):
    "`wiseft merge`"
    def words(self, work, value, folder):
        return "merge", work / "start", work / "finetuned", "--alpha", value


class Export(Zeroshot):
    "`wiseft export --to transformers`"
    def words(self, work, value, folder):
        return "export", work / f"at {value}", "--to", "transformers"

    def content(self, path):
        return {p.name: p.read_bytes() for p in path.iterdir() if p.suffix in (".safetensors", ".json")}


class Ask(Zeroshot):
    "`wiseft ask`"
    def words(self, work, value, folder):
        return "ask", work / "start", work / "finetuned", work / "photos", "--labels", 8 * value, "--random", 1

    def content(self, path):
        return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Predict(Zeroshot):
    "`wiseft predict`"
    name = "out.csv"

    def read(self, folder):
        content = self.content(folder / self.name)
        return {value for value in (0.25, 0.75) if content == self.expected(value)}

    def words(self, work, value, folder):
        return "predict", work / f"at {value}", work / "photos", "--top", 2

    def content(self, path):
        return path.read_text()


class Sweep(Predict):
    "`wiseft sweep`"
    def words(self, work, value, folder):
        return ("sweep", work / "start", work / "finetuned", "--reference", work / "photos", "--shift", work / "others",
                "--alphas", value)

    def content(self, path):
        beside = read_predictions(predictions_file(path))
        alphas = [frame.alpha.dropna() for frame in (read_results(path), beside.frame())]
        return [sorted(set(a)) for a in alphas]


class Report(Predict):
    "`wiseft report`"
    name = "out.html"

    def words(self, work, value, folder):
        return "report", work / f"{value}.csv"

    def content(self, path):
        text = path.read_text()
        assert text.rstrip().endswith("</html>"), "cut off"
        return [v for v in (0.25, 0.75) if f">{100 * v:.1f}</td>" in text]


class Run:
    "`wiseft run`, which goes on where it was stopped"
    share = 0.1

    def write(self, folder, value):
        wiseft(*self.words(work(), value), "-o", folder / f"seed {value}")

    def read(self, folder):
        "What is there must be as nobody disturbed it; the last file makes it whole"
        for value in 0.75, 0.25:
            content, expected = self.content(folder / f"seed {value}"), self.expected(value)
            assert content.items() <= expected.items(), f"another result: {content.keys() - expected.keys()}"
            if content == expected:
                return {value}

    @cache
    def expected(self, value):
        with tempfile.TemporaryDirectory() as d:
            self.write(Path(d), value)
            return self.content(Path(d) / f"seed {value}")

    def words(self, work, value):
        return ("run", work / "photos", "--shift", work / "others", "--model", f"local-dir:{work}/start", "--epochs", 1,
                "--batch-size", 8, "--seed", int(4 * value))

    def content(self, path):
        hashes = {p.parent.name: load_classifier(p.parent).hash for p in path.glob("[!.]*/wiseft.json")}
        return hashes | {p.name: self.judged(p) for pattern in self.tables for p in path.glob(pattern)}

    tables = "results.csv", "averaged/README.md"

    def judged(self, file):
        return read_results(file).value.tolist() if file.suffix == ".csv" else file.read_text().splitlines()[-1]


class Bench(Run):
    "`wiseft bench`, which goes on where it was stopped"
    share, tables = 0.05, ("gains.csv", "curves.csv", "accuracies.csv", "report.html")

    def words(self, work, value):
        return ("bench", work / "start", "--reference", work / "photos", "--shift", work / "others",
                "--methods", "lines", "--epochs", 1, "--batch-size", 8, "--lrs", value / 100, "--seeds", 1)

    def judged(self, file):
        return file.read_text() if file.suffix == ".csv" else file.read_text().splitlines()[-1]


KINDS = (Zeroshot, Finetune, Merge, Export, Ask, Predict, Sweep, Report, Run, Bench)
PROGRAMS = {f"wiseft {k.__name__.lower()}": k() for k in KINDS}
