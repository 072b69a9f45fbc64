"""Slurm as the profile needs it: commands, controller, partitions and their limits, account, GPUs, how jobs are polled.

Called by `tokenlabel doctor --profile`. Asks the site's own commands and submits nothing.
"""

from __future__ import annotations

import getpass
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..core.cost import EVALUATION_MINUTES, MANIFEST_MINUTES, SMALLEST_MINUTES, limit_minutes
from ..core.first_light import rule_of
from ..core.placement import nodes_of
from ..core.plan import list_targets
from ..core.plan_jobs import JobList
from ..core.study import Study
from .doctor_findings import Finding, ask
from .doctor_profile import LONGEST_POLL_S, Profile

COMMANDS = ("sbatch", "squeue", "sinfo", "scontrol", "scancel", "srun")
LEAST_MINUTES = {  # of rules whose shortest limit is another than that of all
    "evaluate_run": EVALUATION_MINUTES,
    "evaluate_segmentation": EVALUATION_MINUTES,
    "make_manifest": MANIFEST_MINUTES,
    "make_scene_manifest": MANIFEST_MINUTES,
}
AREA = "slurm"
RETRIES = 2  # of the rules on the GPU partition


@dataclass(frozen=True)
class Partition:
    """What sinfo and scontrol say of a partition.

    Attributes:
        name: of it.
        up: whether it takes and starts jobs.
        limit_minutes: longest job, infinite where none is set.
        nodes, nodes_usable: all of it, and those that are neither down nor drained.
        gpus_per_node, cpus_per_node, mem_mb_per_node: most of one node.
        gpu_models: types of its GPUs, as sinfo names them.
        features: of its nodes, for constraints.
    """

    name: str
    up: bool
    limit_minutes: float
    nodes: int
    nodes_usable: int
    gpus_per_node: int
    cpus_per_node: int
    mem_mb_per_node: int
    gpu_models: frozenset[str]
    features: frozenset[str]


def look_at_slurm(profile: Profile, study: Study | None) -> Iterator[Finding]:
    """Yields a finding for each thing; without a controller nothing after it can be told.

    Args:
        profile: read.
        study: for the length of its jobs; None where the configuration is not legal.
    """
    missing = [name for name in COMMANDS if ask([name, "--version"]).code is None]
    if missing:
        yield Finding(
            "fail",
            AREA,
            f"not on PATH or silent: {', '.join(missing)}",
            "Log in to a node that submits jobs, or load the site's module: module load slurm",
        )
        return
    said = ask(["scontrol", "ping"])
    if not re.search(r"\bUP\b", said.text):
        yield Finding(
            "fail",
            AREA,
            f"slurmctld does not answer ({'; '.join(dict.fromkeys(map(str.strip, (said.text or said.error).splitlines())))})",
            "Wait, or ask the site's administrators: without it no job starts",
        )
        return
    yield Finding("ok", AREA, f"{ask(['sbatch', '--version']).text.strip()}, slurmctld answers")
    config = _configuration()
    longest = longest_jobs(study) if study is not None else {}
    rules = list(longest) or [*profile.rules, "make_manifest"]
    if not profile.partitions:
        yield Finding(
            "warn",
            AREA,
            f"{profile.path} names no partition, so jobs go to the site's default",
            "Set slurm_partition under default-resources",
        )
    for name in profile.partitions:
        yield from _look_at_partition(name, profile, longest, rules, study)
    yield from _look_at_account(profile, config)
    yield from _look_at_polling(profile, config)


def longest_jobs(study: Study) -> dict[str, int]:
    """Rule -> minutes that its longest job of the study asks for at the first attempt."""
    jobs = JobList(study)
    list_targets(study, jobs)
    minutes: dict[str, int] = {}
    longest_h = study.config.machine.max_job_hours
    for job in jobs.jobs.values():
        rule = rule_of(job.path)
        if rule is not None:
            least = LEAST_MINUTES.get(rule, SMALLEST_MINUTES)
            asked = limit_minutes(job.seconds, 1, longest_h if job.gpus else None, smallest=least)
            minutes[rule] = max(minutes.get(rule, 0), asked)
    return minutes


