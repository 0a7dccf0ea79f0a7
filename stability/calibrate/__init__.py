"""Error rates of the verdicts under known truth: simulated contrast by contrast, and end to end with real training.

- `scenarios`: noise distributions, and two simulated arms with a known effect for each contrast;
- `rates`: error rate, coverage and power of each contrast;
- `aa_tests`: small real studies of one loss against itself (A/A tests);
- `record`: the results as JSON and Markdown files.
"""
