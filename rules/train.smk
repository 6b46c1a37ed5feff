"""Training: one job for each cell."""


rule train:
    """Train one cell. Its path is its identity: only a missing result trains it, whatever else has changed."""
    input:
        # Nothing for a trained cell: not even `ancient` would keep it from being trained again when a file is lost and
        # made anew. And of an untrained one nothing is ancient: Snakemake passes over a job, missing outputs or not,
        # if all that it takes from a job that must run (here `study`, after an edit) is.
        needs_of_untrained,
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
        # `exec`: SLURM signals every process of a job. A shell in between would die at once, Snakemake would take
        # the job for over, and SLURM would kill training before it has written its checkpoint.
        "OMP_NUM_THREADS={threads} HF_HUB_OFFLINE=1 exec python -P -m rewardgrid.programs train --study "
        + STUDY
        + " --cells {wildcards.cell:q} > {log:q} 2>&1"
