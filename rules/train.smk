rule train_run:
    """Stage 2 or a fine-tuning: one run of one seed, continued from its checkpoint where it was interrupted."""
    input:
        manifest=STUDY.data.marker,
        labels=labels_of_run,
        start=start_of_run,
    output:
        done="results/runs/{run}/seed{seed}/done.json",
    params:
        spec="results/runs/{run}/spec.json",
        manifest=STUDY.data.folder,
        folders=run_arguments,
    log:
        "logs/runs/{run}/seed{seed}/train.log",
    benchmark:
        "benchmarks/runs/{run}/seed{seed}/train.tsv"
    conda:
        "../envs/train.yaml"
    threads: SETTINGS.threads
    resources:
        mem_mb=lambda wildcards, attempt: SETTINGS.train_mem_mb * attempt,
        runtime=train_runtime,
    retries: 2
    shell:
        "{PYTHON} -m tokenlabel.train --spec {params.spec} --machine {MACHINE} --manifest {params.manifest}"
        " {params.folders} --seed {wildcards.seed} --done {output.done} --log {log}"
