"""Which examples are trained on: choices against brute force, the whole batch as the plain run, resumed runs to the bit."""

import json
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F

from helper.metrics.example_traces import example_traces
from helper.schema.config import FlagError, unflatten
from helper.system.seeds import stream
from helper.system.signals import Interrupted, Signals
from helper.untrusted.arrays import read_arrays, write_arrays
from loader.main import DataConfig, Sizes, load_dataset
from network.main import NetworkConfig, build_network
from optim.batches import Pool
from optim.callbacks.examples import CountForgetting
from optim.chain import runs_needed, scorer_of
from optim.config import RunConfig, TrainConfig
from optim.identity import run_identity
from optim.main import train_run
from optim.model import load_run, load_stored
from optim.subsets.config import SubsetConfig
from optim.subsets.main import Subset, shown_by
from optim.subsets.methods import METHODS, largest, n_chosen
from optim.subsets.pacing import Pacing, n_shown, ranked, share_shown
from optim.trainer import Trainer
from study.sweeping.plan import plan
from study.sweeping.work import example_scoring_images, work_of
from tests.stops import sigterm_after
from tests.test_example_traces import brute_force
from tests.test_run import rows

QUICK = {
    "n_epochs": 3, "limit_train": 100, "limit_test": 50, "batch_size": 20, "hidden_dims": "8", "figures": 0, "save_snr": 0,
    "save_fisher": 0, "lr_milestones": "2",
}  # fmt: skip
NOISY = QUICK | {"loader_name": "digits_noisy", "noise_ratio": 0.3}
LOSS = {"train_subset": 1, "subset_ratio": 0.25, "subset_method": "loss"}


def config_of(**flags: object) -> RunConfig:
    return unflatten(RunConfig, flags)


def run(root: Path, **flags: object) -> Path:
    return train_run(config_of(**{**QUICK, **flags, "results_root": str(root)}))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_stored(folder / "model.pt").weights


def same(one: Path, other: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one).values(), weights(other).values(), strict=True))


# ------------------------------------------------------------------------------------------------------ the choice


@pytest.fixture
def trainer() -> Trainer:
    dataset = load_dataset(DataConfig("digits", limit_train=60))
    network = build_network(NetworkConfig(net_name="mlp", hidden_dims="8"), (1, 8, 8), 10, stream(0, "init"))
    return Trainer(network, dataset, TrainConfig(batch_size=20, n_epochs=3), seed=1)


def chosen(trainer: Trainer, method: str, ratio: float = 0.25, scores: torch.Tensor | None = None) -> list[int]:
    config = SubsetConfig(train_subset=True, subset_ratio=ratio, subset_method=method)
    subset = Subset(config, n_epochs=3, seed=1, scores=scores)
    pool = Pool(trainer.drawing, torch.arange(5, 25), None)
    return subset.places(trainer, 0, pool).tolist()


def test_each_method_chooses_what_its_scores_say(trainer):
    dataset = trainer.dataset
    inputs, labels = dataset.normalise(dataset.train.inputs[5:25]), dataset.train.labels[5:25]
    losses = F.cross_entropy(trainer.network.eval()(inputs), labels, reduction="none").detach().double()
    traces = brute_force(trainer.network.double(), inputs.double())
    trainer.network.float()
    held_out = torch.linspace(0, 3, 60, dtype=torch.float64)
    assert chosen(trainer, "default") == [0, 1, 2, 3, 4]
    assert chosen(trainer, "loss") == sorted(losses.topk(5).indices.tolist())
    assert chosen(trainer, "fisher") == sorted(traces.topk(5).indices.tolist())
    of_pool = held_out[5:25]
    assert chosen(trainer, "reducible_loss", scores=held_out) == sorted((losses - of_pool).topk(5).indices.tolist())
    assert chosen(trainer, "reducible_fisher", scores=held_out) == sorted((traces - of_pool).topk(5).indices.tolist())


