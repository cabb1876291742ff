"""Which run a configuration is: a readable name, and a hash over what decides its weights."""

from pathlib import Path
from typing import Any

from helper.own.references import label_of
from helper.schema.config import FlagError, digest, flatten, identity, replace
from helper.schema.registry import Readers
from loader.label_noise import METHODS
from optim.checkpoint import content_hash
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import load_stored, lottery_file, rewind_file, stored_config, weights_file

PATHS = ("pretrain_model_path", "lottery_model_path")  # what is at them counts, not where it lies


def run_identity(config: RunConfig, fingerprint: str | None) -> dict[str, Any]:
    """Everything that decides the trained weights, and on which examples accuracies are measured, as a JSON-able mapping.

    `parent` is the dense run, also of a round: the rounds before it follow from that and from its own options.

    Args:
        fingerprint: content hash of data files that are not the published ones.
    """
    payload = identity(config)
    payload |= {name: label_of(payload[name]) for name in ("net_name", "loader_name") if name in payload}  # wherever code lies
    if config.network.spec.revision > 1:
        payload["network_revision"] = config.network.spec.revision
    if fingerprint:
        payload["data_files"] = fingerprint
    if not config.mode_spec.needs_parent:
        return payload
    if config.pretrain_model_path:
        payload["parent"] = weights_hash(weights_file(Path(config.pretrain_model_path)))
    else:
        payload["parent"] = run_identity(config.dense_parent(), fingerprint)
    if config.begins_with_dense_state and config.pretrain_model_path:
        payload["lottery"] = weights_hash(rewind_file(config, Path(config.pretrain_model_path)))
    if config.mode_spec.rewinds and (config.lottery_model_path or config.pretrain_model_path):
        payload["lottery"] = weights_hash(lottery_file(config, Path(config.pretrain_model_path or "")))
    return payload


def weights_hash(path: Path) -> str:
    return content_hash(load_stored(path).weights)


def run_folder(config: RunConfig, fingerprint: str | None) -> RunFolder:
    """`<results_root>/<loader_name>/<network>/<mode>/<slug>-<hash8>`; nothing is created."""
    words = [f"{config.prune.prune_method}-{config.prune.prune_ratio:g}"] if config.mode_spec.has_mask else []
    if config.data.train_noisy:
        by_ratio = config.data.noise_method in Readers("noise_ratio", METHODS)
        words.append(config.data.noise_method + (f"-{config.data.noise_ratio:g}" if by_ratio else ""))
    words += [f"lr{config.train.lr:g}", f"e{config.train.n_epochs}"]
    words += [] if config.train.train_budget is None else [f"budget{config.train.train_budget:g}"]
    words += [f"s{config.random_state}"]
    name = f"{'-'.join(words)}-{digest(run_identity(config, fingerprint))}"
    return RunFolder(Path(config.results_root, config.data.label, config.network.label, config.mode, name))


def stored_options(config: RunConfig) -> dict[str, Any]:
    """config.yaml: every flag but the ones that say how to treat an existing run."""
    flat = flatten(config) | {"overwrite": False, "debug": False, "load_pretrain": True, "trust_code": False}
    return {name: value for name, value in flat.items() if value is not None}


def check_stored(folder: RunFolder, config: RunConfig, fingerprint: str | None) -> None:
    """Raise RuntimeError when the run in a folder is not the one that the folder's name says."""
    try:
        stored = stored_config(folder)
        stored = replace(stored, **{name: getattr(config, name) for name in PATHS})
        same = run_identity(stored, fingerprint) == run_identity(config, fingerprint)
    except (RuntimeError, FlagError) as error:
        raise RuntimeError(f"{error}; move the folder away") from None
    if stored.train.train_eval != config.train.train_eval:
        raise RuntimeError(f"{folder.path} has --train_eval {stored.train.train_eval}: one table must not mix the two ways")
    if not same:
        raise RuntimeError(f"{folder.config} has other settings than this run's; it was edited: move the folder away")
