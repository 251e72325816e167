"The index of claims links every page with a result."
import json
import re

from conftest import ROOT

FINDINGS = ROOT / "nbs/explanations/findings.ipynb"
NO_RESULTS = {FINDINGS, *(ROOT / f"nbs/explanations/{name}.ipynb" for name in ("glossary", "sixty_lines"))}


def test_findings_link_every_result():
    cells = json.loads(FINDINGS.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    linked = {(FINDINGS.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+\.ipynb)", text)}
    pages = {p for folder in ("explanations", "reproductions") for p in (ROOT / "nbs" / folder).rglob("*.ipynb")
             if ".ipynb_checkpoints" not in p.parts}
    assert not pages - NO_RESULTS - linked
