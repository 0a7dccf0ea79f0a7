"""A study: one TOML file, validated into frozen data. Nothing in it can run code."""

from stability.study.comparing import with_loss
from stability.study.reading import find_study, load_study, parse_study, study_files
from stability.study.schema import DEFAULT_SCALE, SCALES, Arm, Claim, Schedule, Study, Train, digest, modalities
from stability.study.template import kinds, parse_options, study_path, write_study

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
    "kinds",
    "load_study",
    "modalities",
    "parse_options",
    "parse_study",
    "study_files",
    "study_path",
    "with_loss",
    "write_study",
]
