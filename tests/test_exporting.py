"""`experiment.py export`: what is read back gives the same logits, by torch's CSR and ONNX's evaluator too."""

import hashlib
import json

import numpy
import onnx
import pytest
import safetensors.torch
import torch
from onnx.reference import ReferenceEvaluator
from safetensors import safe_open

import experiment
from helper.mask import Mask
from helper.schema.config import unflatten
from helper.untrusted.reasons import Unfit
from optim.checkpoint import save_state
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import load_run, load_stored
from scripts.made_up_runs import write_run
from study.reporting import exporting
from study.weights_files import read_weights, write_csr, write_dense
from tests.edited import vouch
from tests.outcome import outcome

QUICK = ("--figures", 0, "--n_epochs", 1, "--lr_milestones", 1, "--limit_train", 100, "--save_fisher", 0, "--save_snr", 0)


def exported(*words):
    return outcome(experiment.main, "export", *words)


@pytest.fixture
def sparse(train):
    return train(*QUICK, "--mode", "sparse-scratch", "--hidden_dims", "12-8")


@pytest.fixture
def images(files, train):
    """A run of a network with convolutions and BatchNorm, of made-up images."""
    return train(
        *QUICK, "--mode", "at-init", "-pm", "random", "--loader_name", "cifar10", "--root", files, "--verify_data", 0,
        "--net_name", "resnet", "--depth", 8, "--batch_size", 8, "--limit_train", 10, "--limit_test", 10,
    )  # fmt: skip


def logits(run, weights) -> torch.Tensor:
    network, _, config = load_run(run)
    network.load_state_dict(weights)
    shape = (64,) if config.data.loader_name == "digits" else (3, 32, 32)
    with torch.no_grad():
        return network(torch.randn(5, *shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", ["sparse", "images"])
@pytest.mark.parametrize("how", ["dense", "csr"])
def test_what_is_read_back_gives_the_same_logits(kind, how, request, tmp_path):
    run = request.getfixturevalue(kind)
    found = exported(run, tmp_path / "out", "--weights", how, "--onnx", 0)
    assert (found.code, found.err, found.folder) == (0, "", tmp_path / "out")
    stored = load_stored(run / "model.pt")
    weights = read_weights(tmp_path / "out/model.safetensors")
    assert weights.keys() == stored.weights.keys()
    for name, tensor in weights.items():
        assert (tensor.dtype, tensor.shape) == (stored.weights[name].dtype, stored.weights[name].shape)
        assert torch.equal(tensor, stored.weights[name])
    assert torch.equal(logits(run, weights), logits(run, stored.weights))
    mask = safetensors.torch.load_file(tmp_path / "out/mask.safetensors")
    assert mask.keys() == set(stored.mask)
    assert all(torch.equal(mask[name], stored.mask[name]) for name in mask)


def test_csr_holds_the_active_weights_alone_as_torch_reads_them(images, tmp_path):
    assert exported(images, tmp_path / "out", "--weights", "csr", "--onnx", 0).code == 0
    stored = load_stored(images / "model.pt")
    arrays = safetensors.torch.load_file(tmp_path / "out/model.safetensors")
    assert any(active.ndim == 4 for active in stored.mask.values())
    for name, active in stored.mask.items():
        assert name not in arrays
        crow, col, values = (arrays[f"{name}.{part}"] for part in ("crow_indices", "col_indices", "values"))
        assert len(values) == len(col) == int(crow[-1]) == int(active.sum())
        shape = (len(active), active[0].numel())
        matrix = torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=True)
        assert torch.equal(matrix.to_dense(), stored.weights[name].reshape(shape))
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["csr_shapes"]) == {name: list(mask.shape) for name, mask in stored.mask.items()}


