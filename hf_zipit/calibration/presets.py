"""The settings of papers, by name. A preset stands for the options that it sets; a recipe records those."""

from collections.abc import Mapping
from typing import Any

from hf_zipit.errors import OptionError
from hf_zipit.settings import shown

PRESETS: dict[str, dict[str, Any]] = {
    "zipit": {"method": "zip", "calibrate": "batchnorm"},
    "mudsc": {"method": "mudsc-zip", "balance": "auto", "calibrate": "batchnorm"},
    "git-rebasin": {"method": "git-rebasin", "calibrate": "repair"},
    "c2m3": {"method": "c2m3", "calibrate": "repair"},
    "pleas": {"method": "permute", "calibrate": "refit"},
}
PAPERS = {
    "zipit": "ZipIt! (Stoica et al., ICLR 2024)",
    "mudsc": "MuDSC (Xu et al., CVPR 2024)",
    "git-rebasin": "Git Re-Basin (Ainsworth et al., ICLR 2023) with REPAIR (Jordan et al., ICLR 2023)",
    "c2m3": "C2M3 (Crisostomi et al., NeurIPS 2024) with REPAIR",
    "pleas": "PLeaS (Nasery et al., CVPR 2025): align units one-to-one, then fit the layers; with flops_budget, layers "
    "that differ most get more units",
}


def described() -> str:
    """All presets with their papers and options for a help text, one paragraph each.

    >>> described().splitlines()[0]
    '- zipit: ZipIt! (Stoica et al., ICLR 2024): method zip, calibrate batchnorm.'
    """
    options = {name: ", ".join(f"{key} {value}" for key, value in values.items()) for name, values in PRESETS.items()}
    return "\n\n".join(f"- {name}: {PAPERS[name]}: {options[name]}." for name in PRESETS)


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of their preset, where these are not given.

    Raises:
        OptionError: no preset has this name, or another method is given beside it.

    >>> expanded({"preset": "pleas", "calibrate": "none"})
    {'method': 'permute', 'calibrate': 'none', 'preset': None}
    """
    name = values.get("preset")
    if name is None:
        return dict(values)
    if not isinstance(name, str) or name not in PRESETS:
        raise OptionError(f"unknown preset {shown(name)}; presets: {', '.join(PRESETS)}")
    own = PRESETS[name]["method"]
    if values.get("method", own) != own:
        raise OptionError(f"preset '{name}' is method {own}, and method is '{values['method']}': give only one of them")
    return {**PRESETS[name], **values, "preset": None}
