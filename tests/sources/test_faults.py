"""Errors of libraries become one line, whatever they say."""

import pytest
import timm
import torch
import transformers

from hf_zipit.errors import SourceError
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.sources.checkpoint import read_weights
from hf_zipit.sources.load import load_source
from hf_zipit.sources.merges import open_merged
from hf_zipit.text import load_errors
from tests.helpers.models import hf_vit


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def test_only_the_named_errors_are_turned_into_one_line():
    with pytest.raises(SourceError, match=r"^model: first$"), load_errors("model", ValueError):
        raise ValueError("first\nsecond")
    with pytest.raises(SourceError, match=r"^as it is$"), load_errors("model", Exception):
        raise SourceError("as it is")
    with pytest.raises(KeyError), load_errors("model", ValueError):
        raise KeyError("key")


def test_an_error_without_a_message_is_named_by_its_type(digits, tmp_path, monkeypatch):
    hf_vit().save_pretrained(tmp_path / "vit")
    monkeypatch.setattr(transformers.AutoModelForImageClassification, "from_pretrained", raising(RuntimeError("")))
    with pytest.raises(SourceError, match=r"vit: transformers cannot load it: RuntimeError$"):
        load_source(tmp_path / "vit")
    monkeypatch.setattr(ZipItForImageClassification, "from_pretrained", raising(KeyError()))
    with pytest.raises(SourceError, match=r"cannot load the merged model .*: KeyError$"):
        open_merged(digits[0], ZipItForImageClassification)
    monkeypatch.setattr(timm, "create_model", raising(ValueError("\n")))
    with pytest.raises(SourceError, match=r"timm cannot build cifar_resnet20: ValueError$"):
        load_source(digits[0])
    monkeypatch.setattr(torch, "load", raising(EOFError()))
    with pytest.raises(SourceError, match=r"cannot be read as weights alone: EOFError$"):
        read_weights([tmp_path / "pytorch_model.bin"])
