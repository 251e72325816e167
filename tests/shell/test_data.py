"What `wiseft data` says of published sets."
import pytest
from tests.shell.test_cli import wiseft


@pytest.mark.parametrize("name, others", [("imagenet-a", ["imagenet-r", "cifar10"]), ("cifar10", ["imagenet"])])
def test_a_published_set_that_is_not_there(tmp_path, name, others):
    out = wiseft("data", name, "--data-root", tmp_path).stdout
    assert name in out and "not there" in out and not [o for o in others if f" {o} " in out]
