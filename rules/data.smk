rule make_manifest:
    """Lists the photographs once: ids, classes, sizes, the validation split, a digest per shard."""
    input:
        data_root_after_spec,
    output:
        done="results/data/{data}/manifest.done",
    log:
        "logs/data/{data}.log",
    benchmark:
        "benchmarks/data/{data}.tsv"
    retries: retries(1)
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: MANIFEST_MEM_MB * attempt,
        runtime=lambda wildcards, attempt: MANIFEST_MINUTES * attempt,
    params:
        python=PYTHON,
        machine=MACHINE,
        spec="results/data/{data}/spec.json",
    shell:
        "{params.python} -m tokenlabel.data --spec {params.spec} --machine {params.machine} --done {output.done} --log {log}"
