"""Every spec file against the models it names, and the spec checks against spoiled specs."""

import pytest
import timm

from hf_zipit import spec as specs
from hf_zipit.binding import bind
from hf_zipit.checks import check_spec
from hf_zipit.errors import SpecError
from tests.models import TINY, resnet_spec_binding, tiny

SPECS = {s.family: s for s in specs.list_specs()}
RESNET = SPECS["timm-resnet"]


@pytest.mark.parametrize(("family", "name"), [(s.family, name) for s in SPECS.values() for name in s.check])
def test_number_of_spaces(family, name):
    """Two spaces tied together, or one left out, still preserve the function: the number is reviewed by hand."""
    assert len(bind(SPECS[family], timm.create_model(name)).spaces) == SPECS[family].check[name]


@pytest.mark.parametrize("name", TINY)
def test_spec_describes_tiny_models(name):
    model = tiny(name)
    report = check_spec(model, resnet_spec_binding(model), (3, 32, 32))
    assert report.difference < 1e-9
    assert report.cuts == len(resnet_spec_binding(model).cuts) > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", RESNET.check)
def test_spec_describes_full_models(name):
    model = timm.create_model(name)
    check_spec(model, bind(RESNET, model), (3, 64, 64))


@pytest.mark.parametrize("family", SPECS)
def test_every_line_is_used_by_a_model(family):
    spec = SPECS[family]
    unmatched = [set(bind(spec, timm.create_model(name)).unmatched) for name in spec.check]
    assert set.intersection(*unmatched) == set()


def lines_outside_check() -> list[int]:
    lines = RESNET.text.splitlines()
    return list(range(lines.index("check:")))


@pytest.mark.parametrize("number", lines_outside_check())
def test_dropping_any_line_is_noticed(number):
    lines = RESNET.text.splitlines()
    spoiled = "\n".join(lines[:number] + lines[number + 1 :])
    for name in ("resnet18", "resnet50", "resnet50d", "seresnet50"):
        model = tiny(name)
        try:
            spec = specs.parse(spoiled)
            binding = bind(spec, model)
            check_spec(model, binding, (3, 32, 32))
            whole = resnet_spec_binding(model)
            if (len(binding.spaces), binding.cuts) != (len(whole.spaces), whole.cuts):
                raise SpecError("other spaces or cuts")
        except SpecError:
            return
    pytest.fail(f"nobody misses line {number + 1}: {lines[number]}")


def test_models_outside_the_family_are_refused():
    with pytest.raises(SpecError, match=r"does not cover .*se\.conv\.weight"):
        bind(RESNET, timm.create_model("ecaresnet50t", pretrained=False))