def test_a_uniform_draw_is_another_in_each_step_and_takes_every_place_alike(trainer):
    subset = Subset(SubsetConfig(True, 0.25, "uniform"), n_epochs=3, seed=1, scores=None)
    pool = Pool(trainer.drawing, torch.arange(20), None)
    draws = [subset.places(trainer, step, pool) for step in range(400)]
    assert all(len(draw.unique()) == 5 and (draw.diff() > 0).all() for draw in draws)
    assert torch.cat(draws).bincount(minlength=20).float().sub(100).abs().max() < 4 * (400 * 0.25 * 0.75) ** 0.5
    assert torch.equal(subset.places(trainer, 7, pool), draws[7])


def test_scoring_leaves_the_network_as_it_is_and_is_counted(trainer):
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.network.train()
    forward = trainer.mask_owner.meter.per_example // 3
    for method, passes in (("loss", 1), ("fisher", 1 + 2 * 10)):
        macs = trainer.mask_owner.meter.macs
        chosen(trainer, method)
        assert trainer.mask_owner.meter.macs - macs == 20 * passes * forward
        assert METHODS[method].passes(10) == passes
    assert trainer.network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.network.state_dict().items())


@pytest.mark.parametrize(("n", "ratio", "k"), [(20, 0.25, 5), (3, 0.1, 1), (1, 0.1, 1), (20, 1.0, 20), (7, 0.5, 4)])
def test_at_least_one_example_is_chosen(n, ratio, k):
    assert n_chosen(n, ratio) == k


def test_of_equal_scores_the_first_are_chosen():
    assert largest(torch.tensor([1.0, 2, 1, 2, 1]), 3).tolist() == [0, 1, 3]


# ---------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("method", METHODS)
def test_the_whole_pool_is_the_plain_run_to_the_bit(tmp_path, method):
    flags = {"val_size": 0.2} if METHODS[method].reducible else {}
    plain = run(tmp_path, **flags)
    subset = run(tmp_path, **flags, train_subset=1, subset_ratio=1, subset_method=method)
    assert subset != plain
    assert same(plain, subset)


@pytest.mark.parametrize("schedule", ["hard-first", "easy-first"])
def test_a_schedule_that_shows_everything_from_the_first_is_the_plain_run_to_the_bit(tmp_path, schedule):
    plain = run(tmp_path)
    assert same(plain, run(tmp_path, subset_schedule=schedule, subset_ratio=1))
    assert same(plain, run(tmp_path, subset_schedule=schedule, subset_ratio=0.2, subset_until=0))


def test_a_share_of_each_batch_is_trained_on_and_wrong_labels_are_counted(tmp_path):
    plain, hard = (run(tmp_path, **NOISY, **flags) for flags in ({}, LOSS))
    assert [row["examples"] for row in rows(plain, "history")] == ["", "100", "100", "100"]
    assert [row["examples_noisy"] for row in rows(plain, "history")] == ["", "30", "30", "30"]
    assert [row["examples"] for row in rows(hard, "history")] == ["", "25", "25", "25"]
    labels = read_arrays(hard / "labels.npz")
    assert (labels["true_label"] != labels["given_label"]).sum() == 30
    assert all(0 < int(row["examples_noisy"]) <= 25 for row in rows(hard, "history")[1:])
    macs = [int(row["training_macs"]) for row in rows(hard, "history")]
    of_plain = int(rows(plain, "history")[-1]["training_macs"])
    assert macs[-1] == of_plain * (25 * 3 + 100) // 300  # a quarter of the steps, and a forward pass of everything


