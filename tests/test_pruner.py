import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from helper.mask import Mask
from helper.masks.choosing import keep
from helper.masks.scores import Score
from helper.metrics.macs import count_macs
from helper.pruner import SCORES, prunable_weights, prune
from helper.system.seeds import stream
from network.main import NetworkConfig, build_network
from scripts.ordinary import prunable_modules


def resnet(seed: int = 0) -> nn.Module:
    config = NetworkConfig(net_name="resnet", depth=8, widen_factor=1)
    return build_network(config, (3, 32, 32), 10, stream(seed, "init"))


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_l1_selects_exactly_what_torch_prunes(ratio, ties, channels_last, generator):
    network = resnet()
    if ties:
        for weight in network.parameters():
            weight.data = (weight.data * 20).round() / 20
    theirs = copy.deepcopy(network)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    torch_prune.global_unstructured(prunable_modules(theirs), torch_prune.L1Unstructured, amount=ratio)
    mask = prune(network, generator, prune_ratio=ratio)
    for name, active in mask.items():
        module = theirs.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(active, module.weight_mask.bool()), name
    assert len(mask) == len(prunable_modules(theirs))


@pytest.mark.parametrize("method", ["l1", "random"])
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.9, 0.999])
def test_the_requested_share_is_removed_exactly(method, ratio, generator):
    mask = prune(resnet(), generator, prune_method=method, prune_ratio=ratio)
    assert mask.n_weights - mask.n_active == round(ratio * mask.n_weights)
    assert mask.sparsity == pytest.approx(ratio, abs=1 / mask.n_weights)


@pytest.mark.parametrize(("n", "ratio", "removed"), [(3, 0.5, 2), (3, 0.9, 3), (7, 0.9, 6), (11, 0.25, 3), (100, 0.29, 29)])
def test_the_number_of_removed_weights_is_rounded_and_not_cut(n, ratio, removed, generator):
    scores = torch.rand(n, generator=generator)  # 0.29 * 100 is 28.999... in floating point
    mask = keep({"a.weight": scores}, n - round(ratio * n))
    theirs = torch_prune.L1Unstructured(ratio).compute_mask(scores, torch.ones(n))
    assert n - mask.n_active == removed
    assert torch.equal(mask["a.weight"], theirs.bool())


def test_random_scores_ignore_the_weights_and_follow_the_generator():
    masks = [prune(resnet(s), stream(g, "prune"), prune_method="random", prune_ratio=0.5) for s, g in ((0, 0), (1, 0), (0, 1))]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    assert not all(torch.equal(masks[0][name], masks[2][name]) for name in masks[0])


def test_the_last_layer_is_pruned_only_on_request():
    assert "fc.weight" not in prunable_weights(resnet(), prune_last=False)
    assert "fc.weight" in prunable_weights(resnet(), prune_last=True)
    assert not any("bn" in name or "bias" in name for name in prunable_weights(resnet(), prune_last=True))


def test_pruning_leaves_the_weights_as_they_are(generator):
    network = resnet()
    before = copy.deepcopy(network.state_dict())
    prune(network, generator, prune_ratio=0.9)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_a_global_mask_can_empty_a_layer_and_names_it():
    scores = {"a.weight": [[1.0, 2.0]], "b.weight": [[3.0, 6.0]], "c.weight": [[4.0, 5.0]]}
    mask = keep({name: torch.tensor(values) for name, values in scores.items()}, 3)
    assert mask.empty_layers() == ["a.weight"]
    assert mask.sparsity_by_layer() == {"a.weight": 1.0, "b.weight": 0.5, "c.weight": 0.0}
    assert mask.sparsity == 0.5


def test_apply_zeroes_exactly_the_pruned_weights(generator):
    network = resnet()
    before = copy.deepcopy(network.state_dict())
    mask = prune(network, generator, prune_ratio=0.7)
    mask.apply_(network)
    for name, weight in network.named_parameters():
        keep = mask.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(weight, before[name] * keep)


def test_masks_of_another_architecture_are_refused():
    with pytest.raises(ValueError, match=r"'conv.weight' has shape \(2, 2\) but the weight has .*--widen_factor"):
        Mask({"conv.weight": torch.ones(2, 2)}).apply_(resnet())
    with pytest.raises(ValueError, match="no such weight"):
        Mask({"layers.0.weight": torch.ones(2, 2)}).apply_(resnet())


def test_macs_of_a_resnet_are_positions_times_weights():
    network = resnet()
    dense, active = count_macs(network, (3, 32, 32))
    by_hand = 0
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            side = 32 if "blocks.1" not in name and "blocks.2" not in name else 16 if "blocks.1" in name else 8
            by_hand += side * side * module.weight.numel()
    assert dense == active == by_hand + network.fc.weight.numel()


def test_active_macs_are_positions_times_active_weights_in_every_kind_of_layer():
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv2d(3, 6, 2, groups=3), nn.Flatten(2),
        nn.Linear(9, 5), nn.Flatten(), nn.Linear(30, 4),
    )  # fmt: skip
    uses = {"0.weight": 4 * 4, "1.weight": 3 * 3, "3.weight": 6, "5.weight": 1}  # of a weight in one forward pass of 8x8 images
    dense_by_hand = 16 * (3 * 2 * 3 * 3) + 9 * (6 * 2 * 2) + 6 * (9 * 5) + 30 * 4
    assert count_macs(network, (2, 8, 8)) == (dense_by_hand, dense_by_hand)
    masks = {name: torch.ones_like(network.get_parameter(name), dtype=torch.bool) for name in uses if name != "5.weight"}
    for n_pruned, mask in enumerate(masks.values(), 3):
        mask.view(-1)[:n_pruned] = False
    pruned = 3 * 16 + 4 * 9 + 5 * 6
    assert count_macs(network, (2, 8, 8), Mask(masks)) == (dense_by_hand, dense_by_hand - pruned)


WRONG_SCORES = {
    "a weight has none": (lambda weights: {}, "a score for each"),
    "another shape": (lambda weights: {name: weight.flatten() for name, weight in weights.items()}, "a score for each"),
    "one too many": (lambda weights: weights | {"x": torch.ones(2)}, "and for nothing else"),
    "NaN": (lambda weights: {name: weight / 0 * 0 for name, weight in weights.items()}, "scores of conv.weight that are NaN"),
    "infinite": (lambda weights: {name: weight / 0 for name, weight in weights.items()}, "scores of conv.weight .* infinite"),
}


@pytest.mark.parametrize("case", WRONG_SCORES)
def test_scores_that_are_no_number_for_each_weight_are_refused(case, monkeypatch, generator):
    scores, words = WRONG_SCORES[case]
    monkeypatch.setitem(SCORES, "added", Score(lambda context: scores(context.weights)))
    with pytest.raises(ValueError, match=f"--prune_method added .*{words}"):
        prune(resnet(), generator, prune_ratio=0.5, prune_method="added")


def test_a_score_of_data_without_data_is_refused(monkeypatch, generator):
    monkeypatch.setitem(SCORES, "added", Score(lambda context: context.weights, data=True))
    with pytest.raises(ValueError, match="--prune_method added scores weights on training data, and there is none"):
        prune(resnet(), generator, prune_ratio=0.5, prune_method="added")
