rule annotate_shard:
    """Stage 1: one shard of score maps by one annotator."""
    input:
        manifest=STUDY.data.marker,
    output:
        done="results/labels/{labels}/train-{shard}-of-{total}.done",
    params:
        spec="results/labels/{labels}/spec.json",
        manifest=STUDY.data.folder,
    log:
        "logs/labels/{labels}/train-{shard}-of-{total}.log",
    benchmark:
        "benchmarks/labels/{labels}/train-{shard}-of-{total}.tsv"
    conda:
        "../envs/annotate.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.annotate_mem_mb * attempt,
        runtime=annotate_runtime,
    retries: 2
    shell:
        "{PYTHON} -m tokenlabel.annotate --spec {params.spec} --machine {MACHINE} --manifest {params.manifest}"
        " --shard $((10#{wildcards.shard})) --done {output.done} --log {log}"
