"""Reports about runs: model cards, tables of runs, comparison pages."""
