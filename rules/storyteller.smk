"""The storyteller anew: a teacher's stories, sifted, and a base pretrained on them. Not part of `all`.

The base that comes with rewardgrid (resources/bases/storyteller) was made so. To use another one, name its directory
in the configuration: `bases: {storyteller: {kind: packaged, path: results/storyteller/base}}`.
"""


rule storyteller:
    """Make the storyteller base from its teacher."""
    input:
        "<results>/storyteller/base/provenance.json",


rule tell:
    """Let the teacher tell a shard of stories."""
    output:
        f"<results>/storyteller/told/seed{study.storyteller.seed}-{study.storyteller.shard}/{{shard}}.parquet",
    log:
        "<logs>/storyteller/tell-{shard}.log",
    wildcard_constraints:
        shard="[0-9]+",
    conda:
        "../envs/storyteller.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 6000 * attempt,
        runtime=lambda wc, attempt: 30 * attempt,
    params:
        stories=study.storyteller.shard,
        seed=study.storyteller.seed,
    shell:
        "OMP_NUM_THREADS={threads} python workflow/scripts/tell.py --shard {wildcards.shard} "
        "--stories {params.stories} --seed {params.seed} --out {output:q} > {log:q} 2>&1"


rule sift:
    """Sift the stories, and count what each sieve holds back."""
    input:
        expand(rules.tell.output, shard=range(study.storyteller.shards)),
    output:
        "<results>/storyteller/sifted.parquet",
    log:
        "<logs>/storyteller/sift.log",
    conda:
        "../envs/storyteller.yaml"
    shell:
        "python workflow/scripts/storyteller.py sift --told {input:q} --out {output:q} > {log:q} 2>&1"


rule make_storyteller:
    """Learn a tokenizer from the sifted stories, pretrain on them, cut the prompts."""
    input:
        rules.sift.output,
    output:
        model=directory("<results>/storyteller/base/model"),
        train_prompts="<results>/storyteller/base/train_prompts.parquet",
        eval_prompts="<results>/storyteller/base/eval_prompts.parquet",
        provenance="<results>/storyteller/base/provenance.json",
    log:
        "<logs>/storyteller/make.log",
    conda:
        "../envs/storyteller.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=lambda wc, attempt: 120 * attempt,
    params:
        recipe=study.storyteller.model_dump_json(),
    shell:
        "OMP_NUM_THREADS={threads} python workflow/scripts/storyteller.py make --sifted {input:q} "
        '--recipe {params.recipe:q} --out "$(dirname {output.model:q})" > {log:q} 2>&1'
