"""`python -m tokenlabel.engine.launch --processes N MODULE ...`: the processes of a training on one node, as torchrun starts them.

torch's elastic agent does the work. Differs from the command torchrun in what a user sees: the process that failed speaks
first and alone, one that was killed is named with its signal, and SIGUSR1 reaches the processes. Called by the workflow;
on several nodes use torchrun or srun.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import uuid

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def main() -> int:
    """Runs a module in several processes; returns the exit code of the first that failed, 1 for a killed one."""
    parser = argparse.ArgumentParser(prog="python -m tokenlabel.engine.launch", description=__doc__)
    parser.add_argument("--processes", type=int, required=True, help="how many, on this machine")
    parser.add_argument("module", help="as after python -m")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the module")
    args = parser.parse_args()
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its report buries the process's own
    with tempfile.TemporaryDirectory(prefix="tokenlabel-") as folder:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=args.processes, run_id=uuid.uuid4().hex, max_restarts=0,
            rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
            logs_specs=DefaultLogsSpecs(log_dir=folder), shutdown_timeout=25,
            signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", args.module, *args.arguments)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode >= 0:
                return int(failure.exitcode)
            name = signal.Signals(-failure.exitcode).name
            reason = " (out of memory?)" if name == "SIGKILL" else ""
            print(  # noqa: T201
                f"error: process {rank} of {args.processes} (pid {failure.pid}) was killed by {name}{reason}; "
                "the others were stopped.",
                file=sys.stderr,
            )
            return 1
        except SignalException as stopped:  # the processes were sent it, and said what they saved
            return 128 + stopped.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
