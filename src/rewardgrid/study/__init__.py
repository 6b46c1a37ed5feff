"""What is to be run: cells, experiments, studies, their names and their errors; and the rule of the verdict."""