def find_partition(name: str) -> Partition | None:
    """Asks for one partition; None where there is none of that name."""
    said = ask(["scontrol", "--oneliner", "show", "partition", name])
    keys = dict(re.findall(r"(\w+)=(\S+)", said.text))
    if said.code != 0 or keys.get("PartitionName") != name:
        return None
    nodes = [
        line.split("|") for line in ask(["sinfo", "-h", "-N", "-p", name, "-o", "%T|%G|%f|%c|%m"]).text.splitlines()
    ]
    usable = [
        node
        for node in nodes
        if re.match(r"(idle|mixed|allocated|completing|reserved|planned|powering_up|powered_down)", node[0])
    ]
    return Partition(
        name=name,
        up=keys.get("State") == "UP",
        limit_minutes=minutes_of(keys.get("MaxTime", "UNLIMITED")),
        nodes=len(nodes),
        nodes_usable=len(usable),
        gpus_per_node=max((count_gpus(node[1]) for node in nodes), default=0),
        cpus_per_node=max((_number(node[3]) for node in nodes), default=0),
        mem_mb_per_node=max((_number(node[4]) for node in nodes), default=0),
        gpu_models=frozenset(model for node in nodes for model in re.findall(r"(?:^|,)gpu:([^:,()]+):\d", node[1])),
        features=frozenset(word for node in nodes for word in re.split(r"[,&|]", node[2])),
    )


def _look_at_partition(
    name: str, profile: Profile, longest: dict[str, int], rules: list[str], study: Study | None
) -> Iterator[Finding]:
    machine = study.config.machine if study is not None else None
    found = find_partition(name)
    if found is None:
        there = sorted({line.strip("* ") for line in ask(["sinfo", "-h", "-o", "%R"]).text.splitlines()})
        yield Finding(
            "fail",
            AREA,
            f"partition {name}: the cluster has none of that name; it has {', '.join(there) or 'none for you'}",
            f"Set slurm_partition in {profile.path}",
        )
        return
    if not found.up:
        yield Finding(
            "fail", AREA, f"partition {name}: not up", "Wait or choose another one; sinfo -s tells their states"
        )
    if found.nodes_usable == 0:
        yield Finding(
            "fail", AREA, f"partition {name}: none of its {found.nodes} nodes takes jobs", "sinfo -R tells why"
        )
    elif found.nodes_usable < found.nodes:
        yield Finding(
            "warn",
            AREA,
            f"partition {name}: {found.nodes - found.nodes_usable} of {found.nodes} nodes take no jobs",
            "sinfo -R tells why",
        )
    elif found.up:
        yield Finding("ok", AREA, f"partition {name}: up, {found.nodes} node{'s' * (found.nodes != 1)}")
    here = profile.rules_in(name, rules)
    wanted = max((profile.gpus_of(rule, machine) for rule in here), default=0)
    if wanted > found.gpus_per_node:
        yield Finding(
            "fail",
            AREA,
            f"partition {name}: jobs ask for {wanted} GPU{'s' * (wanted != 1)} of a node, its nodes have {found.gpus_per_node}",
            f"Set the partition with GPUs, or gpu to what a node has, in {profile.path}; sinfo -o '%P %G' shows them",
        )
    elif wanted:
        yield Finding("ok", AREA, f"partition {name}: {found.gpus_per_node} GPUs a node, jobs ask for {wanted}")
    for rule in here:
        constraint = profile.of_rule(rule, "constraint")
        lacking = [
            word for word in re.split(r"[,&|()\[\]]", str(constraint or "")) if word and word not in found.features
        ]
        if lacking:
            yield Finding(
                "fail",
                AREA,
                f"partition {name}: constraint {constraint!r} of {rule}: no node has the feature {lacking[0]}",
                "sinfo -o '%P %f' lists features",
            )
        model = profile.of_rule(rule, "gpu_model")
        if model and found.gpu_models and str(model) not in found.gpu_models:
            yield Finding(
                "fail",
                AREA,
                f"partition {name}: gpu_model {model} of {rule}: its nodes have {', '.join(sorted(found.gpu_models))}",
                "sinfo -o '%P %G' shows the types",
            )
    if study is not None:
        yield from _look_at_size(found, set(here), study)
        yield from _look_at_cut_jobs(name, set(here), study)
    max_job_hours = machine.max_job_hours if machine else None
    yield from _look_at_limit(found, {rule: longest[rule] for rule in here if rule in longest}, max_job_hours)


