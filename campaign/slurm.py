"""Trials on the real cluster: a small study runs through the product's own profile, and something happens to it in its midst.

A study of one label shard and one training is run once without a cluster; what it left is what each trial must leave. A trial
has either the shard or the training to make, so that one Slurm job is what the fault hits; odd seeds have the training. After
each: the right numbers, nothing left over, nothing made twice, no job left in Slurm, and a further call has nothing to do.

Snakemake and its jobs are forks of a process that has torch loaded (tests/warm), but where Slurm's own signals and memory limits
are the fault: those are real processes in every second trial. Snakemake asks Slurm every second and not every 20 s or more.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.warm import warm_python
from tokenlabel.core.overlays import read_configuration
from tokenlabel.core.study import Study

from .cluster import PATHS, TEST_CLUSTER, Job, jobs_seen_by_slurm, wait_until
from .training import lines_of, run_digest
from .workplace import DidNotHoldError, contents_digest, fresh_folder, require

ROOT = Path(__file__).resolve().parents[1]
IMAGES, EPOCHS, RETRIES = 24, 30, 2
POLLING = """
import asyncio, sys
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.sleep = lambda self: asyncio.sleep(1)
sys.exit(main())
"""
MEMORY_MB = 1500


class ClusterPlace:
    """A study of one shard and one training, and its undisturbed results."""

    def __init__(self, folder: Path, photographs: Path) -> None:
        self.folder = folder
        self.overlay = _overlay(photographs)
        folder.mkdir(parents=True)
        study_file = folder / "study.yaml"
        study_file.write_text(yaml.safe_dump(self.overlay), encoding="utf-8")
        study = Study.plan(read_configuration([ROOT / "config.yaml", study_file]))
        self.data = study.data.folder
        self.run_done = study.tables["ablation_annotators"].trainings[-1]
        (job,) = study.selected_labels
        self.labels, (self.shard_done,) = job.folder, job.markers_of("train")

    @functools.cached_property
    def reference(self) -> Path:
        """Folder of the undisturbed study."""
        directory = self.folder / "reference"
        directory.mkdir()
        targets = [self.shard_done, self.run_done]
        finished = _snakemake(directory, self.overlay, *targets, "--cores", "2").wait(300)
        require(finished.code == 0, finished.said()[-3000:])
        return directory


class Snakemake:
    """A Snakemake process, and what it has said so far.

    Args:
        command: with all arguments.
        said: file of both its outputs.
        meanwhile: called again and again while it is waited for.
    """

    def __init__(self, command: list[str], said: Path, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._said, self._meanwhile = said, meanwhile
        with open(said, "a", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    def wait(self, timeout_s: float = 150, *, kill: bool = True) -> Snakemake:
        """Waits for its end.

        Raises:
            DidNotHoldError: it has not ended in time, and is killed.
        """
        deadline = time.monotonic() + timeout_s
        while self.running:
            self._meanwhile()
            if time.monotonic() > deadline:
                if kill:
                    self.kill()
                raise DidNotHoldError(f"Snakemake still runs after {timeout_s:.0f} s: {self.said()[-1500:]}")
            time.sleep(0.1)
        return self

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)
        self.wait(90)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def code(self) -> int:
        """Exit code."""
        return int(self._process.returncode)

    def said(self) -> str:
        """Both outputs."""
        return self._said.read_text(errors="replace")


class Trial:
    """One directory in which the shard or the training is to be made.

    Attributes:
        rng: of the seed.
        training: whether it is the training.
        directory: where Snakemake runs.
    """

    def __init__(
        self, place: ClusterPlace, seed: int, scratch: Path, *, training: bool | None = None, real: bool = False
    ) -> None:
        self.place, self.rng, self.training = (
            place,
            random.Random(seed),
            bool(seed % 2) if training is None else training,
        )
        self.python = sys.executable if real else warm_python()
        self.overlay = yaml.safe_load(yaml.safe_dump(place.overlay))
        # a name of its own: Slurm still lists the jobs of the trial before
        self.directory = fresh_folder(scratch) / f"trial-{time.monotonic_ns()}"
        self.directory.mkdir()
        self.target = place.run_done if self.training else place.shard_done
        self.output = self.directory / (Path(place.run_done).parent if self.training else place.labels)
        reference = place.reference
        for made in [place.data, place.labels] if self.training else [place.data]:
            shutil.copytree(reference / made, self.directory / made)

    def start(self) -> Snakemake:
        """`snakemake --profile slurm TARGET`."""
        options = ["--profile", "slurm", *TEST_CLUSTER]
        return _snakemake(
            self.directory, self.overlay, self.target, *options, python=self.python, meanwhile=self.keep_log
        )

    def reach(self, snakemake: Snakemake, share: float | None = None) -> str:
        """Waits until the job has done a random share of its work; returns how far it is."""
        share = self.rng.uniform(0.05, 0.6) if share is None else share
        wanted = max(1, round(share * (EPOCHS if self.training else IMAGES)))

        def far_enough() -> bool:
            require(snakemake.running, f"Snakemake ended: {snakemake.said()[-1500:]}")
            return self.done_so_far() >= wanted

        wait_until(far_enough, f"the job did not get to {wanted}: {snakemake.said()[-1500:]}", 120)
        self.keep_log()
        return f"{self.done_so_far()} of {EPOCHS if self.training else IMAGES} {self.unit} done"

    def keep_log(self) -> None:
        """A second name for the job's log, which the next attempt's Snakemake removes before it starts."""
        for log in (self.directory / "logs").rglob("*.log"):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(log, self.directory / "logs" / f"{log.stat().st_ino}.log")

    @property
    def unit(self) -> str:
        """What the job counts."""
        return "epochs" if self.training else "photographs"

    def done_so_far(self) -> int:
        """Epochs logged, or photographs in finished parts."""
        if self.training:
            return sum("step" not in line for line in lines_of(self.output))
        return len(list(self.output.glob("*.parts/part-*.h5")))

    def jobs(self) -> list[Job]:
        """What Slurm has of this directory."""
        return jobs_seen_by_slurm(self.directory)

    def running_job(self) -> Job:
        """The one that runs."""
        (job,) = [job for job in self.jobs() if job["JobState"] == "RUNNING"]
        return job

    def worker(self) -> int:
        """Process id of the job's own Python, by its lease."""
        (lease,) = self.output.glob("*.lease")
        return int(json.loads(lease.read_text())["pid"])

    def log(self) -> str:
        """What the jobs have logged, all attempts."""
        self.keep_log()
        return "\n".join(path.read_text(errors="replace") for path in sorted((self.directory / "logs").glob("*.log")))

    def job_output(self) -> str:
        """What Slurm kept of the jobs' outputs."""
        folder = self.directory / ".snakemake" / "slurm_logs"
        return "\n".join(path.read_text(errors="replace") for path in sorted(folder.rglob("*.log")))

    def made(self) -> int:
        """Photographs labeled or epochs trained, by all attempts together."""
        if self.training:
            return len(re.findall(rf"INFO epoch \d+ of {EPOCHS}: ", self.log()))
        return sum(map(int, re.findall(r"INFO part \d+: (\d+) photographs", self.log())))

    def check_end(self, *, again: int = 1) -> dict[str, Any]:
        """What must hold when all is done.

        Args:
            again: photographs or epochs that may have been made twice: what was under way when the job was killed.

        Returns:
            digest of the results, how much was made in all, and states of the Slurm jobs.
        """
        busy = {"RUNNING", "PENDING", "COMPLETING"}
        wait_until(lambda: not busy & {job["JobState"] for job in self.jobs()}, "jobs are left in Slurm", 30)
        reference = self.place.reference
        expected_output = reference / self.output.relative_to(self.directory)
        if self.training:
            found, expected = run_digest(self.output), run_digest(expected_output)
        else:
            found, expected = contents_digest(self.output), contents_digest(expected_output)
        require(found == expected, f"the {self.unit} are not those of the undisturbed study")
        left, wanted = (
            {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"resumes.jsonl"}
            for folder in (self.output, expected_output)
        )
        require(left == wanted, f"left over {sorted(left - wanted)}, missing {sorted(wanted - left)}")
        total = EPOCHS if self.training else IMAGES
        made = self.made()
        require(total <= made <= total + again, f"{made} {self.unit} made, there are {total}")
        for name in ("locks", "incomplete"):
            kept = [path for path in (self.directory / ".snakemake" / name).rglob("*") if path.is_file()]
            require(not kept, f"left in .snakemake/{name}: {kept}")
        states = [job["JobState"] for job in self.jobs()]
        further = _snakemake(self.directory, self.overlay, self.target, "-n").wait(120)
        require("Nothing to be done" in further.said()[-600:], f"a further call would do: {further.said()[-1500:]}")
        return {"digest": found, "made": made, "jobs": states}


