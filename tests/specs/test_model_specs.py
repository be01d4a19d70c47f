"""Every spec file against the models it names, and the spec checks against spoiled specs."""

import functools

import pytest
import timm
import torch
from torch import nn

from hf_zipit.checks import check_spec
from hf_zipit.errors import SpecError
from hf_zipit.find_spec import review
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.specs.spaces import Binding
from tests.helpers.families import FAMILIES, described
from tests.helpers.marks import slow

SPECS = {s.family: s for s in specs.list_specs()}
TINY = [(family, name) for family, models in FAMILIES.items() for name in models]


@functools.cache
def bound(family: str, name: str) -> tuple[nn.Module, Binding]:
    """A tiny model, and its spec bound to it; neither is ever changed."""
    model = FAMILIES[family][name]()
    return model, bind(SPECS[family], model)


@functools.cache
def bound_in_full(family: str, name: str) -> Binding:
    """The spec bound to a full-size model without weights."""
    return bind(SPECS[family], described(name))


def classes(model: nn.Module) -> list[str]:
    return [f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__]


def test_every_family_has_tiny_models():
    assert set(FAMILIES) == set(SPECS)


@pytest.mark.parametrize(("family", "name"), [(s.family, name) for s in SPECS.values() for name in s.check])
@pytest.mark.sample(14)
def test_number_of_spaces(family, name):
    """Two spaces tied together, or one left out, still preserve the function: the number is reviewed by hand."""
    assert len(bound_in_full(family, name).spaces) == SPECS[family].check[name]


@pytest.mark.parametrize(("family", "name"), TINY)
@pytest.mark.sample(12)
def test_spec_describes_tiny_models(family, name):
    model, binding = bound(family, name)
    assert [f for f, spec in SPECS.items() if specs.matches(spec, classes(model))] == [family]
    found = review(model, binding, (3, 32, 32))
    assert found.unseen == ()
    assert found.not_traced == ""
    report = found.report
    assert report.difference < 1e-9
    assert report.cuts == len(binding.cuts) > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS["timm-resnet"].check)
def test_spec_describes_full_models(name):
    model = timm.create_model(name)
    check_spec(model, bind(SPECS["timm-resnet"], model), (3, 64, 64))


@pytest.mark.parametrize("family", SPECS)
def test_every_line_is_used_by_a_model(family):
    spec = SPECS[family]
    bindings = [bound_in_full(family, name) for name in spec.check]
    bindings += [bound(family, name)[1] for name in FAMILIES[family]]
    assert set.intersection(*(set(binding.unmatched) for binding in bindings)) == set()


def lines_outside_check() -> list[object]:
    """Every line of every spec; slow but for one convolutional family and one of transformers."""
    found: list[object] = []
    for family, spec in SPECS.items():
        lines = spec.text.splitlines()
        case = pytest.param if family in ("timm-resnet", "hf-vit") else slow
        found += [case(family, i) for i in range(lines.index("check:")) if lines[i].strip()]
    return found


@pytest.mark.parametrize(("family", "number"), lines_outside_check())
def test_dropping_any_line_is_noticed(family, number):
    whole = SPECS[family]
    lines = whole.text.splitlines()
    spoiled = "\n".join(lines[:number] + lines[number + 1 :])
    for name in FAMILIES[family]:
        model, expected = bound(family, name)
        try:
            spec = specs.parse(spoiled)
            if not specs.matches(spec, classes(model)):
                raise SpecError("not for this class")
            binding = bind(spec, model)
            if (binding.spaces, binding.owns) != (expected.spaces, expected.owns):
                raise SpecError("other spaces, probes or steps")
            check_spec(model, binding, (3, 32, 32))
        except SpecError:
            return
    pytest.fail(f"nobody misses line {number + 1} of {whole.file}: {lines[number]}")


def test_models_outside_the_family_are_refused():
    with torch.device("meta"):
        model = timm.create_model("ecaresnet50t", pretrained=False)
    with pytest.raises(SpecError, match=r"does not cover .*se\.conv\.weight"):
        bind(SPECS["timm-resnet"], model)