def _look_at_size(partition: Partition, here: set[str], study: Study) -> Iterator[Finding]:
    """Whether processors, memory and nodes of the largest job are there: sbatch refuses what no node can ever run."""
    machine = study.config.machine
    training = bool(here & {"train_run", "train_leg"})
    others = bool(here - {"train_run", "train_leg", "make_manifest"})
    cpus = max(training * machine.threads * machine.processes, others * machine.threads)
    mem_mb = max(training * machine.train_mem_mb * machine.processes, others * machine.annotate_mem_mb)
    for wanted, there, what, keys in (
        (cpus, partition.cpus_per_node, "processors", "machine.threads or machine.processes"),
        (mem_mb, partition.mem_mb_per_node, "MB of memory", "machine.train_mem_mb or machine.annotate_mem_mb"),
    ):
        if wanted > there:
            yield Finding(
                "fail",
                AREA,
                f"partition {partition.name}: jobs ask for {wanted:,} {what} of a node, its largest has {there:,}",
                f"Lower {keys}, or choose another partition",
            )
    chains = [run for run in study.selected_runs if training]
    nodes = 0
    while chains:
        nodes = max(nodes, *(nodes_of(machine, run) for run in chains))
        chains = [run.start for run in chains if run.start is not None]
    if nodes > partition.nodes:
        yield Finding(
            "fail",
            AREA,
            f"partition {partition.name}: a training asks for {nodes} nodes, it has {partition.nodes}",
            "Lower machine.nodes or machine.nodes_of, or choose another partition",
        )


def _look_at_cut_jobs(partition: str, here: set[str], study: Study) -> Iterator[Finding]:
    """What machine.max_job_hours cannot split: a job without legs that should take longer gets that limit and meets it."""
    longest_h = study.config.machine.max_job_hours
    if longest_h is None:
        return
    jobs = JobList(study)
    list_targets(study, jobs)
    hours: dict[str, float] = {}
    for job in jobs.jobs.values():
        rule = rule_of(job.path)
        if rule in here and job.gpus and job.seconds > 3600 * longest_h:
            hours[rule] = max(hours.get(rule, 0.0), job.seconds / 3600)
    for rule, estimate in hours.items():
        yield Finding(
            "warn",
            AREA,
            f"partition {partition}: {rule} should take {_words(60 * estimate)}, machine.max_job_hours gives a job "
            f"{_words(60 * longest_h)}; the first attempts will be cut off",
            "Raise labels.shards"
            if rule == "annotate_shard"
            else "Raise machine.max_job_hours, or lower machine.leg_epochs where it is set",
        )


