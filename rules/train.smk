"""Training: one job for each cell."""


rule train:
    """Train one cell. Its path is its identity: only a missing result trains it, whatever else has changed."""
    input:
        # A base that is lost and made again must not take trained cells with it, as even an ancient file does.
        base=ancient(base_of_untrained),
        study=ancient("<results>/study.json"),
    output:
        spec="<results>/cells/{cell}/spec.json",
        train=directory("<results>/cells/{cell}/train"),
    log:
        "<logs>/train/{cell}.log",
    benchmark:
        "<benchmarks>/train/{cell}.tsv"
    conda:
        "../envs/train.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 3000 * attempt,
        runtime=minutes,
    shell:
        # No `params`: a rule that gains or loses one would train everything again. The path says which cell it is.
        # Checkpoints lie beside the outputs and are not declared: a job that is tried again goes on from them.
        "OMP_NUM_THREADS={threads} HF_HUB_OFFLINE=1 python workflow/scripts/train.py --study {input.study:q} "
        "--cells {wildcards.cell:q} > {log:q} 2>&1"
