"""Error rates of the verdicts under known truth: simulated contrast by contrast, and end to end with real training.

- `worlds`: shapes of luck, and two arms with a known effect for each contrast;
- `rates`: how often a contrast errs, covers and finds;
- `twins`: small real studies of one loss against itself;
- `record`: numbers and tables, in files.
"""
