rule make_manifest:
    """Lists the photographs once: ids, classes, sizes, the validation split, a digest per shard."""
    output:
        done=f"{STUDY.data.folder}/manifest.done",
    params:
        spec=f"{STUDY.data.folder}/spec.json",
    log:
        f"logs/data/{STUDY.data.name}.log",
    benchmark:
        f"benchmarks/data/{STUDY.data.name}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    retries: 1
    shell:
        "{PYTHON} -m tokenlabel.data --spec {params.spec} --machine {MACHINE} --done {output.done} --log {log}"
