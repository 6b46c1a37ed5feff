"""The report: tables, findings, figures and RESULTS.md. Seconds of work, so it runs where Snakemake runs."""


report: "../workflow/report/study.rst"


rule study:
    """Write the checked configuration for the jobs of the report."""
    output:
        "<results>/study.json",
    log:
        "<logs>/report/study.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        identity=IDENTITY,
        config=CHECKED,
        files=config_files,
    shell:
        "python -P -m rewardgrid.programs study --config {params.config:q} --files {params.files:q} "
        "--out {output:q} > {log:q} 2>&1"


rule index:
    """List every cell with its experiments and its spec."""
    input:
        "<results>/study.json",
    output:
        "<results>/cells.tsv",
    log:
        "<logs>/report/index.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    shell:
        "python -P -m rewardgrid.programs index --study {input:q} --out {output:q} > {log:q} 2>&1"


rule table:
    """One tidy row for each cell of an experiment."""
    input:
        metrics=metrics_for_table,
        study="<results>/study.json",
    output:
        parquet="<results>/tables/{experiment}.parquet",
        csv=report(
            "<results>/tables/{experiment}.csv",
            caption="../workflow/report/table.rst",
            category="Tables",
            labels={"experiment": "{experiment}", "format": "CSV"},
        ),
        latex=report(
            "<results>/tables/{experiment}.tex",
            caption="../workflow/report/latex.rst",
            category="Tables",
            labels={"experiment": "{experiment}", "format": "LaTeX"},
        ),
    log:
        "<logs>/report/table_{experiment}.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    params:
        # Recorded, so that a table that was made without some cells is made again once they are asked for, or have
        # come further.
        left_out=left_out_of_table,
    shell:
        "python -P -m rewardgrid.programs table --study {input.study:q} --experiment {wildcards.experiment:q} "
        "--out {output.parquet:q} --csv {output.csv:q} --latex {output.latex:q} > {log:q} 2>&1"


rule figures:
    """The pictures beside an experiment's table."""
    input:
        table="<results>/tables/{experiment}.parquet",
        published=published_files,
        study="<results>/study.json",
    output:
        report(
            directory("<results>/figures/{experiment}"),
            patterns=["{figure}.svg"],
            caption="../workflow/report/figure.rst",
            category="Figures",
            labels={"experiment": "{experiment}", "figure": "{figure}"},
        ),
    log:
        "<logs>/report/figures_{experiment}.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    shell:
        "python -P -m rewardgrid.programs figures --study {input.study:q} --experiment {wildcards.experiment:q} "
        "--out {output:q} > {log:q} 2>&1"


rule findings:
    """What the tables say, each finding with the figures behind it."""
    input:
        tables=expand("<results>/tables/{experiment}.parquet", experiment=study.active),
        published=published_files,
        study="<results>/study.json",
    output:
        "<results>/findings.json",
    log:
        "<logs>/report/findings.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    shell:
        'python -P -m rewardgrid.programs findings --study {input.study:q} --tables "$(dirname {input.study:q})/tables" '
        "--out {output:q} > {log:q} 2>&1"


rule published:
    """Set every figure and claim of the published study beside ours."""
    input:
        tables=expand("<results>/tables/{experiment}.parquet", experiment=study.active),
        published=published_files,
        study="<results>/study.json",
    output:
        "<results>/published.json",
    log:
        "<logs>/report/published.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    shell:
        'python -P -m rewardgrid.programs published --study {input.study:q} --tables "$(dirname {input.study:q})/tables" '
        "--out {output:q} > {log:q} 2>&1"


rule page:
    """Draw every cell on one page that works offline: its figures, its curves and what it wrote."""
    input:
        metrics=metrics_for_page,
        study="<results>/study.json",
    output:
        report(
            "<results>/report.html",
            caption="../workflow/report/page.rst",
            category="Results",
            labels={"what": "Page of runs"},
        ),
    log:
        "<logs>/report/page.log",
    localrule: True
    conda:
        "../envs/page.yaml"
    params:
        # As for tables.
        left_out=left_out_of_page,
    shell:
        "python -P -m rewardgrid.programs page --study {input.study:q} --out {output:q} > {log:q} 2>&1"


rule results:
    """Render RESULTS.md."""
    input:
        page="<results>/report.html",
        figures=expand("<results>/figures/{experiment}", experiment=study.active),
        published="<results>/published.json" if study.published else [],
        findings="<results>/findings.json",
        study="<results>/study.json",
    output:
        report(
            "<results>/RESULTS.md",
            caption="../workflow/report/results.rst",
            category="Results",
            labels={"what": "RESULTS.md"},
        ),
    log:
        "<logs>/report/results.log",
    localrule: True
    conda:
        "../envs/report.yaml"
    shell:
        "python -P -m rewardgrid.programs results --study {input.study:q} --findings {input.findings:q} --page {input.page:q} "
        + ("--published {input.published:q} " if study.published else "")
        + "--out {output:q} > {log:q} 2>&1"


rule results_partial:
    """Render RESULTS.md from the cells that are done so far; the others are named in it as missing."""
    input:
        "<results>/RESULTS.md",


if ALONE:

    include: "publish.smk"
