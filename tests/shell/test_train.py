"Commands that make classifiers."
from conftest import python


def test_train_names_a_method_whose_page_nobody_has_imported():
    code = "from wiseft.shell.train import _methods_from_options as f; print(f(None, None, None, 'lora:4', None))"
    assert "LoRA (train)" in python("-c", code).stdout
