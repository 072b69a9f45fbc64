"""A Snakemake profile for Slurm as `tokenlabel doctor` reads it: which rule goes to which partition and asks for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import Machine
from ..core.errors import ConfigError
from ..core.overlays import CHECKOUT, read_yaml

LONGEST_POLL_S = 180  # between two questions of the executor for its jobs


@dataclass(frozen=True)
class Profile:
    """The keys that name things of the site.

    Attributes:
        path: of the file.
        defaults: default-resources.
        rules: rule -> its set-resources.
        status_command: sacct or squeue; None where the profile leaves it to the executor.
        qos: of `slurm-qos`, which every job gets beside its own, or None.
    """

    path: Path
    defaults: dict[str, Any]
    rules: dict[str, dict[str, Any]]
    status_command: str | None
    qos: str | None

    def of_rule(self, rule: str, key: str) -> Any:
        """A resource of a rule; None where neither it nor the defaults have it."""
        return self.rules.get(rule, {}).get(key, self.defaults.get(key))

    def gpus_of(self, rule: str, machine: Machine | None) -> int:
        """GPUs that a job of the rule asks for, on one node.

        Args:
            rule: its name.
            machine: settings of the study, which decide where the profile does not; None: none are asked for then.
        """
        found = self.of_rule(rule, "gpu")
        if found is None:
            found = str(self.of_rule(rule, "gres") or "").rpartition(":")[2]
        if str(found).isdigit():
            return int(found)
        if machine is None or machine.device == "cpu" or rule == "make_manifest":
            return 0
        return machine.processes if rule in ("train_run", "train_leg") else 1

    @property
    def partitions(self) -> list[str]:
        """Every partition that is named, the default's first."""
        named = [self.defaults.get("slurm_partition"), *(rule.get("slurm_partition") for rule in self.rules.values())]
        return list(dict.fromkeys(part for name in named if name for part in str(name).split(",")))

    @property
    def accounts(self) -> list[str]:
        """Every account that is named."""
        return self._named("slurm_account")

    @property
    def qos_names(self) -> list[str]:
        """Every quality of service that is named."""
        return list(dict.fromkeys([*self._named("qos"), *([self.qos] if self.qos else [])]))

    def _named(self, key: str) -> list[str]:
        found = [self.defaults.get(key), *(rule.get(key) for rule in self.rules.values())]
        return list(dict.fromkeys(str(name) for name in found if name))

    def rules_in(self, partition: str, rules: list[str]) -> list[str]:
        """Those of some rules that go to a partition."""
        return [rule for rule in rules if partition in str(self.of_rule(rule, "slurm_partition") or "").split(",")]


def read_profile(name: str) -> Profile:
    """Reads a profile by the name that `snakemake --profile` takes.

    Raises:
        ConfigError: there is none, or it is no YAML dictionary.
    """
    places = [Path(name), Path.home() / ".config" / "snakemake" / name, CHECKOUT / name]
    path = next((place / "config.yaml" for place in places if (place / "config.yaml").is_file()), None)
    if path is None:
        raise ConfigError(
            f"profile {name!r}: no config.yaml in {', '.join(map(str, places))}. Run this in the "
            "checkout, or give --profile FOLDER."
        )
    content = read_yaml(path, "options")
    return Profile(
        path=path,
        defaults=_resources(content.get("default-resources")),
        rules=_set_resources(content.get("set-resources")),
        status_command=content.get("slurm-status-command"),
        qos=content.get("slurm-qos"),
    )


def _resources(found: Any) -> dict[str, Any]:
    """Resources written as a dictionary, or as a list of KEY=VALUE."""
    if isinstance(found, Mapping):
        return dict(found)
    return dict(str(item).split("=", 1) for item in found or [] if "=" in str(item))


def _set_resources(found: Any) -> dict[str, dict[str, Any]]:
    """Rule -> resources, written as dictionaries, or as a list of RULE:KEY=VALUE."""
    if isinstance(found, Mapping):
        return {str(rule): _resources(resources) for rule, resources in found.items()}
    rules: dict[str, dict[str, Any]] = {}
    for item in found or []:
        rule, _, resource = str(item).partition(":")
        rules.setdefault(rule, {}).update(_resources([resource]))
    return rules
