"Two kills of each writer; `make crash` does hundreds."
import os
import random
import sys
import time

import pytest
from crash import WRITERS, every_call, kill_before, once, random_moments

from wiseft.files import atomic_path

CALL = 3  # every writer has so many


@pytest.mark.parametrize("writer", WRITERS)
def test_killed_before_a_call(writer):
    died, _ = once(WRITERS[writer], kill_before, CALL)
    assert died


@pytest.mark.parametrize("writer", WRITERS)
def test_killed_at_a_random_moment(writer):
    assert len(list(random_moments(WRITERS[writer], 1, random.Random(0)))) <= 1


def test_killed_between_two_renames():
    "A folder steps aside before the new one takes its place: wherever the kill comes, one of the two is found."
    assert set(every_call(WRITERS["folder"])) == {False, True}


def write_slowly(target, content, folder):
    "Write a new name, with a rest before it is given; ends the process with 3 if the name was taken."
    sys.addaudithook(lambda event, args: event in ("os.rename", "os.link") and time.sleep(0.1))
    try:
        with atomic_path(target) as tmp:
            if folder:
                tmp.mkdir()
            (tmp / "content" if folder else tmp).write_text(content)
    except FileExistsError:
        os._exit(3)


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_two_writers_of_one_new_name(tmp_path, folder):
    "One wins, the other is told, and what is there is the winner's."
    for i in range(5):
        target, writers = tmp_path / str(i), {}
        for content in "ab":
            if not (child := os.fork()):
                write_slowly(target, content, folder)
                os._exit(0)
            writers[child] = content
        ended = {writers[child]: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in writers}
        assert sorted(ended.values()) == [0, 3]
        found = (target / "content" if folder else target).read_text()
        assert ended[found] == 0
    assert len(list(tmp_path.iterdir())) == 5
