import pytest
import torch

import hf_zipit
from hf_zipit.find_spec import find_spec
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from hf_zipit.transform.permute import permuted, random_labels
from tests.helpers.models import cifar_vgg, images


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_a_merge_with_a_permuted_copy_saves_and_gives_the_model_back(norm, tmp_path):
    model = cifar_vgg(norm=norm)
    binding = find_spec(load_source(model))
    copy = permuted(model, binding, random_labels(binding, seed=1))
    merged = hf_zipit.merge([model, copy], images(256), tasks=["a", "b"], method="permute", calibrate="none")
    saving.save(merged, tmp_path / "merged")
    reloaded = load_merged(tmp_path / "merged")
    pixels = images(8)[0]
    with torch.no_grad():
        expected = model(pixels)
        for logits in reloaded(pixels).task_logits.values():
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "merged" / "cifar_vgg.py").exists()
