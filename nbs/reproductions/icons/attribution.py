#!/usr/bin/env python
"""Write wiseft/data/ATTRIBUTION.md: the icon sets of the suites, and those that iconclip was pretrained on.

    python attribution.py                     # from sets.csv
    python attribution.py --package FOLDER    # first compare sets.csv with the unpacked npm package @iconify/json

sets.csv has a row for each set: what @iconify/json states, and corrections from the set's own license file or package.
`read_in` names the file that we read, and is empty where we rely on @iconify/json; `note` says what we corrected.
"""
import argparse, csv, io, json, zipfile
from pathlib import Path
from wiseft.base.files import atomic_path, package_data

HERE = Path(__file__).resolve().parent
ROWS = {r['set']: r for r in csv.DictReader((HERE/'sets.csv').open(encoding='utf-8'))}
ABOUT = """# Attribution of the icons

The suite `icons` and the control set `other-icons` show icons of {suite} sets; the embedded model `iconclip` was \
pretrained on icons of {pretraining} others. All come from the npm package @iconify/json 2.2.535. We rendered them at \
48×48 pixels and recolored copies of some.

The weights of `iconclip` are licensed under Apache 2.0, like the code. Each icon stays under the license of its set. \
`LICENSES/` has the full texts, named by SPDX identifier; in an \
installed package it lies in the `licenses` folder of the metadata. `LicenseRef-` marks a license that SPDX does not \
list.

For {read} of the {all} sets we read the set's own license file, README, or package; the others have the license that \
@iconify/json states. The archives have a file like this one, written from @iconify/json alone: where they differ, \
this one is right.

One license is open. The license file of Sargam Icons does not give the right to distribute, and 97 of the 177 \
drawings that the suite uses exist only under it; the model was not pretrained on them. Before the first release: ask \
the author for a permission or for the plain MIT license. Without it, rebuild the suite without these 97 drawings, \
and measure every number anew that rests on it.
"""


def suite_sets():
    "Sets whose icons are in icons.zip or other-icons.zip"
    found = set()
    for name in ('icons', 'other-icons'):
        with zipfile.ZipFile(package_data(f'{name}.zip')) as archive:
            table = io.StringIO(archive.read(f'{name}/{name}.csv').decode())
        found |= {r['set'] for r in csv.DictReader(table)}
    return found


def pretraining_sets():
    "Sets of the families that iconclip was pretrained on"
    families = json.loads((HERE/'families.json').read_text(encoding='utf-8'))['families']
    card = json.loads((package_data('iconclip')/'iconclip.json').read_text(encoding='utf-8'))
    return {s for f in card['families'] for s in families[f]['sets']}


def section(title, sets):
    "A table of some sets, as Markdown"
    yield f'\n## {title}\n\n| set | author | license | address | copyright and notes |\n|---|---|---|---|---|\n'
    for s in sorted(sets):
        r = ROWS[s]
        notes = ' '.join(filter(None, [r['copyright'] and r['copyright'] + '.', r['note']]))
        yield f"| {r['name']} (`{s}`) | {r['author']} | {r['license']} | {r['address']} | {notes} |\n"


def attribution():
    "The whole file"
    suite, pretraining = suite_sets(), pretraining_sets()
    read = sum(bool(r['read_in']) for r in ROWS.values())
    about = ABOUT.format(suite=len(suite), pretraining=len(pretraining), read=read, all=len(ROWS))
    tables = [*section('Suite and control set', suite), *section('Pretraining of iconclip', pretraining)]
    return about + ''.join(tables)


def differences(package):
    "Where sets.csv and the package differ without a note that says why"
    info = json.loads((package/'collections.json').read_text(encoding='utf-8'))
    for s, r in ROWS.items():
        stated = dict(name=info[s]['name'], author=info[s]['author']['name'], license=info[s]['license']['spdx'],
                      address=info[s]['author'].get('url'))
        if not r['note']: yield from (f'{s}: {k} is {r[k]}, not {v}' for k, v in stated.items() if r[k] != v)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--package', type=Path, help='folder of the unpacked npm package')
    args = p.parse_args()
    if args.package and (wrong := [*differences(args.package)]): raise SystemExit('\n'.join(wrong))
    path = package_data('icons.zip').with_name('ATTRIBUTION.md')
    with atomic_path(path, force=True) as tmp: tmp.write_text(attribution(), encoding='utf-8')


if __name__ == '__main__': main()
