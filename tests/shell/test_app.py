"What all commands share."
from wiseft.base import progress
from wiseft.shell.app import chosen_device


def test_a_command_says_once_where_it_computes(monkeypatch, capsys):
    "The library, in a terminal, says it again to nobody who has read it."
    monkeypatch.setattr(progress, "is_watched", lambda: True)
    monkeypatch.setattr(progress, "SAID", set())
    device, _ = chosen_device("cpu")
    progress.say_place(device)
    assert not capsys.readouterr().err
    progress.say_place(device, "bf16")
    assert "bfloat16" in capsys.readouterr().err
