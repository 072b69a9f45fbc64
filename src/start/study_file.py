"""The study file: a small overlay of config.yaml that its owner can read and edit. Called by `command`."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..core.cost import ANNOTATOR_PX, FLOPS_PER_MULTIPLY_ADD, TRAINING_FACTOR, multiply_adds_at
from .estimate import Plan
from .networks import Network
from .survey import Survey

MOST_KEPT = 32  # classes of which a map keeps every logit; of more it keeps 5 and the sum of the rest


@dataclass(frozen=True)
class StudyFile:
    """What is written.

    Attributes:
        name: letters, digits, _.
        path: of the file.
        survey: of the photographs.
        plan: sizes, epochs, estimate.
        annotator: network that is adapted.
        annotator_cost: 10^6 parameters, 10^9 multiply-adds at 576 px.
        student: network that is trained.
        student_cost: 10^6 parameters, 10^9 multiply-adds at the plan's size.
        val_fraction: share set aside; unused where the folder has its own split.
        val_seed: which ones.
        threads: processor threads of a job.
        snakefile: of the checkout; None where the package was installed without one.
    """

    name: str
    path: Path
    survey: Survey
    plan: Plan
    annotator: Network
    annotator_cost: tuple[float, float]
    student: Network
    student_cost: tuple[float, float]
    val_fraction: float
    val_seed: int
    threads: int
    snakefile: Path | None

    @property
    def directory(self) -> Path:
        """Where the study's results lie."""
        return self.path.with_name(f"{self.name}_study")

    @property
    def command(self) -> str:
        """What runs the study from the folder where this command ran."""
        words = ["snakemake", "all"]  # the target first: --configfile swallows what follows
        if self.snakefile is None:
            words += ["--snakefile", "CHECKOUT_OF_TOKENLABEL/Snakefile"]
        elif self.snakefile.parent != Path.cwd():
            words += ["--snakefile", str(self.snakefile)]
        words += ["--directory", str(self.directory), "--configfile", str(self.path)]
        return shlex.join(words)

    def text(self) -> str:
        """The overlay with its comments."""
        survey, plan = self.survey, self.plan
        stages = "\n".join(f"#     {seconds / 60:6.1f}  {stage}" for stage, seconds in plan.seconds.items())
        places = "train: train\n  val: val" if survey.own_split else "train: .\n  val: null"
        split = (
            ""
            if survey.own_split
            else f"""
  val_fraction: {self.val_fraction:g}                 # of each class; near-duplicates stay on one side
  val_seed: {self.val_seed}                       # which ones"""
        )
        every = len(survey.counts) <= MOST_KEPT
        kept = "k: all" if every else "k: 5, tail: true"
        mass = "published" if every else "exact"
        warmup = 1 if plan.epochs > FEW_EPOCHS else 0
        batch = min(32, survey.train)
        parameters_m, gmacs = self.annotator_cost
        annotator = _entry(
            self.annotator, architecture=self.annotator.architecture, num_classes=1000, grid=list(plan.grid),
            parameters_m=round(parameters_m, 2), gmacs=round(gmacs, 2),
        )  # fmt: skip
        student = _entry(
            self.student, architecture=f"timm/{self.student.architecture}", image_px=plan.student_px,
            stochastic_depth=0.0, eval_crop=1.0, parameters_m=round(self.student_cost[0], 2),
            gmacs=round(max(self.student_cost[1], 0.001), 3),
        )  # fmt: skip
        return f"""# Study of {_commented(str(survey.folder))}, written by `tokenlabel init`; edit it as you like.
# config.yaml explains every key.
#
#   command   {_commented(self.command)}
#   results   {_commented(str(self.directory))}/results/{TABLE}.csv and report.html; a second call goes on where the first ended
#   estimate  {plan.minutes:.0f} minutes on the machine that wrote this, with {self.threads} threads; in minutes:
{stages}
data_root: {_quoted(str(survey.folder.resolve()))}

dataset:
  name: {self.name}
  version: "1"                      # change it when the photographs change
  num_classes: {len(survey.counts)}
  class_map: null                   # folder names in lexicographic order
  format: folder
  {places}{split}
  train_images: {survey.train}
  val_images: {survey.val}

labels: {{image_px: {plan.annotator_px}, {kept}, shards: {max(1, round(survey.train / 2000))}}}

machine:
  threads: {self.threads}
  workers: 0
  annotate_batch: 16
  micro_batch: {batch}
  annotate_mem_mb: 3000
  train_mem_mb: 4000
  validate_every_epochs: 0

plan:                               # for results/plan.csv; a "GPU" is this machine, as it was timed
  {{gpu: here, gpus: 1, price_per_gpu_hour: 0, job_start_s: {plan.start_s:.1f}, gpu_types: {{here: {self._timed()}}}}}

select: {{annotators: [mine], experiments: [{TABLE}]}}

defaults: {{annotator: mine}}

annotators:
  {self.annotator.name}: {annotator}
  mine: {{base: {self.annotator.name}, adapt: probe, folds: 5}}   # heads for your classes, fitted without what they label

models:
  student: {student}

experiments:
  {TABLE}:
    question: The annotator alone, plain fine-tuning, or token labels as well - which is best here?
    paper: none
    seeds: [0]                      # [0, 1, 2] says how much chance matters, and takes three times as long
    set:                            # of all rows: the same budget
      model: student
      train.epochs: {plan.epochs}
      train.warmup_epochs: {warmup}
      train.cooldown_epochs: 0
      train.batch_size: {batch}
      train.learning_rate: 5.0e-4   # of fine-tuning a pretrained network
      train.learning_rate_batch: null
      train.min_learning_rate: 1.0e-6
      train.clip_norm: 1.0
      train.ema_decay: null         # too few steps for an average
      train.mix: none
      train.crop_scale: [0.25, 1.0]
      train.class_target: label     # the folder is the truth, the annotator is not
      train.label_mass: {mass}
    rows:
      - {{name: annotator_alone, label: annotator alone, set: {{model: annotator}}}}
      - {{name: fine_tune, label: plain fine-tuning, set: {{train.supervision: hard}}}}
      - {{name: fine_tune_tokens, label: fine-tuning with token labels, set: {{train.supervision: token}}}}
"""

    def _timed(self) -> str:
        """What this machine achieved with these networks, as an entry of `plan.gpu_types`."""
        gmacs = multiply_adds_at(self.annotator_cost[1], ANNOTATOR_PX, self.plan.annotator_px)
        annotate = FLOPS_PER_MULTIPLY_ADD * gmacs / self.plan.speed.annotate_s / 1e3
        train = FLOPS_PER_MULTIPLY_ADD * TRAINING_FACTOR * self.student_cost[1] / self.plan.speed.train_s / 1e3
        entry = {
            "peak_tflops": max(annotate, train),  # the shares say which of the two reaches it
            "train_share": train / max(annotate, train),
            "infer_share": annotate / max(annotate, train),
            "evidence": "measured",
            "source": "timed by tokenlabel init",
        }
        rounded = {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in entry.items()}
        return yaml.safe_dump(rounded, default_flow_style=True, sort_keys=False, width=10_000).strip()


TABLE = "own_photographs"
FEW_EPOCHS = 5  # up to which no epoch is spent on warming up


def _entry(network: Network, **keys: object) -> str:
    """A catalogue entry on one line."""
    return yaml.safe_dump(keys | network.entry(), default_flow_style=True, sort_keys=False, width=10_000).strip()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # JSON is YAML


def _commented(text: str) -> str:
    return text.replace("\n", " ")
