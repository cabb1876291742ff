from dataclasses import dataclass

import pytest

from helper.metrics.config import MetricConfig
from helper.schema.config import Config, FlagError, checked, flag, flag_fields, flatten, identity, parts, replace, unflatten
from helper.schema.values import dashed
from loader.main import DataConfig
from network.main import NetworkConfig
from optim.config import PruneConfig, RunConfig, TrainConfig
from optim.identity import run_folder, run_identity


def sparse(**flags) -> RunConfig:
    return unflatten(RunConfig, {"mode": "sparse-scratch"} | flags)


def test_values_are_converted_to_their_canonical_form():
    config = unflatten(
        RunConfig, {"lr": "1e-2", "prune_last": "1", "hidden_dims": [10, 7], "n_epochs": "5", "lr_milestones": 3}
    )
    assert (config.train.lr, config.prune.prune_last, config.network.hidden_dims) == (0.01, True, "10-7")
    assert (config.train.n_epochs, config.train.lr_milestones) == (5, "3")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PruneConfig(prune_ratio=1.0), ["--prune_ratio 1.0", "below 1"]),
        (lambda: PruneConfig(prune_ratio=-0.1), ["--prune_ratio", "at least 0"]),
        (lambda: PruneConfig(prune_ratio=float("nan")), ["--prune_ratio nan"]),
        (lambda: PruneConfig(prune_method="l2"), ["--prune_method l2", "l1, random", "did you mean l1?"]),
        (lambda: NetworkConfig(hidden_dims="10-x"), ["--hidden_dims 10-x", "128-64"]),
        (lambda: NetworkConfig(net_name="resnet", depth=21), ["--depth 21", "6n+2", "did you mean 20?"]),
        (lambda: TrainConfig(lr_milestones="20-10"), ["--lr_milestones 20-10", "increase"]),
        (lambda: TrainConfig(n_epochs=0), ["--n_epochs 0", "at least 1"]),
        (lambda: TrainConfig(n_epochs=2.5), ["--n_epochs 2.5", "integer"]),
        (lambda: TrainConfig(lr="fast"), ["--lr fast", "a number"]),
        (lambda: TrainConfig(lr=float("inf")), ["--lr inf", "finite"]),
        (lambda: TrainConfig(save_best=1, select="val"), ["--save_best", "--select val"]),
        (lambda: TrainConfig(save_epochs="0-99"), ["--save_epochs 0-99", "--n_epochs 30"]),
        (lambda: MetricConfig(save_snr="maybe"), ["--save_snr maybe", "1 or 0"]),
        (lambda: DataConfig(loader_name="cifar"), ["--loader_name cifar", "did you mean cifar10?"]),
        (lambda: DataConfig(noise_ratio=1.5), ["--noise_ratio 1.5", "at most 1"]),
        (lambda: sparse(select="val"), ["--select val", "--val_size"]),
        (lambda: unflatten(RunConfig, {"prune_ration": 0.5}), ["--prune_ration", "did you mean prune_ratio?"]),
    ],
)  # fmt: skip
def test_wrong_values_are_refused_in_the_users_words(make, words):
    with pytest.raises(FlagError) as refusal:
        make()
    for word in words:
        assert word in str(refusal.value)


def test_flatten_and_unflatten_are_inverse():
    config = sparse(loader_name="cifar100_noisy", n_epochs_pretrain=7, hidden_dims="")
    assert unflatten(RunConfig, flatten(config)) == config


def test_every_flag_has_one_name_and_one_short_name():
    from helper.schema.config import all_flags

    shorts = [field.metadata["flag"].short for field in all_flags(RunConfig).values()]
    shorts = [short for short in shorts if short]
    assert len(shorts) == len(set(shorts))


ORIGINAL_FLAGS = """
    -m mode -pm prune_method -pr prune_ratio -pl prune_last -rr results_root -lp load_pretrain -pp pretrain_model_path
    -tp lottery_model_path -ln loader_name -rt root -fn filename -ts test_size -rs random_state -dl download -nt net_name
    -in in_dim -ot out_dim -ha hidden_act -oa out_act -hd hidden_dims -dp depth -wf widen_factor -dr dropRate
    -gr growthRate -cr compressionRate -im init_method
    -on optimizer_name -mm momentum -lr lr -ls lr_schedule -lm lr_milestones -lg lr_gamma -ne n_epochs -bs batch_size
    -wt weight_decay -sub train_subset -subr subset_ratio -subm subset_method
    -dv device -rp reg_type -rw reg_weight -fd fisher_method -fm fisher_metric -ms monte_carlo_samples
    -mt monte_carlo_trials -bf batch_size_fisher -sb save_best -sf save_fisher -ss save_snr -tn train_noisy -nm noise_method
    -nr noise_ratio -lrp lr_pretrain -lsp lr_schedule_pretrain -lmp lr_milestones_pretrain -lgp lr_gamma_pretrain
    -nep n_epochs_pretrain -bsp batch_size_pretrain
"""