RESUMED = {
    "loss": LOSS,
    "uniform": LOSS | {"subset_method": "uniform"},
    "fisher": LOSS | {"subset_method": "fisher"},
    "reducible": LOSS | {"subset_method": "reducible_loss", "val_size": 0.2},
    "schedule": {"subset_schedule": "hard-first", "subset_ratio": 0.3, "subset_until": 1},
    "forgetting": {"save_forgetting": 1},
    "masked": LOSS | {"mode": "dynamic", "mask_every": 2, "sparse_step": "auto"},
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("step", [None, 2])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, name, step):
    flags = NOISY | RESUMED[name]
    whole, config = run(tmp_path / "whole", **flags), config_of(**flags, results_root=str(tmp_path / "stopped"))
    for needed in runs_needed(config):
        train_run(needed)
    with sigterm_after(1, step), Signals() as signals, pytest.raises(Interrupted):
        train_run(config, signals)
    stopped = train_run(config)
    assert same(whole, stopped)
    columns = ("epoch", "acc_test", "loss_train", "examples", "examples_noisy", "training_macs")
    histories = [[[row[column] for column in columns] for row in rows(path, "history")] for path in (whole, stopped)]
    assert histories[0] == histories[1]
    for file in ("scores.npz", "forgetting.npz"):
        assert (whole / file).exists() == (stopped / file).exists()
        if (whole / file).exists():
            one, other = read_arrays(whole / file), read_arrays(stopped / file)
            assert all((one[key] == other[key]).all() for key in one)


# ------------------------------------------------------------------------------------------------------- schedules


def test_the_share_rises_in_a_straight_line_and_stays():
    shares = [share_shown(epoch, n_epochs=10, first=0.2, until=0.5) for epoch in range(10)]
    assert shares == pytest.approx([0.2, 0.36, 0.52, 0.68, 0.84, 1, 1, 1, 1, 1])
    shown = [n_shown(epoch, n=1000, n_steps=8, n_epochs=10, first=0.2, until=0.5) for epoch in range(10)]
    assert shown == [round(1000 * share) for share in shares]
    assert [n_shown(0, n=n, n_steps=8, n_epochs=10, first=0.1, until=0.5) for n in (5, 20, 200)] == [5, 8, 20]
    assert share_shown(0, n_epochs=3, first=0.2, until=0) == 1


