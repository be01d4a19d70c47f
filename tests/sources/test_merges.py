"""A merge of merges: heads are carried over, the trunk counts once, provenance is nested."""

import json

import pytest
import torch

import hf_zipit
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged, load_parents
from hf_zipit.sources.load import load_source
from tests.helpers.marks import slow
from tests.helpers.models import hf_vit, images, shuffled, timm_vit, tiny

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
CNN = {"depth": 8}


def cnn(seed, classes):
    return tiny("cifar_resnet20", seed, num_classes=classes)


def with_head(model, seed, classes):
    """The same trunk with another classifier."""
    other = cnn(seed, classes)
    other.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}, strict=False)
    return other


def logits(model):
    with torch.no_grad():
        return model(PIXELS)


@pytest.fixture(scope="module")
def family():
    """Three models that are one trunk with units in three orders, and three classifiers."""
    first = cnn(0, 5)
    return [first, shuffled(with_head(first, 1, 3), 1), shuffled(with_head(first, 2, 4), 2)]


@pytest.mark.parametrize(
    ("cut", "again"), [(None, None), (None, "layer1"), ("layer2", "layer2"), ("layer2.0", "layer2.0")]
)
@pytest.mark.parametrize("order", [(0, 1), slow((1, 0))])
@pytest.mark.sample(2)
def test_permuted_copies_come_back_through_two_merges(family, cut, again, order, tmp_path):
    """Exact when every merge matches one-to-one: what any task sees is what its own model sees."""
    options = {"method": "permute", "calibrate": "none"}
    pair = hf_zipit.merge(family[:2], images(), cut=cut, tasks=["a", "b"], **options)
    folder = saving.save(pair, tmp_path / "pair")
    sources = [[folder, family[2]][i] for i in order]
    merged = hf_zipit.merge(sources, images(), cut=again, **options)
    assert sorted(merged.config.tasks) == ["a", "b", "cifar_resnet20"]
    assert [h["source"] for h in merged.config.heads] == ([0, 0, 1] if order == (0, 1) else [0, 1, 1])
    for task, parent in zip(("a", "b", "cifar_resnet20"), family, strict=True):
        torch.testing.assert_close(logits(merged).task_logits[task], logits(parent), rtol=0, atol=1e-4)
    reloaded = load_merged(saving.save(merged, tmp_path / "all"))
    assert all(torch.equal(v, logits(merged).task_logits[k]) for k, v in logits(reloaded).task_logits.items())


@pytest.mark.slow
def test_a_merge_with_layers_for_each_task_is_refit(family):
    """Nothing changes for permuted copies; else every task comes closer to what its own model says."""
    options = {"cut": "layer2", "tasks": ["a", "b", "c"]}
    pair = hf_zipit.merge(family[:2], images(32), method="permute", calibrate="refit", cut="layer2", tasks=["a", "b"])
    same = hf_zipit.merge([pair, family[2]], images(32), method="permute", calibrate="refit", **options)
    for task, parent in zip("abc", family, strict=True):
        torch.testing.assert_close(logits(same).task_logits[task], logits(parent), rtol=0, atol=1e-3)
    sources = [cnn(7, 4), pair]
    plain = hf_zipit.merge(sources, images(32), calibrate="batchnorm", **options)
    fitted = hf_zipit.merge(sources, images(32), calibrate="refit-joint", **options)
    pixels = torch.cat(images(32))
    with torch.no_grad():
        wanted = [sources[0](pixels), *pair(pixels).task_logits.values()]
        for task, logit in zip("abc", wanted, strict=True):
            errors = [(m(pixels).task_logits[task] - logit).square().mean() for m in (plain, fitted)]
            assert errors[1] < errors[0]


def test_a_full_merge_cut_earlier_keeps_its_own_layers_shared_by_its_tasks(family):
    pair = hf_zipit.merge(family[:2], images(), tasks=["a", "b"])
    merged = hf_zipit.merge([pair, family[2]], images(), cut="layer1", tasks=["x", "y", "z"])
    assert len(merged.heads) == 2
    assert merged.config.branches == [[0, 1], [2]]
    with torch.no_grad():
        one, both = merged(PIXELS, tasks="y"), merged(PIXELS)
    assert torch.equal(one.logits, both.task_logits["y"])
    assert one.logits.shape == (3, 3)


