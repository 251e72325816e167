"""What each image was answered in each run: one archive per folder in git, .npz files where they are used.

  answers.py                  unpack what is missing
  answers.py --pack FOLDER    pack a folder that has new files
"""
import argparse
import io
import os
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

HERE = Path(__file__).resolve().parent
ARCHIVE = 'answers.tar.xz'
AS_RUN = {'ProLIP': 'ProLIP, no constraint', 'R-Adapter': 'R-Adapter, no EMA'} # what tables of the campaign call them


def unpacked(folder=HERE):
    "The folder, after unpacking the archives in it and below, each beside itself."
    folder = Path(folder)
    for archive in [Path(place)/ARCHIVE for place, _, names in os.walk(folder) if ARCHIVE in names]:
        with tarfile.open(archive) as tar, TemporaryDirectory(dir=archive.parent, prefix='.') as tmp:
            for entry in tar:
                target = archive.parent/entry.name
                if target.exists(): continue
                tar.extract(entry, tmp, filter='data')
                target.parent.mkdir(exist_ok=True)
                os.replace(Path(tmp)/entry.name, target) # whole, also where another process unpacks
    return folder


def pack(folder):
    "Write the archive of a folder. Its files are packed without their own compression: most of them are alike."
    folder = Path(folder)
    with tarfile.open(folder/ARCHIVE, 'w:xz', preset=9) as tar:
        for file in sorted(folder.rglob('*.npz')):
            if file.parent.name == 'answers' and not file.name.startswith('plain,'): continue # of one question, large
            content = io.BytesIO()
            with np.load(file) as arrays: np.savez(content, **arrays)
            entry = tarfile.TarInfo(str(file.relative_to(folder)))
            entry.size = len(content.getvalue())
            tar.addfile(entry, io.BytesIO(content.getvalue()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pack', nargs='*', type=Path, metavar='FOLDER', default=[])
    folders = parser.parse_args().pack
    for folder in folders: pack(folder)
    if not folders: unpacked()


if __name__ == '__main__': sys.exit(main())