def _number(text: str) -> int:
    """Of sinfo's `64` or, where nodes differ, `64+`."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _look_at_limit(partition: Partition, longest: dict[str, int], max_job_hours: float | None) -> Iterator[Finding]:
    if not longest:
        return
    rule, minutes = max(longest.items(), key=lambda item: item[1])
    limit = partition.limit_minutes
    asked = f"the longest job, {rule}, asks for {_words(minutes)}"
    if minutes <= limit:
        yield Finding("ok", AREA, f"partition {partition.name}: time limit {_words(limit)}, {asked}")
        attempts = RETRIES + 1
        if minutes * attempts > limit and max_job_hours is None:
            yield Finding(
                "warn",
                AREA,
                f"partition {partition.name}: attempt {attempts} of {rule} would ask for {_words(minutes * attempts)}, more "
                "than the limit, and never start",
                f"Set machine.max_job_hours: {limit / 60:g}",
            )
        return
    remedy = "Choose a partition for long jobs"
    if rule in ("train_run", "train_leg"):
        remedy += (
            f", or set machine.max_job_hours: {limit / 60:g}, which splits trainings into legs; machine.leg_epochs, where it "
            f"is set, at most 1/{math.ceil(minutes / limit)} of their epochs"
        )
    elif rule == "annotate_shard":
        remedy += f", or raise labels.shards at least {math.ceil(minutes / limit)} times"
    yield Finding("fail", AREA, f"partition {partition.name}: time limit {_words(limit)}, but {asked}", remedy)


def _configuration() -> dict[str, str]:
    """Slurm's own configuration, key -> value."""
    return dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", ask(["scontrol", "show", "config"]).text, flags=re.MULTILINE))


def has_accounting(config: dict[str, str]) -> bool:
    """Whether accounts are checked and sacct answers."""
    return config.get("AccountingStorageType", "").rpartition("/")[2] not in ("", "none", "(null)")


def _look_at_account(profile: Profile, config: dict[str, str]) -> Iterator[Finding]:
    if not has_accounting(config):
        yield Finding("ok", AREA, "no accounting here, so any account is taken")
        return
    user = getpass.getuser()
    said = ask(["sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account,qos"])
    lines = [line.split("|") for line in said.text.splitlines() if "|" in line]
    accounts = sorted({line[0] for line in lines})
    if said.code != 0:
        yield Finding("warn", AREA, f"accounts cannot be told ({said.error})", "sacctmgr show assoc user=$USER")
        return
    for account in profile.accounts:
        if account not in accounts:
            yield Finding(
                "fail",
                AREA,
                f"account {account}: not one of {user}'s, which are {', '.join(accounts) or 'none'}",
                f"Set slurm_account in {profile.path}",
            )
        else:
            yield Finding("ok", AREA, f"account {account}: {user} may use it")
    allowed = {name for line in lines if line[0] in (profile.accounts or accounts) for name in line[1].split(",")}
    for qos in profile.qos_names:
        if qos not in allowed:
            yield Finding(
                "fail",
                AREA,
                f"qos {qos}: not allowed; allowed are {', '.join(sorted(allowed)) or 'none'}",
                f"Set qos in {profile.path}",
            )


def _look_at_polling(profile: Profile, config: dict[str, str]) -> Iterator[Finding]:
    asks = profile.status_command or "sacct"
    if asks == "sacct" and not has_accounting(config):
        yield Finding(
            "fail",
            AREA,
            "jobs are polled with sacct, which never answers without accounting (AccountingStorageType none)",
            f"Set slurm-status-command: squeue in {profile.path}",
        )
        return
    age = re.match(r"\d+", config.get("MinJobAge", ""))
    kept_s = int(age[0]) if age else 0
    if asks == "squeue" and kept_s <= LONGEST_POLL_S:
        yield Finding(
            "warn",
            AREA,
            f"squeue forgets a finished job after {kept_s} s (MinJobAge), the executor asks every {LONGEST_POLL_S} s at the latest",
            "A finished job may look lost and run again. Ask for MinJobAge above that, or for accounting",
        )
        return
    yield Finding("ok", AREA, f"jobs are polled with {asks}")


def minutes_of(limit: str) -> float:
    """Minutes of Slurm's [DAYS-]HOURS:MINUTES:SECONDS; infinite for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if match is None:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def count_gpus(gres: str) -> int:
    """GPUs in sinfo's %G, as `gpu:a100:4(S:0-1),shard:8` or `gpu:2`."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)", gres))


def _words(minutes: float) -> str:
    if math.isinf(minutes):
        return "none"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"
