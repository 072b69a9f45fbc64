rule annotate_shard:
    """Stage 1: one shard of score maps by one annotator."""
    input:
        manifest=manifest_after_spec(lambda wildcards: label_job_of(wildcards).document),
    output:
        done="results/labels/{labels}/train-{shard}-of-{total}.done",
    log:
        "logs/labels/{labels}/train-{shard}-of-{total}.log",
    benchmark:
        "benchmarks/labels/{labels}/train-{shard}-of-{total}.tsv"
    retries: 2
    conda:
        "../envs/annotate.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.annotate_mem_mb * attempt,
        runtime=annotate_runtime,
    params:
        python=PYTHON,
        machine=MACHINE,
        spec="results/labels/{labels}/spec.json",
        manifest=manifest_folder,
    shell:
        "{params.python} -m tokenlabel.annotate --spec {params.spec} --machine {params.machine} --manifest {params.manifest}"
        " --shard $((10#{wildcards.shard})) --done {output.done} --log {log}"


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
    retries: 2
    conda:
        "../envs/annotate.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.annotate_mem_mb * attempt,
        runtime=fidelity_runtime,
    params:
        python=PYTHON,
        machine=MACHINE,
        manifest=manifest_folder,
        labels=lambda wildcards: label_job_of(wildcards).folder,
        sample=STUDY.config.fidelity,
    shell:
        "{params.python} -m tokenlabel annotate fidelity {params.labels} --machine {params.machine} --manifest {params.manifest}"
        " --images {params.sample.images} --crops {params.sample.crops} --seed {params.sample.seed}"
        " --out {output.measured} --log {log}"
