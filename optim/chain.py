"""The runs that a run needs: its dense parent, and of a round the rounds before it, each a run of its own.

A run of a mode in rounds is the last of its rounds. The one before is its parent, and that of the first is the dense run, so
that runs of different targets have the rounds in common in which they prune the same share.
"""

from helper.metrics.main import METRICS
from helper.schema.config import replace
from optim.config import RunConfig
from optim.rounds import ratios


def runs_before(config: RunConfig) -> list[RunConfig]:
    """The runs that one needs, each after the one that it needs itself, without a dense one that is given by a path.

    The last one is its parent.
    """
    if not config.mode_spec.needs_parent:
        return []
    dense = [] if config.pretrain_model_path else [dense_before(config)]
    return dense + (earlier_rounds(config) if config.mode_spec.in_rounds else [])


def runs_needed(config: RunConfig) -> list[RunConfig]:
    """`runs_before`, and the run by which training examples are scored, if that is another one."""
    before, scorer = runs_before(config), scorer_of(config)
    given = config.mode_spec.needs_parent and config.pretrain_model_path and not config.subset.reducible
    return before if scorer is None or scorer in before or given else [*before, scorer]


def dense_before(config: RunConfig) -> RunConfig:
    """The dense parent, which keeps the state with which rounds begin."""
    dense = config.dense_parent()
    return keeping(dense, {config.first_epoch}) if config.begins_with_dense_state else dense


def scorer_of(config: RunConfig) -> RunConfig | None:
    """The run whose weights, or whose counts, a run's scores of its training examples are made of; None: it needs none.

    The dense run without a subset, the parent's own where there is one; for `reducible` scores it is trained on the examples
    that --val_size holds out.
    """
    if config.subset.scored is None:
        return None
    dense = dense_before(config) if config.mode_spec.needs_parent else config.dense_parent()
    dense = replace(dense, overwrite=False)
    if not config.subset.reducible:
        return dense
    less = {metric.switch: False for metric in METRICS.values()} | {"metric_every": 0, "figures": False}
    return replace(dense, **less, train_on="val", select="last")


def earlier_rounds(config: RunConfig) -> list[RunConfig]:
    """The rounds before a run, which leave their solution alone: no measurements, figures or other states."""
    less = {metric.switch: False for metric in METRICS.values()} | {"metric_every": 0, "figures": False, "save_epochs": "none"}
    less |= {"overwrite": False, "load_pretrain": True, "mask_control": "none"}  # a control is of the last mask alone
    shares = ratios(config.prune.prune_ratio, config.prune.prune_step)[:-1]
    return [replace(config, prune_ratio=share, **less) for share in shares]


def keeping(config: RunConfig, epochs: set[int]) -> RunConfig:
    """A run's configuration in which the states of these epochs are kept as well."""
    kept = config.saved_epochs()
    return config if epochs <= kept else replace(config, save_epochs="-".join(map(str, sorted(kept | epochs))))