@pytest.mark.parametrize("cut", [None, "blocks.0"])
@pytest.mark.sample(1)
def test_token_models_are_merged_again(cut, tmp_path):
    """Their heads hold more than classifiers, so even a full merge keeps one branch for each task."""
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 4, "depth": 3}
    models = [load_source(timm_vit(seed), args) for seed in range(3)]
    options = {"method": "permute", "calibrate": "none", "cut": cut}
    pair = hf_zipit.merge(models[:2], images(16), tasks=["a", "b"], **options)
    folder = saving.save(pair, tmp_path / "pair")
    merged = hf_zipit.merge([folder, folder], images(16), tasks=["a", "b", "c", "d"], **options)
    for new, old in (("a", "a"), ("b", "b"), ("c", "a"), ("d", "b")):
        torch.testing.assert_close(logits(merged).task_logits[new], logits(pair).task_logits[old], rtol=0, atol=1e-4)


def test_transformers_models_are_merged_again(tmp_path):
    from transformers import ViTImageProcessor

    places = []
    for seed in range(2):
        hf_vit(seed).save_pretrained(tmp_path / str(seed))
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / str(seed))
        places.append(tmp_path / str(seed))
    pair = hf_zipit.merge(places, images(16), method="average", calibrate="none", tasks=["a", "b"])
    folder = saving.save(pair, tmp_path / "pair")
    merged = hf_zipit.merge([folder, folder], images(16), method="permute", calibrate="none")
    assert merged.config.tasks == ["a-1", "b-1", "a-2", "b-2"]
    for task in merged.config.tasks:
        expected = logits(pair).task_logits[task[0]]
        torch.testing.assert_close(logits(merged).task_logits[task], expected, rtol=0, atol=1e-4)
    assert (saving.save(merged, tmp_path / "all") / "preprocessor_config.json").exists()


def test_provenance_is_nested_and_parents_are_found(digits, digits_data, tmp_path):
    first = hf_zipit.merge(digits, digits_data, num_images=32, method="average", calibrate="none")
    one = saving.save(first, tmp_path / "one")
    second = hf_zipit.merge([one, digits[0]], digits_data, num_images=32, method="average", calibrate="none")
    folder = saving.save(second, tmp_path / "two")
    sources = json.loads((folder / "config.json").read_text())["zipit"]["sources"]
    assert [source["folder"] for source in sources] == ["one", "digits-0-4"]
    assert [s["folder"] for s in sources[0]["merge"]["sources"]] == ["digits-0-4", "digits-5-9"]
    assert sources[0]["merge"]["recipe"]["method"] == "average"
    assert second.config.tasks == ["digits-0-4-1", "digits-5-9", "digits-0-4-2"]
    assert str(tmp_path) not in "".join(
        p.read_text() for p in folder.iterdir() if p.suffix not in (".safetensors", ".png")
    )
    parents = load_parents(second.config, folder)
    assert [parent.name for parent in parents] == ["one", "digits-0-4"]
    rows = hf_zipit.evaluate(second, digits_data, parents=parents, num_images=64)
    assert [row.model for row in rows[1:]] == [*(f"parent:{task}" for task in second.config.tasks), "ensemble"]
    assert rows[1].tasks != rows[3].tasks
    assert rows[-1].flops == rows[1].flops + rows[3].flops
    direct = hf_zipit.evaluate(first, digits_data, num_images=64)[0].tasks
    assert [rows[1].average, rows[2].average] == list(direct.values())
    assert load_merged(folder).config.zipit["sources"] == sources


def test_what_cannot_be_merged_again_says_what_can(family, tmp_path):
    folder = saving.save(hf_zipit.merge(family[:2], images(), cut="layer2", tasks=["a", "b"]), tmp_path / "pair")
    for cut in (None, "layer1", "layer3"):
        with pytest.raises(
            OptionError, match=r"pair is a merge up to layer2\.0; .* merged again with the same cut \(layer2\)"
        ):
            hf_zipit.merge([folder, family[2]], images(), cut=cut)
    with pytest.raises(OptionError, match=r"calibrate is 'repair': .* use batchnorm, refit or none"):
        hf_zipit.merge([folder, family[2]], images(), cut="layer2", calibrate="repair")
    with pytest.raises(OptionError, match="3 different names are needed, one for each task"):
        hf_zipit.merge([folder, family[2]], images(), cut="layer2", tasks=["a", "b"])
    state = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(state[:-100])
    with pytest.raises(SourceError, match="is damaged"):
        load_source(folder)
    (folder / "model.safetensors").write_bytes(state)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "heads": config["heads"][:1]}))
    with pytest.raises(SourceError, match=r"does not hold a complete merged model: heads\.1"):
        load_source(folder)
