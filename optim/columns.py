"""The columns of a run's tables, in their order. Where an older table lacks one, its cells are read as empty."""

SPLIT_COLUMNS = ["loss_clean", "loss_noisy", "acc_clean", "acc_generalized", "acc_memorized"]
HISTORY = [
    "epoch", "lr", "loss_train", "acc_train", "entropy_train", "loss_val", "acc_val", "loss_test", "acc_test",
    "seconds", "images_per_second", "peak_memory_mb", "density", "training_macs",
    "churn", "recalibrated", "examples",
]  # fmt: skip
NOISY_HISTORY = [*HISTORY[:9], *SPLIT_COLUMNS, *HISTORY[9:], "examples_noisy"]
LATER = (
    "density",
    "training_macs",
    "churn",
    "recalibrated",
    "examples",
    "examples_noisy",
)  # of HISTORY: older tables have none of them
SNR = [
    "epoch", "layer", "weight_norm", "grad_mean_norm", "grad_std_norm", "snr", "n_batches", "batch_size", "mode",
    "standard_error", "noise_floor", "precision",
]  # fmt: skip
SNR_LATER = ("standard_error", "noise_floor", "precision")  # of SNR: older tables have none of them
METRICS_COLUMNS = [
    "epoch", "metric", "split", "subset", "layer", "params", "value", "standard_error", "n_samples", "estimator",
    "settings", "checkpoint", "seconds", "degrees", "skewness", "reliable",
]  # fmt: skip
SHAPE = ("degrees", "skewness", "reliable")  # of METRICS_COLUMNS, of totals only; older tables have none of them
