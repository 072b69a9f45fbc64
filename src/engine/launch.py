"""`python -m tokenlabel.engine.launch --processes N MODULE ...`: the processes of a training; called by the workflow.

On one node torch's elastic agent starts them, as torchrun does. Differs from the command torchrun in what a user sees: the process
that failed speaks first and alone, one that was killed is named with its signal, and SIGUSR1 reaches the processes. With `--srun`,
inside a job of Slurm, its srun starts them, on one node or several; they find each other by what it leaves in the environment.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
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
    parser.add_argument("--processes", type=int, required=True, help="how many, on each node")
    parser.add_argument("--nodes", type=int, default=1, help="of the Slurm job, with --srun (default: %(default)s)")
    parser.add_argument("--srun", action="store_true", help="let Slurm's srun start them (default: this command does)")
    parser.add_argument("--threads", type=int, default=1, help="processors of each, with --srun (default: %(default)s)")
    parser.add_argument("module", help="as after python -m")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of the module")
    args = parser.parse_args()
    if args.nodes > 1 and not args.srun:
        parser.error("--nodes above 1 needs --srun: on one machine there is one node")
    if args.srun:
        return _start_by_srun(args)
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


def _start_by_srun(args: argparse.Namespace) -> int:
    """Becomes srun, in a job that holds the nodes, processors and GPUs; returns only where it cannot."""
    if "SLURM_JOB_ID" not in os.environ or shutil.which("srun") is None:
        print(  # noqa: T201
            f"error: a training on {args.nodes} node(s) with {args.processes} process(es) each is started by Slurm's srun, and "
            "this is no job of Slurm. Run snakemake --profile slurm, or set machine.nodes and machine.nodes_of to one node.",
            file=sys.stderr,
        )
        return 2
    command = [
        "srun", f"--nodes={args.nodes}", f"--ntasks={args.nodes * args.processes}", f"--ntasks-per-node={args.processes}",
        f"--cpus-per-task={args.threads}", "--kill-on-bad-exit=1", sys.executable, "-m", args.module, *args.arguments,
    ]  # fmt: skip
    return os.execvp(command[0], command)  # signals and exit code are srun's own


if __name__ == "__main__":
    sys.exit(main())
