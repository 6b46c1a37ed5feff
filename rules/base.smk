"""Bases: the language models that cells start from, brought in from where they lie."""


# A base from the hub needs the network, and the nodes of a cluster often have none; one from this machine is copied
# in a second. So this job runs where Snakemake runs.
rule base:
    """Bring in a base: check its files, and cut its prompts if it comes without them."""
    output:
        model=directory("<results>/base/{base}/model"),
        train_prompts="<results>/base/{base}/train_prompts.parquet",
        eval_prompts="<results>/base/{base}/eval_prompts.parquet",
        provenance="<results>/base/{base}/provenance.json",
    log:
        "<logs>/base/{base}.log",
    benchmark:
        "<benchmarks>/base/{base}.tsv"
    localrule: True
    conda:
        "../envs/base.yaml"
    params:
        name=lambda wc: recipe_of(wc)[0],
        recipe=lambda wc: recipe_of(wc)[1].model_dump_json(),
    shell:
        "OMP_NUM_THREADS={threads} python -P -m rewardgrid.programs base --name {params.name:q} "
        '--recipe {params.recipe:q} --out "$(dirname {output.model:q})" > {log:q} 2>&1'
