"""A study: one TOML file, validated into frozen data. Nothing in it can run code."""

from stability.study.comparing import with_loss
from stability.study.reading import find_study, load_study, parse_study, study_files
from stability.study.schema import DEFAULT_SCALE, SCALES, Arm, Claim, Schedule, Study, Train, digest, modalities

__all__ = [
    "DEFAULT_SCALE",
    "SCALES",
    "Arm",
    "Claim",
    "Schedule",
    "Study",
    "Train",
    "digest",
    "find_study",
    "load_study",
    "modalities",
    "parse_study",
    "study_files",
    "with_loss",
]
