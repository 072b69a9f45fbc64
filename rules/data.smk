rule make_manifest:
    """Lists the photographs once: ids, classes, sizes, the validation split, a digest per shard."""
    input:
        data_root_after_spec,
    output:
        done=f"{STUDY.data.folder}/manifest.done",
    log:
        f"logs/data/{STUDY.data.name}.log",
    benchmark:
        f"benchmarks/data/{STUDY.data.name}.tsv"
    retries: 1
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: MANIFEST_MEM_MB * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        python=PYTHON,
        machine=MACHINE,
        spec=f"{STUDY.data.folder}/spec.json",
    shell:
        "{params.python} -m tokenlabel.data --spec {params.spec} --machine {params.machine} --done {output.done} --log {log}"
