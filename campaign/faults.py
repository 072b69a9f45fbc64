"""Every fault of the campaign: what is done, how often, what has to hold. docs/reliability.md is made of this and the results."""

from __future__ import annotations

import atexit
import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import damage, hostile, interruptions, places, slurm, training
from .cluster import running_cluster
from .workplace import Workplace, WriterPlace

IMAGES = 20
WRITER_COPIES = 60  # of the labels of IMAGES photographs, so that assembling takes most of the time
SMALL_PX, MAP_PX = 96, 576  # maps of 3x3 where the job is what matters; of 18x18, the study's, where the shard is


@dataclass(frozen=True)
class Fault:
    """A kind of trial.

    Attributes:
        title: of its line in the table.
        held: what has to hold.
        trial: (workplace, seed, scratch folder) -> what goes into the result line; `count` where it is not one.
        trials: in the campaign, seeds 0 to trials - 1.
        place: which workplace it takes, `job`, `writer`, `maps`, `training` or `cluster`.
    """

    title: str
    held: str
    trial: Callable[[Workplace, int, Path], dict[str, Any]]
    trials: int
    place: str = "job"


_WHOLE = "nothing opens as complete that is not; the rerun gives the undisturbed labels and leaves nothing over"
_REFUSED = "verify finds it; reading refuses or gives the right labels and attributes"
_SAME_RUN = "the same command goes on and logs and leaves exactly what the undisturbed run does, bit for bit"
_FINISHED = "undisturbed labels or weights, nothing left over, nothing made twice, and a further call has nothing to do"

FAULTS = {
    "kill_job": Fault("annotate job killed (-9) at a random moment", _WHOLE, interruptions.kill_writer, 50),
    "terminate_job": Fault(
        "annotate job told to stop (SIGTERM) at a random moment",
        "ends within 10 s with one line; no finished photograph is labeled again; the rerun gives the undisturbed labels",
        interruptions.terminate_job,
        50,
    ),
    "kill_writer": Fault(
        "writer killed (-9), mostly while assembling", _WHOLE, interruptions.kill_writer, 50, "writer"
    ),
    "two_writers": Fault(
        "two jobs for one shard, together or one midway",
        "both succeed, each photograph is labeled once, nothing is left over",
        interruptions.start_two_writers,
        20,
    ),
    "stopped_writer": Fault(
        "job stopped until another takes over, then continued",
        "one says in a line that it was taken over, the other finishes; the labels are right, nothing is left over",
        interruptions.stop_writer,
        10,
    ),
    "damaged_part": Fault(
        "one bit of a killed job's part flipped",
        "the rerun names the part in a line or the flip is harmless; with the part deleted, the undisturbed labels",
        interruptions.damage_part,
        50,
    ),
    "full_disk_job": Fault("disk full, at a random size", f"exit code 2 and one line; {_WHOLE}", places.fill_disk, 50),
    "full_disk_writer": Fault(
        "disk full, mostly while assembling", f"exit code 2 and one line; {_WHOLE}", places.fill_disk, 50, "writer"
    ),
    "read_only": Fault(
        "folder read-only, empty or after a kill", f"exit code 2 and one line; {_WHOLE}", places.forbid_writing, 20
    ),
    "bit_flips": Fault("one bit flipped, anywhere", _REFUSED, damage.flip_bits, 20, "maps"),
    "bit_flips_structure": Fault(
        "one bit flipped outside the chunks", _REFUSED, damage.flip_bits_of_structure, 20, "maps"
    ),
    "truncations": Fault("cut off at a random length", _REFUSED, damage.cut_off, 2, "maps"),
    "zeroed_blocks": Fault("4096 bytes of zeros", _REFUSED, damage.zero_blocks, 2, "maps"),
    "swapped_blocks": Fault("two blocks of 4096 bytes swapped", _REFUSED, damage.swap_blocks, 2, "maps"),
    "hostile_files": Fault(
        "made to mislead: types, shapes, links, pipes, inflating chunks",
        "one clear line from verify and from reading, under 100 MB, under 10 s",
        hostile.read_hostile_files,
        1,
        "maps",
    ),
    "training_killed": Fault(
        "training killed (-9), once or twice, mostly inside an epoch", _SAME_RUN, training.kill_training, 40, "training"
    ),
    "training_stopped": Fault(
        "training told to stop (SIGTERM, SIGUSR1, SIGINT)",
        f"a checkpoint within 20 s, one line and exit code 128 + number; {_SAME_RUN}",
        training.stop_training,
        12,
        "training",
    ),
    "training_deadline": Fault(
        "training that meets its deadline",
        f"ends before it with a checkpoint and exit code 75; {_SAME_RUN}",
        training.reach_deadline,
        6,
        "training",
    ),
    "training_damaged": Fault(
        "newest checkpoint of a killed training damaged: a bit flipped, cut off",
        f"the one before is taken and a line says so; {_SAME_RUN}",
        training.damage_checkpoint,
        20,
        "training",
    ),
    "training_full_disk": Fault(
        "disk full during a training, at a random size",
        f"exit code 2 and one line; {_SAME_RUN}",
        places.fill_disk,
        10,
        "training",
    ),
    "slurm_job_fails": Fault(
        "job's process killed (-9) once",
        f"submitted again with twice the memory, goes on where it was; {_FINISHED}",
        slurm.job_fails,
        3,
        "cluster",
    ),
    "slurm_scancel": Fault(
        "`scancel` of the running job",
        f"submitted again, goes on where it was; {_FINISHED}",
        slurm.scancel,
        3,
        "cluster",
    ),
    "slurm_out_of_memory": Fault(
        "job over its memory", f"submitted again with more; {_FINISHED}", slurm.out_of_memory, 3, "cluster"
    ),
    "slurm_time_limit": Fault(
        "job at Slurm's time limit",
        f"submitted again with more time, goes on where it was; {_FINISHED}",
        slurm.time_limit,
        3,
        "cluster",
    ),
    "slurm_slurmd_killed": Fault(
        "slurmd killed (-9) and started again, alone or with all processes of the job",
        f"the job runs on, or is started again and goes on where it was; {_FINISHED}",
        slurm.slurmd_killed,
        3,
        "cluster",
    ),
    "slurm_main_killed": Fault(
        "Snakemake killed (-9) and started again: a second job for the output of one that runs, has ended, or is dead",
        f"Snakemake names --unlock; the second job waits, finds all finished, or goes on where the first was; {_FINISHED}",
        slurm.main_killed,
        3,
        "cluster",
    ),
    "slurm_full_disk": Fault(
        "disk of the results full",
        f"each job says so in one line; with space the same command finishes; {_FINISHED}",
        slurm.full_disk,
        3,
        "cluster",
    ),
    "slurm_no_data": Fault(
        "photographs not mounted on the node",
        f"each job says so in one line and leaves nothing; once they are, the same command finishes; {_FINISHED}",
        slurm.no_data,
        3,
        "cluster",
    ),
    "slurm_slurmctld_restarted": Fault(
        "slurmctld killed (-9) and started again",
        f"the job runs on; Snakemake sees its end, or does after Ctrl-C and the same command; {_FINISHED}",
        slurm.slurmctld_restarted,
        3,
        "cluster",
    ),
}


