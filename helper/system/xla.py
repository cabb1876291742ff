"""What `--device tpu` needs beside plain PyTorch: the device, where a graph ends, and how many graphs were compiled.

On an XLA device operations are recorded, not computed, until something asks for a value or `end_of_graph` is called; what
was recorded is then compiled as one graph, unless the same operations on the same shapes were compiled before.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import torch


def xla_device() -> torch.device:
    """The first XLA device: a TPU core, or what the environment variable PJRT_DEVICE names.

    Raises:
        RuntimeError: no torch_xla, or no TPU.
    """
    named = "PJRT_DEVICE" in os.environ  # torch_xla sets it
    try:
        with no_warnings():
            import torch_xla
            import torch_xla.backends
    except ImportError as error:
        if error.name != "torch_xla":
            raise RuntimeError(f"--device tpu: torch_xla cannot be imported ({error}); is torch its release?") from None
        raise RuntimeError("--device tpu: torch_xla is not installed; pip install -r requirements-tpu.txt") from None
    if not named and torch_xla.runtime.device_type() != "TPU":
        os.environ.pop("PJRT_DEVICE")  # the next call must not take torch_xla's choice for the user's
        raise RuntimeError("--device tpu: there is no TPU here; PJRT_DEVICE=CPU in the environment tries it on the processor")
    try:
        device = torch_xla.device()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RuntimeError(f"--device tpu: no device of PJRT_DEVICE={os.environ['PJRT_DEVICE']} ({reason})") from None
    warnings.filterwarnings("ignore", "Please use the new API settings to control TF32")  # of GPUs, and of torch 2.9 alone
    with no_warnings():  # a TPU multiplies float32 in bfloat16 unless told otherwise; --precision says which is wanted
        torch_xla.backends.set_mat_mul_precision("highest")
    return device


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Log records below ERROR are dropped inside."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(former)


def end_of_graph(device: torch.device, *, wait: bool = False) -> None:
    """Start what an XLA device has recorded, as one graph; other devices have started everything already.

    Args:
        wait: return when it is done, on any device.
    """
    if device.type == "xla":
        import torch_xla

        torch_xla.sync(wait=wait)
    elif wait and device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_graph_counts() -> None:
    """`graph_counts` starts from 0; what is compiled stays compiled."""
    import torch_xla.debug.metrics as counted

    counted.clear_all()


def graph_counts() -> dict[str, int | str | list[str]]:
    """Since `forget_graph_counts`: graphs compiled and run, readings by the host, operations that the host had to compute."""
    import torch_xla
    import torch_xla.debug.metrics as counted

    def samples(metric: str) -> int:
        data = counted.metric_data(metric)
        return data[0] if data else 0

    return {
        "platform": torch_xla.runtime.device_type(),
        "compilations": samples("CompileTime"),
        "executions": samples("ExecuteTime"),
        "transfers_to_host": samples("TransferFromDeviceTime"),
        # reading a single value counts as an operation of the host's
        "host_operations": sorted(set(counted.executed_fallback_ops()) - {"aten::_local_scalar_dense"}),
    }