def test_epochs_show_the_hardest_first_in_as_many_steps_and_what_they_show_in_the_usual_order():
    scores = torch.tensor([3.0, 1, 2, 0, 5, 4, 1, 1, 1, 1])
    ties = torch.tensor([9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert ranked(scores, "hard-first", ties).tolist() == [4, 5, 0, 2, 9, 8, 7, 6, 1, 3]
    assert ranked(scores, "easy-first", ties).tolist() == [3, 9, 8, 7, 6, 1, 2, 0, 5, 4]
    pacing = Pacing(ranked(scores, "hard-first", ties), n_epochs=4, first=0.4, until=1)
    order = torch.randperm(10, generator=stream(0, "order"))
    batches = pacing.batches(order, 0, 4)
    assert len(batches) == 3
    assert torch.cat(batches).tolist() == [row for row in order.tolist() if row in (4, 5, 0, 2)]
    assert [batch.tolist() for batch in pacing.batches(order, 4, 4)] == [batch.tolist() for batch in order.split(4)]
    assert [len(batch) for batch in Pacing(pacing.ranking, 4, 0.1, 1).batches(order, 0, 4)] == [1, 1, 1]  # no step is empty


def test_choices_follow_from_the_stored_scores(tmp_path):
    """Under label noise the wrong labels are the hardest, by the loss of the dense run, which is trained first."""
    folder = run(tmp_path, **NOISY, subset_schedule="hard-first", subset_ratio=0.2, subset_until=1)
    config = config_of(**NOISY, subset_schedule="hard-first", results_root=str(tmp_path))
    dense = run(tmp_path, **NOISY)
    assert train_run(scorer_of(config)) == dense
    network, _, _ = load_run(dense)
    dataset = load_dataset(config.data)
    logits = network(dataset.normalise(dataset.train.inputs[:]))
    losses = F.cross_entropy(logits, dataset.train.labels, reduction="none").detach()
    stored = read_arrays(folder / "scores.npz")
    numpy.testing.assert_allclose(stored["score"], losses.numpy(), rtol=1e-5)
    assert (stored["index"] == dataset.train.indices.numpy()).all()
    noisy = [int(row["examples_noisy"]) for row in rows(folder, "history")[1:]]
    hardest = [torch.from_numpy(stored["score"]).topk(k).indices for k in (20, 47, 73)]
    assert noisy == [int(dataset.train.noisy[rows_shown].sum()) for rows_shown in hardest]


def test_traces_as_difficulty_have_their_errors(tmp_path):
    folder = run(tmp_path, subset_schedule="easy-first", subset_difficulty="fisher", subset_ratio=0.5)
    stored = read_arrays(folder / "scores.npz")
    assert stored["score"].shape == stored["standard_error"].shape == (100,)
    network, _, _ = load_run(train_run(scorer_of(config_of(**QUICK, subset_schedule="easy-first", results_root=str(tmp_path)))))
    dataset = load_dataset(config_of(**QUICK).data)
    exact = example_traces(network, dataset.normalise(dataset.train.inputs[:])).values.numpy()
    off = numpy.abs(stored["score"] - exact)
    assert (off <= 4 * stored["standard_error"] + 1e-4 * exact).mean() > 0.9


def test_reducible_scores_are_of_a_network_that_was_trained_on_the_held_out_examples(tmp_path):
    flags = QUICK | LOSS | {"subset_method": "reducible_loss", "val_size": 0.4}
    folder = run(tmp_path, **flags)
    held_out = scorer_of(config_of(**flags, results_root=str(tmp_path)))
    dataset, of_run = load_dataset(held_out.data), load_dataset(config_of(**flags).data)
    assert torch.equal(dataset.train.indices, of_run.val.indices)
    assert torch.equal(dataset.val.indices, of_run.train.indices)
    assert (len(dataset.train), len(of_run.train)) == (40, 60)
    network, _, _ = load_run(train_run(held_out))
    logits = network(of_run.normalise(of_run.train.inputs[:]))
    losses = F.cross_entropy(logits, of_run.train.labels, reduction="none").detach()
    numpy.testing.assert_allclose(read_arrays(folder / "scores.npz")["score"], losses.numpy(), rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- forgetting


def test_forgetting_events_are_counted_as_they_are_defined(tmp_path, monkeypatch):
    right: list[dict[int, bool]] = []
    usual = CountForgetting.on_step

    def recorded(self: CountForgetting, trainer: Trainer) -> None:
        if trainer.step == 1:
            right.append({})
        found = trainer.outputs.argmax(1) == trainer.batch.examples.labels
        right[-1] |= dict(zip(trainer.batch.rows.tolist(), found.tolist(), strict=True))
        usual(self, trainer)

    monkeypatch.setattr(CountForgetting, "on_step", recorded)
    folder = run(tmp_path, save_forgetting=1, n_epochs=8, lr=0.4, lr_milestones="7")
    stored = read_arrays(folder / "forgetting.npz")
    seen = numpy.array([[epoch[row] for row in range(100)] for epoch in right])
    assert (stored["forgotten"] == (seen[:-1] & ~seen[1:]).sum(0)).all()
    assert (stored["learned"] == seen.any(0)).all()
    assert stored["forgotten"].sum() > 0
    assert not stored["learned"].all() or seen.any(0).all()


def test_what_is_never_learned_is_harder_than_what_is_forgotten_most_often(tmp_path):
    folder = run(tmp_path, **NOISY, subset_schedule="hard-first", subset_difficulty="forgetting", mode="sparse-scratch")
    (dense,) = folder.parents[1].glob("dense/*")  # which the run has had counted, and which is its parent as well
    counts, scores = read_arrays(dense / "forgetting.npz"), read_arrays(folder / "scores.npz")["score"]
    assert (scores[~counts["learned"]] == 3).all()
    assert (scores[counts["learned"]] == counts["forgotten"][counts["learned"]]).all()


def test_a_dense_run_that_has_not_counted_is_named_with_its_cure(tmp_path):
    dense = run(tmp_path)
    with pytest.raises(RuntimeError, match=rf"{dense}/forgetting.npz does not exist.*--save_forgetting 1 --overwrite 1"):
        run(tmp_path, subset_schedule="hard-first", subset_difficulty="forgetting")
    run(tmp_path, save_forgetting=1, overwrite=1)
    run(tmp_path, subset_schedule="hard-first", subset_difficulty="forgetting")


# ---------------------------------------------------------------------------------------- what is refused, and prices


REFUSED = [
    ({"train_subset": 1, "subset_ratio": 0}, "--subset_ratio 0: must be above 0"),
    ({"train_subset": 1, "subset_schedule": "hard-first"}, "--train_subset 1 chooses by step and --subset_schedule hard-first"),
    ({"train_subset": 1, "subset_method": "reducible_loss"}, "--subset_method reducible_loss needs --val_size above 0"),
    ({"train_on": "val", "val_size": 0.2, "select": "val"}, "--train_on val: the validation examples"),
    ({"save_forgetting": 1, "mix": "mixup"}, "--save_forgetting 1 --mix mixup"),
    ({"train_subset": 1, "subset_method": "losses"}, "did you mean loss"),
    *[
        ({"train_eval": "running", "save_snr": 0, **flags}, "--train_eval running averages over what steps train on")
        for flags in ({"train_subset": 1, "subset_method": "fisher"}, {"subset_schedule": "easy-first"})
    ],
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), REFUSED)
def test_what_contradicts_is_refused_in_a_line(flags, words):
    with pytest.raises(FlagError, match=words):
        config_of(**flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"train_subset": 1, "subset_method": "uniform", "subset_ratio": 0.5}, {"train_subset": 1, "subset_method": "default"},
        {"train_subset": 1, "subset_method": "loss", "subset_ratio": 1}, {"subset_schedule": "hard-first", "subset_until": 0},
    ],
)  # fmt: skip
def test_averages_while_training_are_those_of_the_training_set_where_chance_or_nothing_chooses(flags):
    assert config_of(train_eval="running", save_snr=0, **flags).train.train_eval == "running"