def test_the_published_codes_flags_keep_their_spelling():
    from helper.schema.config import all_flags

    shorts = {name: field.metadata["flag"].short for name, field in all_flags(RunConfig).items()}
    words = ORIGINAL_FLAGS.split()
    assert {name: short for name, short in shorts.items() if short} == dict(zip(words[1::2], words[::2], strict=True))


def test_identity_is_pinned():
    """A change of this hash orphans everybody's finished runs."""
    assert run_identity(sparse(prune_ratio=0.95), None) == {"mode": "sparse-scratch", "prune_ratio": 0.95, "parent": {}}
    assert run_folder(sparse(prune_ratio=0.95), None).path.name == "l1-0.95-lr0.1-e30-s42-979d89df"


@pytest.mark.parametrize(
    "flags", [{"net_name": "resnet"}, {"net_name": "resnet", "widen_factor": 2}, {"net_name": "mnist_lenet"}]
)
def test_a_network_that_was_changed_is_not_found_under_its_former_identity(flags):
    assert run_identity(RunConfig(network=NetworkConfig(**flags)), None) == flags | {"network_revision": 2}
    assert "network_revision" not in run_identity(RunConfig(), None)


def test_equal_spellings_are_one_run():
    noisy = RunConfig(data=DataConfig(loader_name="cifar100_noisy"))
    assert run_identity(noisy, None) == run_identity(RunConfig(data=DataConfig(loader_name="cifar100", train_noisy=1)), None)
    assert replace(noisy, save_best=1) == replace(noisy, select="test")
    assert replace(noisy, augment="auto") == replace(noisy, augment="crop_flip")


@pytest.mark.parametrize(
    "flags",
    [
        {"device": "cuda"}, {"root": "/elsewhere"}, {"results_root": "x"}, {"save_hessian": 1}, {"metric_every": 3},
        {"save_epochs": "all"}, {"debug": 1}, {"overwrite": 1}, {"compile": 1}, {"depth": 20}, {"widen_factor": 2},
        {"noise_ratio": 0.5}, {"noise_seed": 3}, {"reg_weight": 5.0}, {"figures": 0}, {"in_dim": 64},
        {"tracker": "tensorboard"},
    ],
)  # fmt: skip
def test_options_without_effect_on_the_weights_do_not_count(flags):
    assert identity(replace(sparse(), **flags)) == identity(sparse())


@pytest.mark.parametrize(
    "flags",
    [
        {"lr": 0.2}, {"momentum": 0.5}, {"hidden_dims": "5"}, {"prune_ratio": 0.5}, {"prune_last": 1}, {"random_state": 1},
        {"val_size": 0.1}, {"limit_classes": 5}, {"limit_train": 100}, {"split_seed": 1}, {"precision": "bf16"},
        {"select": "test"}, {"optimizer_name": "adam"}, {"init_method": "xavier"}, {"reg_type": "jacobian"},
        {"lr_pretrain": 0.3}, {"random_state_pretrain": 5}, {"train_noisy": 1},
    ],
)  # fmt: skip
def test_options_that_change_the_weights_count(flags):
    assert run_identity(replace(sparse(), **flags), None) != run_identity(sparse(), None)


def test_options_inert_in_the_mode_do_not_count():
    assert identity(RunConfig(prune=PruneConfig(prune_ratio=0.5))) == identity(RunConfig())
    adam = RunConfig(train=TrainConfig(optimizer_name="adam"))
    assert identity(replace(adam, momentum=0.1)) == identity(adam)


def test_the_parent_takes_the_runs_own_values_where_no_pretrain_flag_differs():
    parent = sparse(lr=0.3, n_epochs=40, n_epochs_pretrain=20, random_state=3, weight_decay=0.5).dense_parent()
    assert (parent.mode, parent.train.lr, parent.train.n_epochs, parent.random_state) == ("dense", 0.3, 20, 3)
    assert run_identity(parent, None) == run_identity(
        unflatten(RunConfig, {"lr": 0.3, "n_epochs": 20, "random_state": 3, "weight_decay": 0.5}), None
    )


def test_data_files_that_are_not_the_published_ones_count():
    assert run_identity(RunConfig(), "abc") != run_identity(RunConfig(), None)


def test_seed_zero_draws_a_seed_that_is_kept():
    config = RunConfig(random_state=0)
    assert config.random_state > 0
    assert unflatten(RunConfig, flatten(config)).random_state == config.random_state


def test_dashed_refuses_what_is_no_list():
    assert dashed("") == ""
    for wrong in ("1--2", "-1", "0", "a", "1.5"):
        with pytest.raises(ValueError, match="dashes"):
            dashed(wrong)


def test_a_config_class_of_ones_own_works_alike():
    @dataclass(frozen=True)
    class Own(Config):
        size: int = flag(3, "a size", low=1)

    assert Own(size="4").size == 4


def test_defaults_which_are_taken_unchecked_are_what_their_own_texts_give():
    for cls in (RunConfig, *parts(RunConfig).values()):
        for field in flag_fields(cls):
            text = str(int(field.default)) if isinstance(field.default, bool) else str(field.default)
            assert field.default is None or checked(cls, field, text) == field.default, field.name
