"Warnings while a model is built."
import warnings

import pytest

from wiseft.models.build import fill_model, quiet
from wiseft.models.testing import pico_clip


def test_one_warning_alone_is_silenced():
    with pytest.warns(UserWarning) as record, quiet():
        warnings.warn("QuickGELU mismatch between config and tag")
        warnings.warn("something else")
    assert [str(w.message) for w in record] == ["something else"]


def test_interpolated_positions_are_said():
    model = pico_clip(transformer=True).model
    shorter = model.state_dict() | dict(positional_embedding=model.positional_embedding[:8].detach())
    with pytest.warns(UserWarning, match="another size than tiny takes: 'positional_embedding'"):
        fill_model(model, shorter, "w.pt", "tiny")
