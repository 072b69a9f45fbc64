rule annotate_shard:
    """Stage 1: one shard of score maps by one annotator."""
    input:
        manifest=manifest_of_shard,
    output:
        # not deleted before the job: runs that are finished need not wait for a shard that is made again
        done=update("results/labels/{labels}/train-{shard}-of-{total}.done"),
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