class Workplaces:
    """The workplaces of a run, each made when a trial first asks for it."""

    def __init__(
        self, folder: Path, photographs: Path, *, map_px: int = MAP_PX, writer_copies: int = WRITER_COPIES
    ) -> None:
        self._folder, self._photographs = folder, photographs
        self._map_px, self._writer_copies = map_px, writer_copies

    @functools.cached_property
    def job(self) -> Workplace:
        """Small maps: the annotate job with real weights takes less than a second."""
        return Workplace.make(self._folder / "job", self._photographs, images=IMAGES, image_px=SMALL_PX)

    @functools.cached_property
    def writer(self) -> Workplace:
        """Only the writer."""
        return WriterPlace(self._folder / "writer", self.job, self._writer_copies)

    @functools.cached_property
    def maps(self) -> Workplace:
        """A shard of real maps in the study's size, to be damaged."""
        return Workplace.make(self._folder / "maps", self._photographs, images=IMAGES, image_px=self._map_px)

    @functools.cached_property
    def training(self) -> Workplace:
        """A training on the labels of `job`."""
        return training.TrainingPlace(self._folder / "training", self.job)

    @functools.cached_property
    def cluster(self) -> slurm.ClusterPlace:
        """A small study, and a Slurm cluster that runs until this process ends."""
        running = contextlib.ExitStack()
        running.enter_context(running_cluster())
        atexit.register(running.close)
        return slurm.ClusterPlace(self._folder / "cluster", self._photographs)

    def of(self, fault: Fault) -> Workplace:
        """The workplace that a fault takes."""
        place: Workplace = getattr(self, fault.place)
        return place
