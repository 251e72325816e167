"Warnings while a model is built."
import warnings

import pytest

from wiseft.models.build import quiet


def test_one_warning_alone_is_silenced():
    with pytest.warns(UserWarning) as record, quiet():
        warnings.warn("QuickGELU mismatch between config and tag")
        warnings.warn("something else")
    assert [str(w.message) for w in record] == ["something else"]