@pytest.mark.parametrize("damage", ["text", "others", "short"])
def test_scores_that_are_damaged_or_of_other_examples_are_refused(tmp_path, damage):
    flags = {"subset_schedule": "hard-first"}
    path = run(tmp_path, **flags) / "scores.npz"
    arrays = read_arrays(path)
    (path.parent / "summary.json").unlink()  # the run goes on
    if damage == "text":
        path.write_text("no scores")
    else:
        changed = {"others": {"index": arrays["index"][::-1].copy()}, "short": {"score": arrays["score"][:9]}}[damage]
        write_arrays(path, arrays | changed)
    with pytest.raises(RuntimeError, match=r"scores.npz (is damaged|has no scores of this run's training examples)"):
        run(tmp_path, **flags)


def test_a_subset_makes_another_run_and_its_flags_count_only_beside_it():
    plain = run_identity(config_of(), None)
    assert run_identity(config_of(subset_ratio=0.5, subset_method="loss", subset_difficulty="fisher"), None) == plain
    assert run_identity(config_of(save_forgetting=1), None) == plain
    assert run_identity(config_of(train_subset=1), None) != plain
    sparse = config_of(mode="sparse-scratch", train_subset=1)
    assert run_identity(sparse, None)["parent"] == plain  # the dense parent has no subset


def test_sweeps_train_first_what_scores(tmp_path):
    flags = {"results_root": str(tmp_path), "val_size": 0.2}
    configs = [
        config_of(**flags, mode="sparse-scratch", train_subset=1, subset_method="reducible_loss"),
        config_of(**flags, subset_schedule="hard-first", subset_difficulty="forgetting"),
    ]
    runs = plan(configs)
    place = {run.name: index for index, run in enumerate(runs)}
    assert len(runs) == 4
    for run_ in runs:
        for needed in runs_needed(run_.config):
            (name,) = [other.name for other in runs if run_identity(other.config, None) == run_identity(needed, None)]
            assert place[name] < place[run_.name]
    (dense,) = [r for r in runs if r.config.mode == "dense" and not r.config.subset.paced and r.config.data.train_on == "train"]
    assert dense.config.subset.save_forgetting


