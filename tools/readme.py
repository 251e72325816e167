#!/usr/bin/env python
"""Write README.md, and its pictures in docs/, from nbs/index.ipynb.

  readme.py            write
  readme.py --check    only say whether they are in step

First, notebooks get from settings.ini what to `pip install` and what Colab badges open. The notebook's links to other
pages lead to the published site, those to other files are made relative to the top of the repository. What stands
between `::: {.site}` and `:::` is for the site alone; other lines of colons only lay it out.
"""
import base64
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path
from textwrap import indent

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs/index.ipynb"
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
SITE = CONFIG["DEFAULT"]["doc_host"] + CONFIG["DEFAULT"]["doc_baseurl"]
INSTALL = re.compile(r"(pip install (?:-q )?)(?:wiseft|git\+https://\S+?)(?=\\n|\s)")
COLAB = re.compile(r"https://colab\.research\.google\.com/github/[^)\s]+")
OPTION = re.compile(r"^#\| *(.+)\n?", re.M)
SITE_ALONE = re.compile(r"^(:{3,}) \{\.site.*?^\1$\n*", re.M | re.S)
LAYOUT = re.compile(r"^:{3,}.*\n*", re.M)
LINK = re.compile(r"(\[[^\]]*\])\((?![a-z]+:|#)([^)\s#]+)")


def notebook(path):
    "Text of a notebook that installs the package from where settings.ini says, and whose badge opens the notebook."
    settings = CONFIG["DEFAULT"]
    place = f"{settings['user']}/{settings['repo']}/blob/{settings['colab']}/{path.relative_to(ROOT).as_posix()}"
    text = INSTALL.sub(r"\g<1>" + settings["install"], path.read_text(encoding="utf-8"))
    return COLAB.sub(f"https://colab.research.google.com/github/{place}", text)


def outside(m):
    "A link relative to the notebook, made one that works outside the site."
    target = (NOTEBOOK.parent / m[2]).resolve()
    if not target.exists():
        sys.exit(f"{NOTEBOOK.name} links to {m[2]}, which does not exist")
    if target.suffix != ".ipynb":
        return f"{m[1]}({target.relative_to(ROOT).as_posix()}"
    page = target.with_name(re.sub(r"^\d+_", "", target.stem) + ".html").relative_to(NOTEBOOK.parent)
    return f"{m[1]}({SITE}/{page.as_posix()}"


def code(cell, pictures):
    "Source and outputs of a code cell as Markdown, as the `#|` options ask; pictures go into `pictures` by path."
    text = "".join(cell["source"])
    options = dict(o.partition(":")[::2] for o in OPTION.findall(text))
    options = {k.strip(): v.strip() for k, v in options.items()}
    if "hide" in options:
        return
    if options.get("echo") != "false":
        yield f"```python\n{OPTION.sub('', text).strip()}\n```"
    for o in cell["outputs"] if options.get("output") != "false" else []:
        data = {k: "".join(v) for k, v in o.get("data", {}).items()}
        if "image/png" in data:
            path = f"docs/readme-{len(pictures) + 1}.png"
            pictures[path] = base64.b64decode(data["image/png"])
            yield f"![{options.get('fig-alt', '').strip(chr(34))}]({path})"
        elif "text/markdown" in data:
            yield data["text/markdown"].strip()
        else:
            yield indent((data.get("text/plain") or "".join(o.get("text", []))).rstrip(), "    ")


def readme():
    "Text of README.md, and its pictures by path."
    blocks, pictures = [], {}
    for cell in json.loads(notebook(NOTEBOOK))["cells"]:
        if cell["cell_type"] == "markdown":
            blocks.append(LINK.sub(outside, LAYOUT.sub("", SITE_ALONE.sub("", "".join(cell["source"])))).strip())
        elif cell["cell_type"] == "code":
            blocks.extend(code(cell, pictures))
    text = "\n\n".join(b for b in blocks if b) + "\n"
    return text.replace("\n```\n\n```python\n", "\n\n"), pictures  # cells that follow each other are one block


def main():
    text, pictures = readme()
    want = {ROOT / "README.md": text.encode(), **{ROOT / k: v for k, v in pictures.items()}}
    want |= {path: notebook(path).encode() for path in (ROOT / "nbs").rglob("*.ipynb")}
    old = set((ROOT / "docs").glob("readme-*.png")) - set(want)
    if "--check" in sys.argv[1:]:
        changed = {p for p, b in want.items() if not p.exists() or p.read_bytes() != b}
        stale = sorted(p.name for p in old | changed)
        message = f"not in step with {NOTEBOOK.name} and settings.ini: {', '.join(stale)}; run: make readme"
        sys.exit(message if stale else None)
    for path in old:
        path.unlink()
    for path, content in want.items():
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


if __name__ == "__main__":
    main()
