"""Evaluation: what a base's stories are like, and then what each cell has made of them.

It goes before training that waits, so that a study that is interrupted has measured what it has trained.
"""


rule evaluate_base:
    """Measure a base's own stories, the reference of every verdict."""
    input:
        # Nothing for a measured base, as for a measured cell below: a restored study has figures and no models.
        model=ancient(base_of_unmeasured("model")),
        prompts=ancient(base_of_unmeasured("eval_prompts.parquet")),
    output:
        metrics="<results>/base/{base}/evaluation/metrics.json",
        samples="<results>/base/{base}/evaluation/samples.parquet",
    log:
        "<logs>/evaluate/{base}.log",
    benchmark:
        "<benchmarks>/evaluate/{base}.tsv"
    priority: 1
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 2000 * attempt,
        runtime=lambda wc, attempt: 15 * attempt,
    params:
        settings=base_settings,
        version=METRICS_VERSION,
        max_new_tokens=lambda wc: study.longest_completion(wc.base),
    shell:
        "OMP_NUM_THREADS={threads} HF_HUB_OFFLINE=1 python -P -m rewardgrid.programs evaluate "
        '--base "$(dirname "$(dirname {output.metrics:q})")" --settings {params.settings:q} '
        "--max-new-tokens {params.max_new_tokens} "
        '--out "$(dirname {output.metrics:q})" > {log:q} 2>&1'


rule evaluate:
    """Measure what a trained cell writes, and judge it against its base."""
    input:
        model=ancient(base_of_unmeasured("model")),
        prompts=ancient(base_of_unmeasured("eval_prompts.parquet")),
        reference=reference_of(settled=False),
        run=run_of(settled=False),
        settled_reference=ancient(reference_of(settled=True)),
        settled_run=ancient(run_of(settled=True)),
    output:
        metrics="<results>/cells/{cell}/evaluation/metrics.json",
        samples="<results>/cells/{cell}/evaluation/samples.parquet",
        routing="<results>/cells/{cell}/evaluation/routing.parquet",
        course="<results>/cells/{cell}/evaluation/course.parquet",
    log:
        "<logs>/evaluate/{cell}.log",
    benchmark:
        "<benchmarks>/evaluate/{cell}.tsv"
    priority: 1
    conda:
        "../envs/evaluate.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 2000 * attempt,
        runtime=lambda wc, attempt: 15 * attempt,
    params:
        settings=evaluation_settings,
        version=METRICS_VERSION,
    shell:
        "OMP_NUM_THREADS={threads} HF_HUB_OFFLINE=1 python -P -m rewardgrid.programs evaluate "
        '--cell "$(dirname "$(dirname {output.metrics:q})")" --settings {params.settings:q} > {log:q} 2>&1'