def job_fails(place: ClusterPlace, seed: int, scratch: Path) -> dict[str, Any]:
    """The job's process is killed once; Snakemake submits it again with more memory, and it goes on."""
    trial = Trial(place, seed, scratch)
    snakemake = trial.start()
    did = trial.reach(snakemake)
    os.kill(trial.worker(), signal.SIGKILL)
    return {"did": f"killed with {did}"} | _finish_by_retry(trial, snakemake, "FAILED")


def scancel(place: ClusterPlace, seed: int, scratch: Path) -> dict[str, Any]:
    """`scancel` of the running job: SIGTERM to each of its processes, SIGKILL two seconds later."""
    trial = Trial(place, seed, scratch, training=bool(seed // 2 % 2), real=bool(seed % 2))
    snakemake = trial.start()
    did = trial.reach(snakemake)
    subprocess.run(["scancel", trial.running_job()["JobId"]], check=True, timeout=60)
    return {"did": f"scancel with {did}{_real(trial)}"} | _finish_by_retry(trial, snakemake, "CANCELLED")


def time_limit(place: ClusterPlace, seed: int, scratch: Path) -> dict[str, Any]:
    """The job meets Slurm's time limit, which an administrator has lowered to a second from now."""
    trial = Trial(place, seed, scratch, training=bool(seed // 2 % 2), real=bool(seed % 2))
    snakemake = trial.start()
    did = trial.reach(snakemake)
    _scontrol("update", f"JobId={trial.running_job()['JobId']}", "EndTime=now+1")
    return {"did": f"time limit with {did}{_real(trial)}"} | _finish_by_retry(trial, snakemake, "TIMEOUT")


def out_of_memory(place: ClusterPlace, seed: int, scratch: Path) -> dict[str, Any]:
    """The first attempt has less memory than torch alone takes; the later ones have two and three times as much.

    With what Snakemake itself takes in the job, a shard needs 1.2 to 1.4 GB, a training 1.5 to 1.7.
    """
    trial = Trial(place, seed, scratch, real=True)
    memory_mb = trial.rng.randint(500, 600) + (150 if trial.training else 0)
    trial.overlay["machine"].update(annotate_mem_mb=memory_mb, train_mem_mb=memory_mb)
    snakemake = trial.start().wait(300)
    require(snakemake.code == 0, snakemake.said()[-1500:])
    states = [job["JobState"] for job in trial.jobs()]
    require(states[-1] == "COMPLETED", f"jobs were {states}")
    # without cgroups slurmstepd ends the step, and the job's state is FAILED
    require(set(states[:-1]) <= {"OUT_OF_MEMORY", "FAILED"} and len(states) > 1, f"jobs were {states}")
    require("exceeded memory limit" in trial.job_output().lower(), f"no word of memory: {trial.job_output()[-800:]}")
    _require_growing_memory(trial, memory_mb)
    return {"did": f"{memory_mb} MB at the first attempt"} | trial.check_end()


def slurmd_killed(place: ClusterPlace, seed: int, scratch: Path) -> dict[str, Any]:
    """slurmd dies and starts again, alone (seeds 0, 1, 4, 5) or with every process of the job, as when a node restarts."""
    trial = Trial(place, seed, scratch)
    node = seed // 2 % 2
    snakemake = trial.start()
    did = trial.reach(snakemake)
    job, down_s = trial.running_job(), trial.rng.uniform(0, 5)
    _kill_daemon("slurmd")
    if node:
        _kill_job(trial, job)
    time.sleep(down_s)
    _start_daemon("slurmd", *(["-b"] if node else []))  # -b: says that the node was started anew
    if node:  # Slurm puts the job back into the queue, for two minutes
        wait_until(lambda: _put_back(trial), "the job is not put back into the queue", 120)
        _scontrol("update", f"JobId={job['JobId']}", "StartTime=now")
    snakemake.wait()
    require(snakemake.code == 0, snakemake.said()[-1500:])
    what = "slurmd and the job's processes" if node else "slurmd"
    return {"did": f"{what} killed with {did}, back after {down_s:.1f} s"} | trial.check_end(again=node)


def _put_back(trial: Trial) -> bool:
    """Whether Slurm has put the trial's job back, after a request to its node to say what it runs.

    Of itself the node says so every few minutes, and of a job that began less than ten seconds before, Slurm does not miss it.
    """
    if trial.jobs()[0]["JobState"] == "PENDING":
        return True
    time.sleep(5)
    _scontrol("reconfigure")
    return False


def slurmctld_restarted(place: ClusterPlace, seed: int, scratch: Path) -> dict[str, Any]:
    """slurmctld is killed while the job runs and starts again seconds later; in seeds 2, 5, ... after half a minute.

    After so long Snakemake may stand still, see docs/reliability.md; then it gets a Ctrl-C, and the command is given again.
    """
    trial = Trial(place, seed, scratch)
    snakemake = trial.start()
    did = trial.reach(snakemake)
    down_s = trial.rng.uniform(20, 30) if seed % 3 == 2 else trial.rng.uniform(0, 6)
    _kill_daemon("slurmctld")
    time.sleep(down_s)
    _start_daemon("slurmctld")
    did = f"slurmctld killed with {did}, back after {down_s:.1f} s"
    wait_until(lambda: {job["JobState"] for job in trial.jobs()} == {"COMPLETED"}, "the job does not end", 60)
    with contextlib.suppress(DidNotHoldError):
        snakemake.wait(20, kill=False)
    if snakemake.running:
        require(seed % 3 == 2, "Snakemake stands still")
        did += "; Snakemake stood still, Ctrl-C and the same command"
        snakemake.interrupt()
        snakemake = trial.start().wait()
    require(snakemake.code == 0, snakemake.said()[-1500:])
    return {"did": did} | trial.check_end(again=0)


def main_killed(place: ClusterPlace, seed: int, scratch: Path) -> dict[str, Any]:
    """Snakemake is killed and started again, which submits a second job for the same output.

    Seeds 0, 3, ...: it runs beside the first; 1, 4, ...: it waits in Slurm's queue until the first has ended, and its Snakemake
    removes the finished marker; 2, 5, ...: the first is dead, and its lease is left.
    """
    trial = Trial(place, seed, scratch)
    when = seed % 3
    main = trial.start()
    did = trial.reach(main, 0.1)
    worker = trial.worker()
    main.kill()
    if when == 2:
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: trial.jobs()[0]["JobState"] == "FAILED", "the first job does not end")
    else:  # stands still, shorter than a lease takes to be stale, so that it is there when the second job comes
        os.kill(worker, signal.SIGSTOP)
    with _queue_closed() if when == 1 else contextlib.nullcontext():
        refused = trial.start().wait(120)
        require(refused.code != 0 and "--unlock" in refused.said(), f"no word of the lock: {refused.said()[-800:]}")
        unlocked = _snakemake(trial.directory, trial.overlay, "--unlock").wait(120)
        require(unlocked.code == 0, unlocked.said()[-800:])
        again = trial.start()
        wait_until(lambda: len(trial.jobs()) == 2, "no second job", 120)
        if when == 0:
            wait_until(lambda: trial.jobs()[1]["JobState"] == "RUNNING", "the second job does not run")
            time.sleep(trial.rng.uniform(0, 3))
        if when < 2:
            os.kill(worker, signal.SIGCONT)
        if when == 1:
            wait_until(lambda: trial.jobs()[0]["JobState"] == "COMPLETED", "the first job does not end", 120)
    again.wait()
    require(again.code == 0, again.said()[-1500:])
    moment = ("ran beside the first", "started after the first had ended", "found the first dead")[when]
    return {"did": f"killed with {did}; the second job {moment}"} | trial.check_end(again=int(when == 2))


@contextlib.contextmanager
def _queue_closed() -> Iterator[None]:
    """No job starts; what runs goes on."""
    _scontrol("update", "PartitionName=gpu", "State=DOWN")
    try:
        yield
    finally:
        _scontrol("update", "PartitionName=gpu", "State=UP")


def full_disk(place: ClusterPlace, seed: int, scratch: Path) -> dict[str, Any]:
    """The results lie on a disk that is too small; then it grows and the same command is given again."""
    from .places import PAGE, _mount, small_disk

    trial = Trial(place, seed, scratch)
    results = trial.directory / "results"
    kept = trial.directory / "kept"
    results.rename(kept)
    used = sum(-(-path.stat().st_size // PAGE) + 1 for path in kept.rglob("*"))
    pages = used + 12 + trial.rng.randint(0, 150 if trial.training else 20)
    with small_disk(results, pages):
        shutil.copytree(kept, results, dirs_exist_ok=True)
        first = trial.start().wait()
        require(first.code != 0, "the space sufficed")
        lines = _error_lines(trial)
        require(bool(lines) and all("No space left on device" in line for line in lines), f"the jobs said {lines}")
        require(not (trial.directory / trial.target).exists(), "a marker on a full disk")
        _mount("-o", f"remount,size={2**26}", str(results))
        second = trial.start().wait()
        require(second.code == 0, second.said()[-1500:])
        found = trial.check_end(again=RETRIES + 1)
    return {"did": f"{pages - used} pages free", "said": _without(lines[0], trial)} | found


def no_data(place: ClusterPlace, seed: int, scratch: Path) -> dict[str, Any]:
    """The node has not mounted the photographs: one line, exit code 2, nothing half-made; then it has."""
    trial = Trial(place, seed, scratch)
    mounted = scratch.with_name(f"{scratch.name}-photographs")
    mounted.unlink(missing_ok=True)
    photographs = trial.overlay["data_root"]
    trial.overlay["data_root"] = str(mounted)
    first = trial.start().wait()
    require(first.code != 0, "it ran without photographs")
    lines = _error_lines(trial)
    require(len(set(lines)) == 1 and str(mounted) in lines[0], f"the jobs said {lines}")
    require("Traceback" not in trial.job_output() + trial.log(), "a traceback")
    left = [str(path) for path in trial.output.rglob("*") if path.name != "spec.json"] if trial.output.exists() else []
    require(not left, f"half-made: {left}")
    mounted.symlink_to(photographs)
    second = trial.start().wait()
    require(second.code == 0, second.said()[-1500:])
    return {"did": "no data root", "said": _without(lines[0], trial)} | trial.check_end(again=0)


def _overlay(photographs: Path) -> dict[str, Any]:
    """The demo's study, cut down to one shard of few photographs and a student that learns for seconds."""
    demo = yaml.safe_load((ROOT / "demo" / "config.yaml").read_text(encoding="utf-8"))
    demo["data_root"] = str(photographs)
    demo["dataset"]["name"] = "crops"
    demo["labels"] = {"image_px": 160, "shards": 1}
    demo["annotators"] = {"lite0": {**demo["annotators"]["efficientnet_lite0"], "grid": [5, 5]}}
    demo["select"] = {"annotators": ["lite0"], "experiments": ["ablation_annotators"]}
    demo["defaults"]["annotator"] = "lite0"
    # a batch and a part for each photograph: the same numbers wherever a job is cut, and always a part being written
    demo["machine"].update(
        annotate_batch=1, part_seconds=1e-6, micro_batch=12, checkpoint_seconds=0.1, log_every_steps=1, tensorboard=False,
        validate_every_epochs=0, annotate_mem_mb=MEMORY_MB, train_mem_mb=MEMORY_MB,
    )  # fmt: skip
    demo["recipes"]["demo"]["ema_decay"] = 0.9
    demo["caps"] = {"epochs": EPOCHS, "images": IMAGES, "depth": 2, "width": 48, "image_px": 64, "seeds": 1}
    return dict(demo)


def _snakemake(
    directory: Path,
    overlay: dict[str, Any],
    *words: str,
    python: str | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Snakemake:
    study = directory / "study.yaml"
    study.write_text(yaml.safe_dump(overlay), encoding="utf-8")
    command = [python or warm_python(), "-c", POLLING, "--snakefile", str(ROOT / "Snakefile"), *words]
    command += ["--directory", str(directory), "--configfile", str(study)]
    return Snakemake(command, directory / "said.txt", meanwhile)


def _finish_by_retry(trial: Trial, snakemake: Snakemake, state: str) -> dict[str, Any]:
    snakemake.wait()
    require(snakemake.code == 0, snakemake.said()[-1500:])
    states = [job["JobState"] for job in trial.jobs()]
    require(states == [state, "COMPLETED"], f"jobs were {states}")
    _require_growing_memory(trial, MEMORY_MB)
    return trial.check_end()


def _require_growing_memory(trial: Trial, first_mb: int) -> None:
    memory = [job["MinMemoryNode"] for job in trial.jobs()]
    expected = [f"{first_mb * attempt}M" for attempt in range(1, len(memory) + 1)]
    require(memory == expected, f"memory of the attempts was {memory}, expected {expected}")


def _real(trial: Trial) -> str:
    return ", real processes" if trial.python == sys.executable else ""


def _error_lines(trial: Trial) -> list[str]:
    return re.findall(r"^error: .*", trial.job_output(), re.MULTILINE)


def _without(line: str, trial: Trial) -> str:
    return line.removeprefix("error: ").replace(str(trial.directory.parent), "")


def _scontrol(*words: str) -> None:
    done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=60, check=False)
    require(done.returncode == 0, f"scontrol {' '.join(words)}: {done.stderr}")


def _daemon(name: str) -> int:
    return int(Path(f"/run/{name}.pid").read_text())


def _kill_daemon(name: str) -> None:
    pid = _daemon(name)
    require(Path(f"/proc/{pid}/comm").read_text().strip() == name, f"{name} does not run")
    os.kill(pid, signal.SIGKILL)


def _start_daemon(name: str, *options: str) -> None:
    program = shutil.which(name, path=PATHS)
    assert program
    subprocess.run(
        [program],
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _kill_job(trial: Trial, job: Job) -> None:
    """Ends every process of a job at once, its slurmstepds first, so that nobody reports it."""
    for pid in sorted(_processes_of(job), key=lambda pid: "slurmstepd" not in _command(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError, ValueError):
        os.kill(trial.worker(), signal.SIGKILL)


def _processes_of(job: Job) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            named = f"slurmstepd: [{job['JobId']}." in _command(int(folder.name))
            if named or f"SLURM_JOB_ID={job['JobId']}\0".encode() in (folder / "environ").read_bytes():
                yield int(folder.name)


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


TrialFunction = Callable[[ClusterPlace, int, Path], dict[str, Any]]
