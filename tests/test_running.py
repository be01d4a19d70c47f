import pytest
import torch

from hf_zipit.errors import OptionError
from hf_zipit.running import device_of


@pytest.mark.parametrize(("error", "said"), [(AssertionError(), "AssertionError"), (RuntimeError("no\nwhy"), "no")])
def test_a_device_that_is_missing_is_named_with_the_first_line_of_the_error(error, said, monkeypatch):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr(torch, "empty", broken)
    with pytest.raises(OptionError, match=f"^cannot run on device 'meta': {said}$"):
        device_of("meta", "cpu")
