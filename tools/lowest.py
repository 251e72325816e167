"""Does the library work with the lowest versions that settings.ini allows?

Installs them in an environment of their own, builds the wheel, runs the demo and the tests of trust.

    python tools/lowest.py                # in a temporary folder; writes tools/lowest.csv
    python tools/lowest.py --env FOLDER   # in an environment that is kept, and used again

Python 3.11 or the one that runs this. torch comes from where pip finds it, with its CUDA libraries if need be: 5 GB.
"""
import argparse
import csv
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["tests/promises/test_nothing_is_executed.py", "tests/promises/test_bad_images.py",
         "tests/weights/test_checkpoints.py", "tests/promises/test_killed_anywhere.py", "tests/fuzz"]


def requirements():
    "Name → lowest version ('' where none is said), of what the library needs."
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    found = [re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?", r) for r in config["DEFAULT"]["requirements"].split()]
    return {m[1]: m[2] or "" for m in found}


def run(*command, **kwargs):
    print("$", *command, flush=True)
    return subprocess.run(list(map(str, command)), cwd=ROOT, **kwargs).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, help="folder of the environment, made if it is missing")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as d:
        env, out = args.env or Path(d) / "env", Path(d)
        if not env.exists():
            run(sys.executable, "-m", "venv", env, check=True)
        python = env / "bin" / "python"
        pins = [f"{name}=={version}" for name, version in requirements().items() if version]
        run(python, "-m", "pip", "install", "--quiet", "build", "pytest", "hypothesis", *pins, check=True)
        run(python, "-m", "build", "--wheel", "--outdir", out, check=True, stdout=subprocess.DEVNULL)
        run(python, "-m", "pip", "install", "--quiet", "--force-reinstall", "--no-deps", *out.glob("*.whl"), check=True)
        run(python, "-m", "pip", "check", check=True)
        os.environ |= dict(WISEFT_CACHE=str(out / "cache"), WISEFT_DEVICE="cpu", HF_HUB_OFFLINE="1", PYTHONSAFEPATH="1")
        outcomes = {"wiseft demo": run(env / "bin" / "wiseft", "demo", "-o", out / "demo", stdout=subprocess.DEVNULL)}
        outcomes |= {test: run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", test) for test in TESTS}
        freeze = [python, "-m", "pip", "list", "--format=freeze"]
        found = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.split()
    versions = dict(line.lower().replace("_", "-").split("==") for line in found if "==" in line)
    rows = [("requirement", name, low, versions[name.lower().replace("_", "-")])
            for name, low in requirements().items()]
    rows += [("outcome", what, "", "passed" if passed else "failed") for what, passed in outcomes.items()]
    rows += [("machine", "python", "", platform.python_version()), ("machine", "system", "", platform.system()),
             ("machine", "date", "", datetime.date.today())]
    with open(ROOT / "tools" / "lowest.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows([("kind", "what", "lowest", "found"), *rows])
    sys.exit(not all(outcomes.values()))


if __name__ == "__main__":
    main()