def test_an_epoch_costs_its_share_and_scores_have_a_price(tmp_path):
    sizes = Sizes(1000, 0, 100, (1, 8, 8), 10)

    def training(**flags: object) -> float:
        (planned,) = plan([config_of(results_root=str(tmp_path), **flags)])[-1:]
        return work_of(planned, sizes).training

    plain = training(n_epochs=10)
    assert training(n_epochs=10, train_subset=1, subset_ratio=0.25) == pytest.approx(plain / 4)
    assert training(n_epochs=10, train_subset=1, subset_ratio=0.25, subset_method="loss") == pytest.approx(
        plain * (1 / 4 + 1 / 3)
    )
    paced = {"subset_schedule": "hard-first", "subset_ratio": 0.2}
    share = (0.2 + 0.36 + 0.52 + 0.68 + 0.84 + 5) / 10
    assert training(n_epochs=10, **paced) == pytest.approx(plain * share + 1000 / 3)
    assert training(n_epochs=10, **paced, subset_difficulty="forgetting") == pytest.approx(plain * share)
    assert example_scoring_images(config_of(**paced, subset_difficulty="fisher"), sizes) == pytest.approx(1000 * 17 / 3)
    sharp = training(n_epochs=10, train_subset=1, subset_ratio=0.25, subset_method="loss", sharpness_aware=0.1)
    assert sharp == pytest.approx(plain * (2 / 4 + 1 / 3))


@pytest.mark.parametrize(
    "flags",
    [
        {"train_subset": True, "subset_ratio": 0.05}, {"train_subset": True, "subset_ratio": 0.9, "subset_method": "loss"},
        {"subset_schedule": "hard-first", "subset_ratio": 0.15}, {"subset_schedule": "easy-first", "subset_ratio": 0.001}, {},
    ],
)  # fmt: skip
@pytest.mark.parametrize(("n", "batch_size"), [(100, 8), (101, 32), (7, 8), (30, 1)])
def test_what_a_run_will_train_on_and_score_is_counted_as_its_steps_do(flags, n, batch_size):
    """With at least one example a step, and no scores where a step takes its whole batch."""
    config, shares = SubsetConfig(**flags), []
    scores = torch.arange(n, dtype=torch.float64)
    subset = Subset(config, n_epochs=4, seed=0, scores=scores)
    trained, scored = [], 0
    for epoch in range(4):
        batches = subset.batches(torch.randperm(n, generator=stream(epoch, "order")), epoch, batch_size)
        sizes = [len(batch) for batch in batches]
        taken = [n_chosen(size, config.subset_ratio) if config.chooses else size for size in sizes]
        trained.append(sum(taken))
        scored += sum(size for size, k in zip(sizes, taken, strict=True) if k < size)
    found = shown_by(config, n_epochs=4, n=n, batch_size=batch_size)
    assert (found.trained * n).tolist() == pytest.approx(trained)
    assert found.scored * n * 4 == pytest.approx(scored)
    shares = [found.between(k / 10, (k + 1) / 10) for k in range(10)]
    assert sum(shares) * n == pytest.approx(sum(trained))
    assert found.between(0.25, 0.625) * n == pytest.approx(trained[1] + trained[2] / 2)


def test_a_budget_counts_what_a_subset_costs(tmp_path):
    flags = {"mode": "at-init", "prune_ratio": 0.5, "train_subset": 1, "subset_ratio": 0.25, "n_epochs": 2, "train_budget": 1}
    folder = run(tmp_path, **flags, prune_method="random", lr_milestones="1")
    summary = json.loads((folder / "summary.json").read_text())
    dense = 2 * 100 * 3 * summary["macs_dense"]
    assert summary["training_macs"] == pytest.approx(dense, rel=0.1)
    assert summary["epochs"] > 8
