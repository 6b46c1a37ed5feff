# RESULTS.md as the repository shows it, at its root: links to figures and documents, and none to the page of runs, which stays.
s#\]\(figures/#](docs/figures/#g
s#\]\((\.\./)+docs/#](docs/#g
s#\[([^]]*)\]\(report\.html[^)]*\)#\1#g
