"Packaging of wiseft: every name and requirement stands in settings.ini."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=["="])
cfg.read(here / "settings.ini", encoding="utf-8")
s = cfg["DEFAULT"]

# of the code and the weights of iconclip, and of the icons in wiseft/data (ATTRIBUTION.md)
LICENSES = "Apache-2.0 AND BSD-3-Clause AND CC-BY-4.0 AND ISC AND LicenseRef-Sargam AND MIT AND OFL-1.1 AND Unlicense"


def absolute_links(readme):
    "README.md links to files of the repository; a page elsewhere needs their addresses."
    link = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)")
    kind = {"!": "raw", "": "blob"}
    return link.sub(lambda m: f"{m[1]}{m[2]}({s['git_url']}/{kind[m[1]]}/{s['branch']}/{m[3]}", readme)


setup(
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    long_description=absolute_links((here / "README.md").read_text(encoding="utf-8")),
    long_description_content_type=s["long_description_content_type"],
    author=s["author"],
    author_email=s["author_email"],
    url=s["git_url"],
    project_urls={"Documentation": s["doc_host"] + s["doc_baseurl"], "Source": s["git_url"]},
    license_expression=LICENSES,
    license_files=["LICENSE", "NOTICE", "LICENSES/*"],
    keywords=s["keywords"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: " + s["audience"],
        "Natural Language :: " + s["language"],
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *[f"Programming Language :: Python :: {version}" for version in s["pythons"].split()],
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    package_dir={"": "."},  # an editable installation is then a path, not a hook that a folder named wiseft hides
    packages=find_packages(include=["wiseft", "wiseft.*"]),
    package_data={"wiseft": ["py.typed", "data/**"]},
    exclude_package_data={"wiseft": ["data/__pycache__/*"]},
    python_requires=">=" + s["min_python"],
    install_requires=s["requirements"].split(),
    extras_require={"dev": s["dev_requirements"].split(), "export": s["export_requirements"].split()},
    entry_points={
        "console_scripts": s["console_scripts"].split(),
        "nbdev": [f"{s['lib_name']}={s['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
