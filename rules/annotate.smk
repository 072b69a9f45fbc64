rule annotate_shard:
    """Stage 1: one shard of score maps by one annotator."""
    input:
        manifest=manifest_of_shard,
        adapted=adapted_annotator_of,
    output:
        # not deleted before the job: runs that are finished need not wait for a shard that is made again
        done=update("results/labels/{labels}/{split}-{shard}-of-{total}.done"),
    log:
        "logs/labels/{labels}/{split}-{shard}-of-{total}.log",
    benchmark:
        "benchmarks/labels/{labels}/{split}-{shard}-of-{total}.tsv"
    retries: retries(2)
    conda:
        "../envs/annotate.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.annotate_mem_mb * attempt,
        runtime=annotate_runtime,
        gpu=GPUS,
        in_turn=1,  # so that a group of shards asks for the memory and GPU of one (docs/cluster-jobs.md)
    params:
        python=PYTHON,
        machine=MACHINE,
        spec="results/labels/{labels}/spec.json",
        manifest=manifest_folder,
        annotator=annotator_argument,
    shell:
        "{params.python} -m tokenlabel.annotate --spec {params.spec} --machine {params.machine} --manifest {params.manifest}"
        " {params.annotator} --split {wildcards.split} --shard $((10#{wildcards.shard})) --done {output.done} --log {log}"


rule adapt_annotator:
    """Stage 0: an annotator for this data set's own classes, from a pretrained network."""
    input:
        manifest=manifest_after_spec(lambda wildcards: annotator_job_of(wildcards).document),
        run=run_to_adapt,
    output:
        done="results/annotators/{annotator}/adapted.done",
    log:
        "logs/annotators/{annotator}/adapted.log",
    benchmark:
        "benchmarks/annotators/{annotator}/adapted.tsv"
    retries: retries(2)
    conda:
        "../envs/annotate.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.annotate_mem_mb * attempt,
        runtime=adapt_runtime,
        gpu=GPUS,
    params:
        python=PYTHON,
        machine=MACHINE,
        spec="results/annotators/{annotator}/spec.json",
        manifest=manifest_folder,
        run=run_argument_of_annotator,
    shell:
        "{params.python} -m tokenlabel annotate adapt --spec {params.spec} --machine {params.machine}"
        " --manifest {params.manifest} {params.run} --done {output.done} --log {log}"


rule evaluate_annotator:
    """Top-1 and top-5 of an annotator alone on the validation split."""
    input:
        manifest=manifest_after_specs(
            lambda wildcards: [
                annotator_job_of(wildcards).document,
                evaluation_of(wildcards),
            ]
        ),
        adapted=adapted_marker,
    output:
        result="results/annotators/{annotator}/evaluation-{evaluation}.json",
    log:
        "logs/annotators/{annotator}/evaluation-{evaluation}.log",
    benchmark:
        "benchmarks/annotators/{annotator}/evaluation-{evaluation}.tsv"
    retries: retries(2)
    conda:
        "../envs/annotate.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.annotate_mem_mb * attempt,
        runtime=adapt_runtime,
        gpu=GPUS,
    params:
        python=PYTHON,
        machine=MACHINE,
        spec="results/evaluations/{evaluation}.json",
        manifest=manifest_folder,
        annotator="results/annotators/{annotator}",
    shell:
        "{params.python} -m tokenlabel annotate evaluate --spec {params.spec} --machine {params.machine}"
        " --manifest {params.manifest} --annotator {params.annotator} --out {output.result} --log {log}"


rule measure_fidelity:
    """Stored labels of one annotator against the annotator itself on random crops, and against the photographs' classes."""
    input:
        manifest=manifest_after_spec(lambda wildcards: label_job_of(wildcards).document),
        labels=labels_to_measure,
    output:
        measured="results/labels/{labels}/fidelity-{fidelity}.json",
    log:
        "logs/labels/{labels}/fidelity-{fidelity}.log",
    benchmark:
        "benchmarks/labels/{labels}/fidelity-{fidelity}.tsv"
    retries: retries(2)
    conda:
        "../envs/annotate.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.annotate_mem_mb * attempt,
        runtime=fidelity_runtime,
        gpu=GPUS,
    params:
        python=PYTHON,
        machine=MACHINE,
        manifest=manifest_folder,
        labels=lambda wildcards: label_job_of(wildcards).folder,
        annotator=annotator_argument,
        sample=STUDY.config.fidelity,
    shell:
        "{params.python} -m tokenlabel annotate fidelity {params.labels} --machine {params.machine} --manifest {params.manifest}"
        " {params.annotator} --images {params.sample.images} --crops {params.sample.crops} --seed {params.sample.seed}"
        " --out {output.measured} --log {log}"