def test_csr_of_layers_with_nothing_everything_and_one_row(tmp_path):
    generator = torch.Generator().manual_seed(1)
    mask = Mask({
        "empty": torch.zeros(3, 4, dtype=torch.bool), "full": torch.ones(2, 3, 1, 1, dtype=torch.bool),
        "vector": torch.tensor([True, False, True]), "some": torch.rand(5, 2, 3, 3, generator=generator) < 0.2,
    })  # fmt: skip
    weights = {
        name: torch.randn(active.shape, generator=generator, dtype=torch.float64) * active for name, active in mask.items()
    }
    weights["full"][0] = 0.0  # an active weight may be zero
    weights["bias"] = torch.randn(3, generator=generator)
    write_csr(tmp_path / "w.safetensors", weights, mask, {})
    found = read_weights(tmp_path / "w.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    weights["some"][~mask["some"]] = 1e-9
    with pytest.raises(Unfit, match="some is not zero"):
        write_csr(tmp_path / "w.safetensors", weights, mask, {})


@pytest.mark.parametrize("kind", ["sparse", "images"])
def test_onnx_gives_the_same_logits_for_any_number_of_examples(kind, request, tmp_path):
    run = request.getfixturevalue(kind)
    found = exported(run, tmp_path / "out")
    assert (found.code, found.err) == (0, "")
    assert not (tmp_path / "out/.lock").exists()
    model = onnx.load(tmp_path / "out/model.onnx")
    onnx.checker.check_model(model)
    network, _, _ = load_run(run)
    shape = (64,) if kind == "sparse" else (3, 32, 32)
    for n in (1, 3):
        inputs = torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            expected = network(inputs).numpy()
        (outputs,) = ReferenceEvaluator(model).run(None, {"inputs": inputs.numpy()})
        numpy.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_without_onnx_a_line_says_so_and_the_rest_is_there(sparse, tmp_path, monkeypatch):
    assert exported(sparse, tmp_path / "out").code == 0
    assert (tmp_path / "out/model.onnx").exists()
    monkeypatch.setattr(exporting, "ONNX_PACKAGES", ("no_such_package",))
    found = exported(sparse, tmp_path / "out")
    assert found.code == 0
    assert found.err.splitlines() == ["experiment.py: no model.onnx: pip install no_such_package, or --onnx 0"]
    assert not (tmp_path / "out/model.onnx").exists()
    assert "model.onnx" not in (tmp_path / "out/card.md").read_text()


def test_the_card_has_the_numbers_of_the_run_and_the_hashes_of_the_files(sparse, tmp_path):
    assert exported(sparse, tmp_path / "out", "--onnx", 0).code == 0
    card, summary = (tmp_path / "out/card.md").read_text(), RunFolder(sparse).read_summary()
    for name in ("model.safetensors", "mask.safetensors"):
        assert f"| {name} | {hashlib.sha256((tmp_path / 'out' / name).read_bytes()).hexdigest()} |" in card
    for words in (
        f"| acc_test | {summary['acc_test']:.4g}", "| mode | sparse-scratch |", "| data files | as published",
        "python run.py --mode sparse-scratch", f"{summary['parameters_active']:,} of {summary['parameters_dense']:,}",
    ):  # fmt: skip
        assert words in card
    assert (tmp_path / "out/config.yaml").read_bytes() == (sparse / "config.yaml").read_bytes()


def test_a_folder_with_anything_else_is_refused_and_an_earlier_export_replaced(sparse, train, tmp_path):
    dense = next((tmp_path / "digits/mlp-12-8/dense").iterdir())
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    (tmp_path / "empty").mkdir()
    assert exported(sparse, tmp_path / "empty", "--onnx", 0).code == 0
    assert exported(sparse, tmp_path / "empty", "--onnx", 0, "--weights", "csr").code == 0
    for run, target in ((sparse, "file"), (sparse, "full"), (dense, "empty"), (sparse, sparse)):
        found = exported(run, tmp_path / target, "--onnx", 0)
        assert found.code == 1
        assert "choose another" in found.line
    (tmp_path / "empty/notes.txt").touch()
    assert "choose another" in exported(sparse, tmp_path / "empty", "--onnx", 0).line
    assert "csr" in exported(dense, tmp_path / "new", "--weights", "csr").line
    assert not (tmp_path / "new").exists()
    assert exported(dense, tmp_path / "new", "--onnx", 0).code == 0
    assert not (tmp_path / "new/mask.safetensors").exists()


def test_runs_that_are_unfinished_damaged_or_none_are_one_line(tmp_path):
    run = write_run(unflatten(RunConfig, {"results_root": str(tmp_path), "mode": "dynamic"}), weights=True)
    target = tmp_path / "out"
    assert exported(run.path, target, "--onnx", 0).code == 0
    stored = load_stored(run.model)
    moved = {name: tensor + 1 for name, tensor in stored.weights.items()}
    save_state(run.model, {"network": moved, "mask": dict(stored.mask), "epoch": stored.epoch})
    assert "model.pt is not what its run has left" in exported(run.path, target).line
    vouch(run.path)
    assert "--weights dense" in exported(run.path, target, "--weights", "csr", "--onnx", 0).line
    run.model.unlink()
    assert "is not finished" in exported(run.path, target).line
    assert "no run folder" in exported(tmp_path, target).line


@pytest.mark.parametrize("damage", ["half", "other", "missing", "col_indices", "crow_indices", "values", "shape"])
def test_a_damaged_file_of_weights_is_refused(damage, tmp_path):
    path = tmp_path / "w.safetensors"
    active = torch.tensor([[True, False], [True, True]])
    write_csr(path, {"w": active.float()}, Mask({"w": active}), {})
    content = path.read_bytes()
    if damage == "half":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "other":
        path.write_bytes(b"weights")
    else:
        arrays = safetensors.torch.load(content)
        if damage == "missing":
            del arrays["w.values"]
        elif damage == "values":
            arrays["w.values"] = arrays["w.values"][:-1]
        elif damage != "shape":
            arrays[f"w.{damage}"] += 7
        write_dense(path, arrays, {"csr_shapes": '{"w": [3, 2]}' if damage == "shape" else '{"w": [2, 2]}'})
    with pytest.raises(RuntimeError, match="is damaged"):
        read_weights(path)
